"""What a reactor costs beyond an accept loop of one's own: CPU of the server a request, as a ratio.

    python benchmarks/reactor.py [ROUNDS]

One process serves the same echo twice, on two ports: by ``serve(workers=4, balancer="least_connections")``, and by a loop
that accepts connections and starts a task for each.  The two take turns of some ten milliseconds, in which all
connections of one are kept busy and those of the other sleep; each turn is compared with the mean of its neighbours.  So
what else happens on the machine falls on both.  The CPU time is the scheduler's (/proc/PID/schedstat).
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
from pathlib import Path

import trio

import gain_trio

CONNECTIONS = 64
MESSAGE = b"x" * 64
REQUESTS = 60
"""A turn, on each connection."""
KINDS = ("reactor", "direct")


def serve() -> None:
    """In a process of its own, until it is killed."""

    async def echo(connection: gain_trio.Connection) -> None:
        while data := await connection.receive():
            await connection.send(data)

    async def handle(connection: gain_trio.Connection) -> None:
        async with connection:
            await echo(connection)

    async def accept(listener: gain_trio.Listener) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(handle, await listener.accept())

    async def main() -> None:
        address = "tcp://127.0.0.1:0"
        config = gain_trio.ServerConfig(workers=4, balancer="least_connections")
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda task_status: gain_trio.serve(echo, address, config=config, task_status=task_status)
            )
            [listener] = await gain_trio.open_listeners(address)
            nursery.start_soon(accept, listener)
            print(server.addresses[0][1], listener.local_address[1], flush=True)

    gain_trio.run(main)


def cpu_time(pid: int) -> int:
    """Nanoseconds that the process has had so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def exchange(clients: list[socket.socket]) -> None:
    """A message and its echo on each."""
    for client in clients:
        client.sendall(MESSAGE)
    for client in clients:
        if client.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
            sys.exit("reactor.py: an echo is not what was sent")


def measure(pid: int, ports: list[int], rounds: int) -> None:
    clients = [[connect(port) for _ in range(CONNECTIONS)] for port in ports]
    for group in clients:
        for _ in range(REQUESTS):
            exchange(group)
    turns: list[float] = []
    for turn in range(2 * rounds + 1):
        exchange(clients[turn % 2])  # it wakes up, and what the other one had left is done
        before = cpu_time(pid)
        for _ in range(REQUESTS):
            exchange(clients[turn % 2])
        turns.append((cpu_time(pid) - before) / 1000 / REQUESTS / CONNECTIONS)
    ratios = [turns[i] / (turns[i - 1] + turns[i + 1]) * 2 for i in range(2, len(turns) - 1, 2)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    for number, kind in enumerate(KINDS):
        print(f"{kind:8} {statistics.median(turns[number::2]):6.2f} µs a request")
    print(f"reactor ÷ direct: {middle:.3f} (half of the turns between {low:.3f} and {high:.3f})")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    if rounds < 4:
        sys.exit("reactor.py: there must be at least 4 rounds")
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            measure(server.pid, [int(port) for port in server.stdout.readline().split()], rounds)
        finally:
            server.kill()


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
