"""Run a coroutine on one of the event loops that speak asyncio: asyncio, uvloop or rloop."""

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any


def run(loop_name: str, main: Coroutine[Any, Any, None]) -> None:
    loop = importlib.import_module(loop_name).new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()
