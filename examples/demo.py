"""This program shows a server and a client in one terminal: it starts the command gain-trio, talks to it, and stops it.

    python examples/demo.py

It ends with status 0 when every message came back as it was sent.
"""

import signal
import subprocess
import sys
from functools import partial

import trio

import gain_trio

COMMAND = [sys.executable, "-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", "echo"]
MESSAGES = (b"Hello, io_uring!", b"One nursery owns everything here.", b"Bye.")


async def first_line(stream: trio.abc.ReceiveStream) -> str:
    """The line that the server prints when it is ready."""
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some()
        if not data:
            raise RuntimeError("the server ended before it listened")
        line += data
    return line.decode().strip()


async def talk(address: str) -> None:
    """Send each message and read it back."""
    connection = await gain_trio.connect(address)
    async with connection:
        for message in MESSAGES:
            await connection.send(message)
            answer = b""
            while len(answer) < len(message):
                data = await connection.receive()
                if not data:
                    raise RuntimeError("the server closed the connection")
                answer += data
            print(f"client: sent {message.decode()!r}, got {answer.decode()!r}", flush=True)
            if answer != message:
                raise RuntimeError("the answer is not what was sent")


async def main() -> None:
    """Run the server as a process of this nursery, so that it never outlives it."""
    print("$ gain-trio", *COMMAND[3:], flush=True)
    run_server = partial(trio.run_process, COMMAND, stdout=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(run_server)
        with trio.fail_after(30):
            ready = await first_line(server.stdout)
            print(f"server: {ready}", flush=True)
            await talk(ready.split()[3].rstrip(";"))
            server.send_signal(signal.SIGINT)
            print(f"server: stopped, exit status {await server.wait()}", flush=True)
        nursery.cancel_scope.cancel()
    if server.returncode != 0:
        raise RuntimeError("the server ended with an error")


if __name__ == "__main__":
    try:
        gain_trio.run(main)
    except gain_trio.RingUnavailable as error:
        sys.exit(f"demo: {error}")
