"""httpx_trio.py PORT [accelerated|accelerated-ring]: requests of one httpx client in one task, by turns.

A line of the standard input has a number of seconds, and begins a turn of that length.  When it is over, a line of JSON has
the requests that were answered in it, and the seconds of CPU time that they cost this process.
"""

import json
import sys
import time

import httpx
import trio

WARMUP_REQUESTS = 50
FIRST_REQUESTS = 5
"""Of each turn: they bring this process's memory back into the caches, and do not count."""


async def take_turn(client: httpx.AsyncClient, url: str, seconds: float) -> None:
    for _ in range(FIRST_REQUESTS):
        (await client.get(url)).raise_for_status()
    requests = 0
    before = time.process_time()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (await client.get(url)).raise_for_status()
        requests += 1
    used = time.process_time() - before
    print(json.dumps({"requests": requests, "cpu_seconds": used}), flush=True)


async def main(port: int) -> None:
    url = f"http://127.0.0.1:{port}/plaintext"
    async with httpx.AsyncClient() as client:
        for _ in range(WARMUP_REQUESTS):
            (await client.get(url)).raise_for_status()
        for line in sys.stdin:  # nothing of this run goes on between two turns
            await take_turn(client, url, float(line))


port = int(sys.argv[1])
if len(sys.argv) > 2:
    import gain_trio

    gain_trio.run(main, port, backend="io_uring" if "ring" in sys.argv[2] else "trio", accelerate=True)
else:
    trio.run(main, port)
