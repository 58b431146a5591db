"""A handler with metrics of its own, for worker processes: tests let nothing count them in their own process."""

from __future__ import annotations

import os

from prometheus_client import Counter, Enum, Gauge, Histogram, Info, Summary

from gain_trio import Connection

GREETINGS = Counter("greetings", "Answers.", ["kind"])
SIZES = Histogram("sizes_bytes", "Lengths of requests.", buckets=[10, 100])
WAITS = Summary("waits_seconds", "Times.")
OPEN = Gauge("greeting_open", "Open now.", multiprocess_mode="livesum")
LARGEST = Gauge("greeting_largest", "The largest number.", multiprocess_mode="max")
PROCESS = Gauge("greeting_process", "The id of the process.")
BUILD = Info("greeting_build", "What runs.")
STATE = Enum("greeting_state", "How it is.", states=["cold", "warm"])


def count() -> None:
    """Count one answer."""
    GREETINGS.labels("plain").inc()
    SIZES.observe(50)
    WAITS.observe(0.5)
    OPEN.set(1)
    LARGEST.set(os.getpid())
    PROCESS.set(os.getpid())
    BUILD.info({"version": "1"})
    STATE.state("warm")


async def greet(connection: Connection) -> None:
    """A handler that answers with the id of its process, and counts that."""
    async with connection:
        async for _ in connection:
            count()
            await connection.send(b"%8d" % os.getpid())
