"""Echo over a Unix socket or TLS: rounds of one message on each connection, by blocking calls.

    python _over_load.py ADDRESS PID CONNECTIONS SIZE SECONDS [tls]

ADDRESS is the number of a TCP port of 127.0.0.1, or the path of a Unix socket.  A round sends a message on every connection,
and then receives all echoes.  The CPU time of the server, process PID, is that of the rounds, and not of connecting.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import ExitStack

from _transfer_tls import PATIENCE_SECONDS, SETTLE_SECONDS, cpu_seconds, cpu_split, without_checks

WARMUP_ROUNDS = 50


def connect(address: str, *, tls: bool) -> socket.socket:
    if "/" in address:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(PATIENCE_SECONDS)
        client.connect(address)
        return client
    client = socket.create_connection(("127.0.0.1", int(address)), timeout=PATIENCE_SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return without_checks().wrap_socket(client) if tls else client


def one_round(clients: list[socket.socket], number: int, size: int) -> None:
    messages = [(b"%d %d " % (number, index)).ljust(size, b"x")[:size] for index in range(len(clients))]
    for client, message in zip(clients, messages, strict=True):
        client.sendall(message)
    for client, message in zip(clients, messages, strict=True):
        echo = b""
        while len(echo) < size:
            data = client.recv(size - len(echo))
            if not data:
                sys.exit("the server has ended a connection")
            echo += data
        if echo != message:
            sys.exit("an echo is another message than the one that was sent")


def main(address: str, pid: int, count: int, size: int, seconds: float, *, tls: bool) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address, tls=tls)) for _ in range(count)]
        for number in range(WARMUP_ROUNDS):
            one_round(clients, number, size)
        time.sleep(SETTLE_SECONDS)
        user, system = cpu_split(pid)
        used, began = cpu_seconds(pid), time.monotonic()
        rounds = 0
        while time.monotonic() - began < seconds:
            one_round(clients, rounds, size)
            rounds += 1
        elapsed = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        used = cpu_seconds(pid) - used
        user_after, system_after = cpu_split(pid)
    result = {
        "requests": rounds * count,
        "seconds": elapsed,
        "cpu_seconds": used,
        "user_seconds": user_after - user,
        "system_seconds": system_after - system,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        float(sys.argv[5]),
        tls=sys.argv[6:] == ["tls"],
    )
