"""ASGI apps for worker processes and commands, which import them from here by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FILE = "WEB_APPS_FILE"
"""The variable with the name of a file that :func:`recorded` writes to."""


async def answer(send: Any, text: str, status: int = 200) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def note(path: Path, line: str) -> None:
    """Append a line to a file."""
    with path.open("a") as file:
        file.write(f"{line}\n")


async def plain(scope: Any, _receive: Any, send: Any) -> None:
    """An app without a lifespan, that answers with the id of its process, or with the status that the path says."""
    assert scope["type"] == "http"
    name = scope["path"].strip("/")
    if name == "fail":
        raise LookupError("the page is missing")
    await answer(send, str(os.getpid()), int(name) if name.isdigit() else 200)


async def recorded(scope: Any, receive: Any, send: Any) -> None:
    """An app that writes what its lifespan does into a file, and answers with the state and the id of its process.

    With a file ``fail`` beside it, it cannot start, and with ``fail_at_end`` it cannot end.
    """
    if scope["type"] != "lifespan":
        await answer(send, f"{scope['state']['started_in']} {os.getpid()}")
        return
    path = Path(os.environ[FILE])
    assert await receive() == {"type": "lifespan.startup"}
    if path.with_name("fail").exists():
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise LookupError("the database is missing")
    scope["state"]["started_in"] = os.getpid()
    note(path, f"starts {os.getpid()}")
    await send({"type": "lifespan.startup.complete"})
    assert await receive() == {"type": "lifespan.shutdown"}
    if path.with_name("fail_at_end").exists():
        await send({"type": "lifespan.shutdown.failed", "message": "it does not close"})
        return
    note(path, f"ends {os.getpid()}")
    await send({"type": "lifespan.shutdown.complete"})


async def client(scope: Any, _receive: Any, send: Any) -> None:
    """An app that answers with the client, the scheme and the path of the request."""
    host = None if scope["client"] is None else scope["client"][0]
    await answer(send, f"{host} {scope['scheme']} {scope['root_path']} {scope['path']}")


def create() -> Any:
    """A factory."""
    return plain
