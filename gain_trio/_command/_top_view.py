"""What ``gain-trio top`` shows: from two snapshots of a server to lines and tables of text.

Pure functions: no clock, no terminal, no socket.  Everything that a server has sent goes through :func:`shown` here, because
peers have chosen some of it, and it is on its way to a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, Literal, TypeAlias, final

import attrs

from gain_trio._transports import shown

NOTHING: Final = "-"
"""What stands for a figure that is not known, or not there."""
LONGEST_CELL: Final = 60
GAP: Final = 2
"""Characters between two columns."""

Snapshot: TypeAlias = Mapping[str, Any]
Mood: TypeAlias = Literal["usual", "mark", "warn", "alarm", "aside"]
"""How a row is to look."""

_OF_STATE: Final[Mapping[str, Mood]] = {"late": "alarm", "draining": "warn", "starting": "mark"}
_LONG: Final = 10.0
"""Seconds after which a slow handler is alarming."""


@final
@attrs.frozen
class Column:
    """A column of a table."""

    title: str
    is_number: bool = True
    rank: int = 0
    """Where there is too little room, the columns of the highest rank are left out first; those of rank 0 stay."""


@final
@attrs.frozen
class Row:
    """A row of a table: a cell for each column, or a line across all of them."""

    cells: tuple[str, ...]
    mood: Mood = "usual"
    below: str = ""
    """A line below the row, of less importance."""


@final
@attrs.frozen
class Table:
    """A table with its title."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def widths(self) -> list[int]:
        """The characters that each column needs."""
        titles = [column.title for column in self.columns]
        return [max(map(len, cells)) for cells in zip(titles, *(row.cells for row in self.rows), strict=True)]

    def fit(self, width: int) -> Table:
        """The table without the columns that do not fit on a line."""
        table = self
        while table.columns and sum(table.widths()) + GAP * (len(table.columns) - 1) > width:
            rank = max(column.rank for column in table.columns)
            if not rank:
                break
            kept = [number for number, column in enumerate(table.columns) if column.rank != rank]
            table = attrs.evolve(
                table,
                columns=tuple(table.columns[number] for number in kept),
                rows=tuple(attrs.evolve(row, cells=tuple(row.cells[number] for number in kept)) for row in table.rows),
            )
        return table

    def cut(self, most: int) -> Table:
        """The table with so few rows that they and their lines are at most ``most`` lines."""
        rows: list[Row] = []
        for number, row in enumerate(self.rows):
            size = 1 + bool(row.below)
            is_last = number == len(self.rows) - 1
            if size > most - (not is_last):
                left = len(self.rows) - number
                rows.append(Row((f"... {left} more", *("" for _ in self.columns[1:])), "aside"))
                break
            most -= size
            rows.append(row)
        return attrs.evolve(self, rows=tuple(rows))


@final
@attrs.frozen
class View:
    """A screen: lines about the whole server, and tables."""

    lines: tuple[tuple[str, str], ...]
    """What each is about, and what it says."""
    mood: Mood
    """The mood of the first of them, which says how the server is."""
    processes: Table
    slow: Table


class UnknownAnswer(Exception):
    """An answer that has another form than the protocol's."""


def view_of(now: Snapshot, before: Snapshot | None = None) -> View:
    """What a server looks like.

    Args:
      now: a snapshot, as the control socket has sent it.
      before: an earlier one of the same server, for figures by the second; None, and there are none.

    Raises:
      UnknownAnswer: it is no snapshot.
    """
    try:
        return _view_of(now, before)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UnknownAnswer(f"the answer is not of this protocol ({shown(repr(error))})") from error


def _view_of(now: Snapshot, before: Snapshot | None) -> View:
    seconds = None if before is None else max(now["time"] - before["time"], 0.001)
    rates = _Rates(now, before, seconds)
    lines = [("server", _server(now)), *_totals(now, rates)]
    processes = now["processes"]
    old = {} if before is None else {process["pid"]: process for process in before["processes"]}
    has_requests = now["requests"] is not None
    rows = tuple(
        _process(process, _Rates(process, old.get(process["pid"]), seconds), has_requests=has_requests)
        for process in processes
    )
    slow = sorted(
        ((handler, process) for process in processes for handler in process["slow_handlers"]),
        key=lambda pair: -float(pair[0]["seconds"]),
    )
    return View(
        lines=tuple(lines),
        mood=_OF_STATE.get(now["state"], "usual"),
        processes=Table("processes", _columns(now), rows),
        slow=Table(
            "slow handlers" if slow else "no slow handlers",
            _SLOW_COLUMNS if slow else (),
            tuple(_slow(handler, process) for handler, process in slow),
        ),
    )


