"""What the handlers of the command do when their server drains."""

from __future__ import annotations

import trio

from gain_trio._transports import Connection


async def end_when_draining(connection: Connection) -> None:
    """Have the handler's ``receive`` raise :exc:`trio.TooSlowError` once nothing is left that has arrived."""
    await connection.draining.wait()
    connection.read_deadline = trio.current_time()  # what has arrived is never too late
