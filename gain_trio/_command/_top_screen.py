"""The live screen of ``gain-trio top``, drawn by rich.

The loop waits for the server's answer, for a key and for a signal at once, so a server that does not answer neither
freezes the screen nor keeps ``q`` from ending it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Final, final

import rich.console
import rich.live
import rich.table
import rich.text

from ._top_client import ControlClient
from ._top_view import GAP, Mood, Snapshot, Table, View, view_of

_STYLES: Final[dict[Mood, str]] = {
    "usual": "",
    "mark": "cyan",
    "warn": "yellow",
    "alarm": "bold red",
    "aside": "dim",
}
_QUIET: Final = 2.0
"""Seconds without an answer after which the screen says so."""
_FOOT: Final = "q ends it"


def run_screen(client: ControlClient, interval: float) -> None:
    """Show the server until q or a signal ends that.

    Raises:
      Unwatchable: the server cannot be looked at, or not any more.
      UnknownAnswer: it has sent something else than a snapshot.
    """
    console = rich.console.Console(highlight=False, markup=False, emoji=False)
    with _signals() as signals, _keys() as keys:
        screen = _Screen(console, client)
        with rich.live.Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
            while True:
                live.update(screen.drawn(), refresh=True)
                if not screen.step(interval, signals, keys):
                    return


@final
class _Screen:
    """What is shown, and when the server is asked again."""

    def __init__(self, console: rich.console.Console, client: ControlClient) -> None:
        self._console = console
        self._client = client
        self._before: Snapshot | None = None
        self._now: Snapshot | None = None
        self._is_asked = False
        self._asked_at = -float("inf")

    def step(self, interval: float, signals: socket.socket, keys: int | None) -> bool:
        """Wait until the screen is to be drawn again; False if it is to end."""
        due = self._asked_at + interval
        if not self._is_asked and time.monotonic() >= due:
            self._client.request()
            self._is_asked, self._asked_at = True, time.monotonic()
            due = self._asked_at + interval
        sources: list[ControlClient | socket.socket | int] = [signals, *([] if keys is None else [keys])]
        if self._is_asked:
            sources.append(self._client)
            due = max(due, time.monotonic() + 0.5)  # to say how long it has been
        ready, _, _ = select.select(sources, [], [], max(due - time.monotonic(), 0.0))
        if signals in ready and not set(signals.recv(1000)) <= {signal.SIGWINCH}:
            return False
        if keys in ready and (_pressed(keys) & {"q", "Q", "\x04", ""}):
            return False
        if self._client in ready:
            answer = self._client.receive()
            if answer is not None:
                self._before, self._now, self._is_asked = self._now, answer, False
        return True

    def drawn(self) -> rich.console.Group:
        """The screen as it is to look now."""
        quiet = time.monotonic() - self._asked_at if self._is_asked else 0.0
        foot = f"no answer for {quiet:.0f} seconds; {_FOOT}" if quiet > _QUIET else _FOOT
        if self._now is None:
            return rich.console.Group(_line("", "the server is asked", "aside"), _line("", foot, "aside"))
        return as_rich(view_of(self._now, self._before), self._console.width, self._console.height, foot)


def as_rich(view: View, width: int, height: int, foot: str) -> rich.console.Group:
    """A view that fits on a screen of this size."""
    room = max(height - len(view.lines) - 7, 4)  # blank lines, titles of tables and of their columns, the last line
    of_slow = sum(1 + bool(row.below) for row in view.slow.rows)
    processes = view.processes.fit(width).cut(max(room - of_slow, room // 2))
    used = len(processes.rows)
    return rich.console.Group(
        *(_line(name, text, view.mood if not number else "usual") for number, (name, text) in enumerate(view.lines)),
        rich.text.Text(""),
        _table(processes),
        rich.text.Text(""),
        _table(view.slow.fit(width).cut(max(room - used, 2))),
        _line("", foot, "aside"),
    )


def _line(name: str, text: str, mood: Mood) -> rich.text.Text:
    line = rich.text.Text(f"{name:<13}" if name else "", style="bold", no_wrap=True, overflow="ellipsis")
    return line.append(text, style=_STYLES[mood] or "not bold")


def _table(table: Table) -> rich.console.Group:
    title = rich.text.Text(table.title, style="bold" if table.rows else "dim")
    if not table.rows:
        return rich.console.Group(title)
    grid = rich.table.Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in table.columns:
        justify: rich.console.JustifyMethod = "right" if column.is_number else "left"
        grid.add_column(rich.text.Text(column.title), justify=justify, no_wrap=True, overflow="ellipsis")
    parts: list[rich.console.RenderableType] = [title]
    belows = [row.below for row in table.rows]
    for row in table.rows:
        cells = [rich.text.Text(cell, style=_STYLES[row.mood]) for cell in row.cells]
        grid.add_row(*cells)
    parts.append(_Interleaved(grid, belows) if any(belows) else grid)
    return rich.console.Group(*parts)


@final
class _Interleaved:
    """A table with a line below each row, which may be longer than the table is wide."""

    def __init__(self, grid: rich.table.Table, belows: list[str]) -> None:
        self._grid = grid
        self._belows = belows

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        lines = console.render_lines(self._grid, options, pad=False)
        for number, line in enumerate(lines):
            yield from line
            yield rich.console.NewLine()
            if 0 < number <= len(self._belows) and self._belows[number - 1]:
                yield rich.text.Text(f"    {self._belows[number - 1]}", style="dim", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that has a byte for each signal that ends the screen, and for each change of the terminal's size."""
    own, other = socket.socketpair()
    with own, other:
        own.setblocking(False)
        other.setblocking(False)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
        before = {number: signal.signal(number, _do_nothing) for number in wanted}
        descriptor = signal.set_wakeup_fd(other.fileno(), warn_on_full_buffer=False)
        try:
            yield own
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, action in before.items():
                signal.signal(number, action)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler of Python's, so that the number is written to the socket."""


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """The descriptor by which single keys come, without an echo; None without a terminal."""
    descriptor = None if sys.stdin is None or not sys.stdin.isatty() else sys.stdin.fileno()
    if descriptor is None:
        yield None
        return
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(keys: int | None) -> set[str]:
    """The keys that were pressed; an empty one at the end of the input."""
    assert keys is not None
    return set(os.read(keys, 1000).decode("latin-1")) or {""}