# --- the server ---


def _server(now: Snapshot) -> str:
    where = ", ".join(shown(address, LONGEST_CELL) for address in now["addresses"][:4]) or "no address"
    more = len(now["addresses"]) - 4
    late = sum(process["state"] == "late" for process in now["processes"])
    parts = [f"{shown(now['state'], 20)} on {where}{f' and {more} more' if more > 0 else ''}"]
    workers = sum(process["worker"] is not None for process in now["processes"])
    if workers:
        parts.append(f"{workers} worker process{'es' * (workers != 1)}")
    if late:
        parts.append(f"{late} late")
    if now["restarts"]:
        parts.append(f"{_count(now['restarts'])} died and were replaced")
    return ", ".join(parts)


def _totals(now: Snapshot, rates: _Rates) -> Iterable[tuple[str, str]]:
    connections, requests, datagrams = now["connections"], now["requests"], now["datagrams"]
    if connections is not None:
        bad = {cause: count for cause, count in connections["closed"].items() if count and cause != "finished"}
        accepted = f"{rates.number('connections', 'accepted')}/s accepted, {_count(connections['accepted'])} in all"
        yield "connections", f"{_count(connections['active'])} open, {accepted}"
        yield (
            "bytes",
            f"{rates.size('connections', 'bytes_received')}/s in, {rates.size('connections', 'bytes_sent')}/s out",
        )
        ended = [f"{_count(connections['closed']['finished'])} finished"]
        ended += [f"{_count(count)} {shown(cause, 20).replace('_', ' ')}" for cause, count in bad.items()]
        if connections["cut_off"]:
            ended.append(f"{_count(connections['cut_off'])} of them cut off by a drain")
        yield "ended", ", ".join(ended)
    if requests is not None:
        statuses = [f"{_count(count)} {shown(status, 5)}" for status, count in requests["by_status"].items() if count]
        yield (
            "requests",
            ", ".join(
                [
                    f"{rates.number('requests', 'completed')}/s",
                    f"{_count(requests['in_progress'])} in progress",
                    f"{rates.mean('requests', 'seconds', 'completed')} each",
                    *statuses,
                ]
            ),
        )
    if datagrams is not None:
        inner = datagrams["datagrams"]
        parts = [
            f"{rates.number('datagrams', 'handled')}/s handled",
            f"{_count(datagrams['active'])} in progress",
            f"{_count(inner['queued'])} queued",
            f"{_count(inner['dropped'])} dropped",
            f"{_count(datagrams['handler_errors'])} errors",
        ]
        yield "datagrams", ", ".join(parts)


# --- its processes ---


def _columns(now: Snapshot) -> tuple[Column, ...]:
    of_connections = now["connections"] is not None
    return (
        Column("process", is_number=False),
        Column("state", is_number=False),
        Column("pid", rank=2),
        Column("cpu"),
        Column("memory"),
        Column("open" if of_connections else "busy"),
        Column("accepted/s" if of_connections else "handled/s"),
        Column("in/s", rank=1),
        Column("out/s", rank=1),
        *((Column("requests/s"), Column("busy")) if now["requests"] is not None else ()),
        Column("ring ops/s", rank=3),
        Column("enters/s", rank=5),
        Column("in flight", rank=4),
    )


def _process(process: Snapshot, rates: _Rates, *, has_requests: bool) -> Row:
    connections, datagrams, requests = process["connections"], process["datagrams"], process["requests"]
    own: tuple[str, ...] = (NOTHING,) * 4
    if connections is not None:
        own = (
            _count(connections["active"]),
            rates.number("connections", "accepted"),
            rates.size("connections", "bytes_received"),
            rates.size("connections", "bytes_sent"),
        )
    elif datagrams is not None:
        own = (
            _count(datagrams["active"]),
            rates.number("datagrams", "handled"),
            rates.size("datagrams", "datagrams", "received_bytes"),
            rates.size("datagrams", "datagrams", "sent_bytes"),
        )
    of_requests: tuple[str, ...] = ()
    if requests is not None:
        of_requests = (rates.number("requests", "completed"), _count(requests["in_progress"]))
    elif has_requests:
        of_requests = (NOTHING,) * 2
    memory = process["memory_bytes"]
    return Row(
        (
            _process_name(process),
            shown(process["state"], 20),
            NOTHING if process["pid"] is None else str(int(process["pid"])),
            rates.percent("cpu_seconds"),
            NOTHING if memory is None else _size(memory),
            *own,
            *of_requests,
            *_ring(process, rates),
        ),
        _OF_STATE.get(process["state"], "usual"),
    )


