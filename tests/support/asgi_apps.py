"""Apps that worker processes import by name."""

from __future__ import annotations

import os
from typing import Any

TEXT = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


async def tell_process(_scope: Any, _receive: Any, send: Any) -> None:
    """An app that answers with the number of its process."""
    await send(TEXT)
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


async def says_who_asks(scope: Any, _receive: Any, send: Any) -> None:
    """An app that answers with the two ends of its connection."""
    await send(TEXT)
    await send({"type": "http.response.body", "body": repr((scope["client"], scope["server"])).encode()})


def made() -> Any:
    """A function that makes an app."""
    return tell_process


number = 5
"""Something that is no app."""
