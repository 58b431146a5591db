"""httpx_trio.py PORT SECONDS [accelerated|accelerated-ring]: requests of one httpx client in one task.

Prints the requests that were answered, and the seconds of CPU time that they cost this process, as JSON.
"""

import json
import sys
import time

import httpx
import trio

WARMUP_REQUESTS = 50


async def main(port: int, seconds: float) -> None:
    url = f"http://127.0.0.1:{port}/plaintext"
    async with httpx.AsyncClient() as client:
        for _ in range(WARMUP_REQUESTS):
            (await client.get(url)).raise_for_status()
        requests = 0
        before = time.process_time()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            (await client.get(url)).raise_for_status()
            requests += 1
        used = time.process_time() - before
    print(json.dumps({"requests": requests, "cpu_seconds": used}))


arguments = int(sys.argv[1]), float(sys.argv[2])
if len(sys.argv) > 3:
    import gain_trio

    gain_trio.run(main, *arguments, backend="io_uring" if "ring" in sys.argv[3] else "trio", accelerate=True)
else:
    trio.run(main, *arguments)
