"""trio_datagrams.py PORT: echo datagrams in a task, on Trio's own I/O."""

import sys

import trio


async def main(port: int) -> None:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as endpoint:
        await endpoint.bind(("127.0.0.1", port))
        while True:
            data, address = await endpoint.recvfrom(65536)
            await endpoint.sendto(data, address)


trio.run(main, int(sys.argv[1]))
