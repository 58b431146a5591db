"""A server in a nursery of its own, for the length of a test's block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def started(start: Callable[..., Any], address: object) -> AsyncIterator[Any]:
    """Have ``start`` serve on ``address`` for the length of the block, and cancel it; yields the server.

    What it raises before the block begins is raised as it is; the nursery makes a group of the rest.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            server = await nursery.start(start, address)
        except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would make a group of it
            failure = error
        else:
            yield server
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