def _process_name(process: Snapshot) -> str:
    return "server" if process["worker"] is None else f"worker {int(process['worker'])}"


def _ring(process: Snapshot, rates: _Rates) -> tuple[str, str, str]:
    if not process["rings"]:
        return (NOTHING,) * 3
    return (
        rates.number("rings", 0, "submissions"),
        rates.number("rings", 0, "enter_calls"),
        _count(process["rings"][0]["operations_in_flight"]),
    )


# --- slow handlers ---

_SLOW_COLUMNS: Final = (
    Column("for"),
    Column("peer", is_number=False),
    Column("process", is_number=False, rank=1),
    Column("serves", is_number=False, rank=2),
    Column("waits at", is_number=False),
)


def _slow(handler: Snapshot, process: Snapshot) -> Row:
    seconds = float(handler["seconds"])
    serves = shown(handler["request"] or process["handler"] or "", LONGEST_CELL)
    at = handler["at"]
    place = NOTHING if at is None else _place(at)
    if handler["waits_for"] == "peer":
        unsent = int(handler["unsent"])
        place = f"{place}, for its peer to {f'read {_size(unsent)}' if unsent else 'send'}"
    below = " > ".join(map(_place, handler["frames"]))
    return Row(
        (
            _duration(seconds),
            f"{shown(handler['peer'], LONGEST_CELL)} #{int(handler['connection'])}",
            _process_name(process),
            serves,
            place,
        ),
        "alarm" if seconds >= _LONG else "warn",
        below,
    )


def _place(frame: str) -> str:
    """A frame with the last two parts of its file's path."""
    where, _space, function = shown(frame, 500).partition(" ")
    path, _colon, line = where.rpartition(":")
    return f"{'/'.join(PurePath(path).parts[-2:])}:{line} {function}"


# --- figures ---


@final
class _Rates:
    """Figures by the second, of one snapshot or a part of it, since the one before."""

    def __init__(self, now: Snapshot, before: Snapshot | None, seconds: float | None) -> None:
        self._now = now
        self._before = before
        self._seconds = seconds

    def number(self, *path: str | int) -> str:
        rate = self._rate(path)
        return NOTHING if rate is None else _figure(rate)

    def size(self, *path: str | int) -> str:
        rate = self._rate(path)
        return NOTHING if rate is None else _size(rate)

    def percent(self, *path: str | int) -> str:
        rate = self._rate(path)
        return NOTHING if rate is None else f"{100 * rate:.1f}%"

    def mean(self, group: str, total: str, count: str) -> str:
        """The mean of what has come since the snapshot before."""
        totals, counts = self._rate((group, total)), self._rate((group, count))
        return NOTHING if totals is None or not counts else _duration(totals / counts)

    def _rate(self, path: Sequence[str | int]) -> float | None:
        now, before = _figure_at(self._now, path), _figure_at(self._before, path)
        if now is None or before is None or self._seconds is None:
            return None
        return max(now - before, 0.0) / self._seconds


def _figure_at(snapshot: Any, path: Sequence[str | int]) -> float | None:
    for part in path:
        if snapshot is None or (isinstance(part, int) and len(snapshot) <= part):
            return None
        snapshot = snapshot[part]
    return None if snapshot is None else float(snapshot)


def _count(number: int) -> str:
    return f"{int(number):,}"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}"


def _size(number: float) -> str:
    """Bytes, with three digits or four."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- as plain text ---


def as_text(view: View) -> str:
    """All of it, for a pipe or a file."""
    width = max(len(name) for name, _text in view.lines)
    lines = [f"{name:<{width}}  {text}" for name, text in view.lines]
    return "\n".join([*lines, "", *_table_lines(view.processes), "", *_table_lines(view.slow)]) + "\n"


def _table_lines(table: Table) -> list[str]:
    if not table.rows:
        return [table.title]
    widths = table.widths()
    lines = [table.title, _aligned(table.columns, [column.title for column in table.columns], widths)]
    for row in table.rows:
        lines.append(_aligned(table.columns, row.cells, widths))
        if row.below:
            lines.append(f"    {row.below}")
    return lines


def _aligned(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = (
        f"{cell:>{width}}" if column.is_number else f"{cell:<{width}}"
        for column, cell, width in zip(columns, cells, widths, strict=True)
    )
    return "  ".join(parts).rstrip()
