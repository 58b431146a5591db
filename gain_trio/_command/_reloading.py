"""``gain-trio asgi --reload``: the worker process is replaced when the program's files change.

That is what SIGHUP does: the successor imports the program anew and serves before the old one drains, so no request is
refused.  While the new code cannot be imported the old one goes on, and the log says why.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from gain_trio._server import Server, ungrouped

from ._announcing import Starter
from ._parsing import show

if TYPE_CHECKING:
    from watchfiles import Change


def check_watchfiles() -> None:
    """Check that files can be watched.

    Raises:
      ImportError: watchfiles is not installed; says how to install it.
    """
    try:
        import watchfiles  # noqa: F401, PLC0415 - an optional package, which only this needs
    except ImportError as error:
        raise ImportError(f"--reload needs the package watchfiles ({error}): pip install watchfiles") from error


async def serve_reloading(
    start: Starter, folders: Sequence[Path], *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a server of worker processes, and replace these whenever a Python file changes.

    Args:
      start: starts the server.
      folders: where to look for files, with all that is below.
    """
    stop: Any = threading.Event()  # of which watchfiles asks in its thread whether it is set

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        try:
            await start(task_status=task_status)
        finally:
            stop.set()

    with ungrouped():
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(serve)
            task_status.started(server)
            await _watch(server, folders, stop)


async def _watch(server: Server, folders: Sequence[Path], stop: Any) -> None:
    from watchfiles import PythonFilter, awatch  # noqa: PLC0415 - see check_watchfiles()

    async for changes in awatch(*folders, watch_filter=PythonFilter(), stop_event=stop):
        show(f"reloading: {_named(changes)}\n")
        await server._renew()


def _named(changes: set[tuple[Change, str]]) -> str:
    """The files that have changed, relative to the working directory."""
    names = sorted({path for _change, path in changes})
    here = Path.cwd()
    shown = [str(Path(name).relative_to(here)) if Path(name).is_relative_to(here) else name for name in names[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(shown)}{more} changed"
