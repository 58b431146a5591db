"""trio_datagrams.py PORT [accelerated|accelerated-ring]: echo datagrams in a task, on Trio's own sockets."""

import sys

import trio


async def main(port: int) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as endpoint:
        await endpoint.bind(("127.0.0.1", port))
        while True:
            data, address = await endpoint.recvfrom(65536)
            await endpoint.sendto(data, address)


if len(sys.argv) > 2:
    import gain_trio

    gain_trio.run(main, int(sys.argv[1]), backend="io_uring" if "ring" in sys.argv[2] else "trio", accelerate=True)
else:
    trio.run(main, int(sys.argv[1]))
