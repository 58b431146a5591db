"""The entries of Trio's and Python's documentation that ours links to, as inventories for Sphinx's intersphinx.

Intersphinx reads a site's inventory from the network, and a build here needs no network: so the entries that are used are
written down, by page.  A reference to another one is no link, until it has its line here.
"""

from __future__ import annotations

import zlib
from pathlib import Path

PYTHON = {
    "library/asyncio-protocol.html": "class asyncio.BaseProtocol asyncio.Protocol asyncio.BufferedProtocol "
    "asyncio.Transport",
    "library/asyncio-stream.html": "meth asyncio.StreamReader.readuntil",
    "library/collections.abc.html": "class collections.abc.AsyncIterator collections.abc.Awaitable collections.abc.Buffer "
    "collections.abc.Callable collections.abc.Collection collections.abc.Coroutine collections.abc.Iterable "
    "collections.abc.Mapping collections.abc.Sequence",
    "library/contextlib.html": "class contextlib.AbstractContextManager contextlib.AbstractAsyncContextManager func "
    "contextlib.asynccontextmanager",
    "library/exceptions.html": "exc BaseException Exception KeyboardInterrupt SystemExit EOFError ImportError "
    "ModuleNotFoundError NotImplementedError OSError OverflowError RuntimeError TypeError ValueError BufferError",
    "library/functions.html": "class bool float int func repr",
    "library/functools.html": "func functools.partial",
    "library/logging.html": "mod logging class logging.Formatter logging.LogRecord",
    "library/logging.handlers.html": "class logging.handlers.QueueHandler",
    "library/socket.html": "mod socket class socket.socket socket.AddressFamily socket.SocketKind exc socket.gaierror "
    "func socket.create_connection attr socket.socket.proto meth socket.socket.getsockname "
    "socket.socket.getpeername socket.socket.setsockopt socket.socket.getsockopt",
    "library/ssl.html": "class ssl.SSLContext exc ssl.SSLError ssl.SSLCertVerificationError func ssl.create_default_context "
    "meth ssl.SSLSocket.getpeercert",
    "library/stdtypes.html": "class bytearray bytes memoryview str",
}
TRIO = {
    "reference-core.html": "class trio.CancelScope trio.Event trio.Nursery trio.TaskStatus trio.abc.Clock exc "
    "trio.BusyResourceError trio.Cancelled trio.ClosedResourceError trio.BrokenResourceError trio.TooSlowError "
    "trio.WouldBlock func trio.run trio.current_time trio.move_on_after trio.from_thread.run trio.from_thread.run_sync "
    "trio.to_thread.run_sync",
    "reference-io.html": "class trio.abc.HalfCloseableStream trio.SSLStream trio.SocketStream trio.SocketListener "
    "trio.socket.SocketType mod trio.socket",
    "reference-lowlevel.html": "class trio.abc.Instrument trio.lowlevel.Task func trio.lowlevel.current_task "
    "trio.lowlevel.start_guest_run trio.lowlevel.checkpoint",
    "reference-testing.html": "class trio.testing.MockClock func trio.testing.wait_all_tasks_blocked",
}
SITES = {"python": "https://docs.python.org/3/", "trio": "https://trio.readthedocs.io/en/stable/"}
ROLES = {
    "attr": "attribute",
    "class": "class",
    "exc": "exception",
    "func": "function",
    "meth": "method",
    "mod": "module",
}


def _lines(pages: dict[str, str]) -> list[str]:
    lines = []
    for page, entries in pages.items():
        role = ""
        for word in entries.split():
            if word in ROLES:
                role = ROLES[word]
            else:
                anchor = f"module-{word}" if role == "module" else "$"
                lines.append(f"{word} py:{role} 1 {page}#{anchor} -\n")
    return lines


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write both inventories into a folder; returns what ``intersphinx_mapping`` is to be."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for site, pages in {"python": PYTHON, "trio": TRIO}.items():
        head = f"# Sphinx inventory version 2\n# Project: {site}\n# Version: \n# The rest is compressed with zlib.\n"
        path = folder / f"{site}.inv"
        path.write_bytes(head.encode() + zlib.compress("".join(_lines(pages)).encode()))
        mapping[site] = (SITES[site], str(path))
    return mapping
