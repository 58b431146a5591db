"""Runs the Python blocks of a page of the documentation, in their order and in one namespace, inside of a Trio run."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import callbacks
from support.servers import echo_until_broken

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"tcp://127\.0\.0\.1:([1-9]\d*)")


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """What a page does to logging is over with the page."""
    package = logging.getLogger("gain_trio")
    handlers, level, filters = list(logging.root.handlers), logging.root.level, list(package.filters)
    try:
        yield
    finally:
        logging.root.handlers[:], package.filters[:] = handlers, filters
        logging.root.setLevel(level)


class Stage:
    """Where the blocks of a page run.

    ``gain_trio.run(main)`` starts ``main`` as a task, and so does ``listen_and_serve``.  It goes on until the page is over,
    or until a later block starts a program that is no client.  A port of a page is a Unix socket here, of the newest server
    that the page has begun there; a client of a port without one finds an echo.

    Args:
      page: the page.
      folder: for sockets.
      names: what the page's pieces of programs take for granted.
    """

    def __init__(self, page: Path, folder: Path, names: dict[str, Any]) -> None:
        self._page = page
        self._folder = folder
        self._names = {
            "trio": trio,
            "gain_trio": gain_trio,
            "functools": functools,
            "contextlib": contextlib,
            "logging": logging,
            **names,
            "__name__": "documented",
        }
        self._paths: dict[str, str] = {}
        self._started: list[Callable[[], Any]] = []
        self._scopes: list[trio.CancelScope] = []

    async def run_page(self) -> list[Callable[..., Any]]:
        """Run all blocks; what one raises, or a program that it starts, is raised here.  Returns the tests in them."""
        with _logging_kept(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(gain_trio, "run", self._run)
            patch.setattr(
                callbacks, "listen_and_serve", lambda address, handler: self._run(callbacks.serve, handler, address)
            )
            async with trio.open_nursery() as nursery:
                self._names["nursery"] = nursery
                for number, block in enumerate(blocks(self._page)):
                    nursery.start_soon(self._run_block, await self._staged(block, number, nursery), number)
                    await wait_all_tasks_blocked()
                    if self._started and ("serve" in block or "connect(" not in block):
                        for scope in self._scopes:  # the reader has stopped the last server, and starts the next
                            scope.cancel()
                        await wait_all_tasks_blocked()
                    for program in self._started:
                        nursery.start_soon(self._run_program, program)
                    self._started.clear()
                    await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        return [value for name, value in self._names.items() if name.startswith("test_")]

    async def _staged(self, block: str, number: int, nursery: trio.Nursery) -> str:
        for port in set(_PORT.findall(block)):
            address = f"unix://{self._folder}/{port}.{number}"
            if "serve" in block:
                self._paths[port] = address
            elif port not in self._paths:
                self._paths[port] = address
                await nursery.start(gain_trio.serve, echo_until_broken, address)
        block = _PORT.sub(lambda match: self._paths[match[1]], block)
        return re.sub(r"udp://127\.0\.0\.1:\d+", "udp://127.0.0.1:0", block)

    async def _run_block(self, source: str, number: int) -> None:
        code = compile(source, f"{self._page.name}, block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self._names)
        if inspect.iscoroutine(result):
            await result

    async def _run_program(self, program: Callable[[], Any]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            await program()

    def _listen_and_serve(self, address: str, handler: callbacks.EventHandler) -> None:
        self._run(callbacks.serve, handler, address)

    def _run(self, function: Callable[..., Any], *args: Any) -> None:
        self._started.append(functools.partial(function, *args))


def run_documented_test(test: Callable[..., Any]) -> None:
    """Call a test of a page as pytest-trio would, in a run of its own."""
    wanted = inspect.signature(test).parameters

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            given = {"nursery": nursery, "autojump_clock": None}
            await test(**{name: given[name] for name in wanted})

    clock = MockClock(autojump_threshold=0) if "autojump_clock" in wanted else None
    gain_trio.run(main, clock=clock)
