"""Putting pieces in, and taking them out again.

A piece is the process's, not a run's: Trio's functions are there once.  So each use is counted, the first one of a piece
puts its code in, and the last one puts back what was there, the very same code objects.  Runs that go on meanwhile, in this
thread or in others, do not notice: a function that is running keeps the code that it began with, both kinds of code leave
a task in the same state, and what belongs to a run is asked of the run.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import types
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from gain_trio._kernel import trio_core, trio_core_error

from . import _core_seam
from ._fingerprints import PYTHON
from ._guards import OUTCOMES, guards, guards_of_outcomes, rows
from ._pieces import NAMES, PIECES, Piece, stale_build
from ._rewrite import CannotRewrite, forget_sources
from ._tested import TESTED

if TYPE_CHECKING:
    from ._pieces import Part

UNTESTED: Final = "GAIN_TRIO_ACCELERATE_UNTESTED"
"""Set to 1, pieces go in that were not tested with this Trio: for running its test suite on them."""

logger = logging.getLogger("gain_trio")


@attrs.define
class _CodeSwap:
    """A function, and the codes that pieces have for it."""

    function: Any
    codes: dict[str, tuple[types.CodeType, str]]
    """By piece, with what the code calls of the C module, in the order of the pieces: the last one that is in counts."""
    original: types.CodeType
    current: types.CodeType

    def choose(self, is_in: Counter[str]) -> None:
        """Give the function the code that it is to have now."""
        wanted, call = self.original, ""
        for name, of_piece in self.codes.items():
            if is_in[name]:
                wanted, call = of_piece
        if wanted is self.current:
            return
        if self.function.__code__ is not self.current:
            logger.warning(
                "the code of %s was replaced by another library, and stays; gain_trio neither adds nor removes its own",
                self.function.__qualname__,
            )
            trio_core.set_shortcut(self.function, "")
            return
        self.function.__code__ = self.current = wanted
        trio_core.set_shortcut(self.function, call)


def _refusal(piece: Piece) -> str | None:
    """Why a piece cannot go in, or None."""
    known = TESTED.get(piece.name, {}).get(PYTHON, {})
    try:
        found = piece.fingerprint()
    except (AttributeError, TypeError, ValueError) as error:
        return f"Trio {_core_seam.RELEASE} is not what it was tested with: {error}"
    if found not in known and os.environ.get(UNTESTED) != "1":
        return (
            f"Trio {_core_seam.RELEASE} with Python {PYTHON} is not what it was tested with (fingerprint {found}); a newer "
            "gain_trio may know it"
        )
    return None


class Switch:
    """What can be put in, and what is in."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._uses: Counter[str] = Counter()
        self._swaps: list[_CodeSwap] | None = None
        self._refused: dict[str, str] = {}

    def know(self, manager: type[Any]) -> None:
        """A class of I/O managers with a ``proactor``, and with tables of what tasks await, ``readers`` and ``writers``."""
        if trio_core is not None:
            trio_core.set_manager(manager)

    def _load(self) -> list[_CodeSwap]:
        """Look once at what this process's Trio allows.  Says in the log what it does not."""
        if self._swaps is not None:
            return self._swaps
        swaps: dict[Any, _CodeSwap] = {}
        if trio_core is None:
            self._refused = dict.fromkeys(NAMES, trio_core_error or "the compiled module is missing")
        elif (stale := stale_build()) is not None:
            self._refused = dict.fromkeys(NAMES, stale)
        else:
            self._refused = _configure()
            trio_core.set_guards(OUTCOMES, rows(guards_of_outcomes()))
            for piece in PIECES:
                if piece.name not in self._refused:
                    self._load_piece(piece, swaps)
        forget_sources()
        self._swaps = list(swaps.values())
        if trio_core is not None and self._refused:
            reasons = "; ".join(sorted(set(self._refused.values())))
            logger.warning("Trio's own code runs for %s: %s", ", ".join(self._refused), reasons)
        return self._swaps

    def _load_piece(self, piece: Piece, swaps: dict[Any, _CodeSwap]) -> None:
        lacking = [name for name in piece.needs if name in self._refused]
        reason = f"it is nothing without {lacking[0]}" if lacking else _refusal(piece)
        codes: list[tuple[Part, types.CodeType]] = []
        if reason is None:
            try:
                codes = [(part, part.make_code()) for part in piece.present]
                trio_core.set_guards(piece.name, rows(guards(piece)))
            except CannotRewrite as error:
                reason = f"of Trio {_core_seam.RELEASE}, {error}"
            except (
                RuntimeError
            ) as error:  # from Python 3.12 on, where other libraries watch as many dicts as there may be
                reason = f"it would not notice that a program replaces functions of Trio: {error}"
        if reason is not None:
            self._refused[piece.name] = reason
            return
        for part, code in codes:
            function = part.function
            original = function.__code__
            swap = swaps.setdefault(function, _CodeSwap(function, {}, original, original))
            swap.codes[piece.name] = code, part.call

    def put_in(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Use these pieces, as far as they are available.  Returns which, for :meth:`take_out`."""
        with self._lock:
            swaps = self._load()
            names = tuple(name for name in NAMES if name in set(wanted) and name not in self._refused)
            self._uses.update(names)
            self._apply(swaps)
            return names

    def take_out(self, names: tuple[str, ...]) -> None:
        """The end of a use."""
        with self._lock:
            self._uses.subtract(names)
            self._apply(self._swaps or ())

    def _apply(self, swaps: Iterable[_CodeSwap]) -> None:
        for swap in swaps:
            swap.choose(self._uses)
        if swaps:
            trio_core.set_pieces(tuple(name for name in NAMES if self._uses[name] > 0))

    def is_in(self, name: str) -> bool:
        """Whether some use of the piece has not ended."""
        with self._lock:
            return self._uses[name] > 0

    def refusal(self, name: str) -> str | None:
        """Why the piece cannot go in here, or None."""
        with self._lock:
            self._load()
            return self._refused.get(name)


def _configure() -> dict[str, str]:
    """Configure the C module for this process's Trio.  Returns the pieces that it cannot replace, with the reasons."""
    try:
        trio_core.configure("core", _core_seam.CoreSeam())
    except (AttributeError, TypeError, ValueError) as error:
        return dict.fromkeys(NAMES, f"Trio {_core_seam.RELEASE} is not what it was tested with: {error}")
    refused: dict[str, str] = {}
    for name, seam in _core_seam.PART_SEAMS.items():
        try:
            trio_core.configure(name, seam())
        except (AttributeError, TypeError, ValueError) as error:
            refused[name] = f"Trio {_core_seam.RELEASE} is not what it was tested with: {error}"
    with socket.socket(socket.AF_UNIX) as sample:
        try:
            trio_core.check_socket(sample)
        except TypeError as error:
            refused |= dict.fromkeys(("sockets", "streams", "readiness"), str(error))
    if "epoll" not in refused:
        with select.epoll() as poller:
            try:
                trio_core.check_epoll(poller)
            except TypeError as error:
                refused["epoll"] = str(error)
    return refused


switch = Switch()
"""The process's."""
