"""Which pieces a run wants, and what becomes of that.

The program chooses with ``accelerate=``, and leaves it to the operator with None, the default: then the environment variable
``GAIN_TRIO_ACCELERATE`` is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, TypeAlias

import attrs

from ._pieces import NAMES
from ._switch import switch

Acceleration: TypeAlias = bool | str | Iterable[str] | None
"""True: all pieces, False: none, names: these.  None: what the environment variable ``GAIN_TRIO_ACCELERATE`` says:
0, 1 or names with commas between them; when it is not set, all."""

VARIABLE: Final = "GAIN_TRIO_ACCELERATE"
BY_DEFAULT: Final = True


@attrs.frozen
class PieceInfo:
    """One piece of Trio's core that gain_trio can do in C."""

    name: str
    """``sockets``, ``streams``, ``step``, ``checkpoints``, ``scopes``, ``spawning``, ``tick``, ``timeouts``, ``nurseries``,
    ``locks``, ``events``, ``channels``, ``epoll``, ``generators`` or ``readiness``."""
    active: bool
    """Whether C does it: in this run, or in one to come when no run was asked about."""
    reason: str
    """Why it does, or does not, in a sentence."""


@attrs.frozen
class PieceSetting:
    """Which pieces are wanted, and who says so."""

    names: tuple[str, ...]
    origin: str
    """For messages: ``accelerate=False`` or ``GAIN_TRIO_ACCELERATE=0``."""


def _check(names: Iterable[str], origin: str) -> tuple[str, ...]:
    wanted = tuple(names)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise ValueError(f"{origin} names {unknown[0]!r}; the pieces are {', '.join(NAMES)}; 1 is for all, 0 for none")
    return tuple(name for name in NAMES if name in wanted)


def resolve(accelerate: Acceleration = None) -> PieceSetting:
    """Ask the environment for what the program leaves open.

    Raises:
      ValueError: the program or the environment names a piece that there is not.
    """
    if accelerate is None:
        said = os.environ.get(VARIABLE)
        if not said:  # set to nothing is not set
            return PieceSetting(NAMES if BY_DEFAULT else (), "the default")
        origin = f"{VARIABLE}={said}"
        if said in ("0", "1"):
            return PieceSetting(NAMES if said == "1" else (), origin)
        return PieceSetting(_check((name.strip() for name in said.split(",")), origin), origin)
    origin = f"accelerate={accelerate!r}"
    if isinstance(accelerate, bool):
        return PieceSetting(NAMES if accelerate else (), origin)
    if isinstance(accelerate, str):
        accelerate = (accelerate,)
    return PieceSetting(_check(accelerate, origin), origin)


def describe(setting: PieceSetting | None) -> tuple[PieceInfo, ...]:
    """Piece by piece, what a run with that setting has; with None, what is in this process now."""
    return tuple(_describe(name, setting) for name in NAMES)


def _describe(name: str, setting: PieceSetting | None) -> PieceInfo:
    if setting is None:
        if switch.is_in(name):
            return PieceInfo(name, active=True, reason="a run or an install() of this process uses it")
        return PieceInfo(name, active=False, reason="no run and no install() of this process uses it")
    if name not in setting.names:
        return PieceInfo(name, active=False, reason=f"it is not asked for by {setting.origin}")
    refusal = switch.refusal(name)
    if refusal is not None:
        return PieceInfo(name, active=False, reason=refusal)
    return PieceInfo(name, active=True, reason=f"it is asked for by {setting.origin}, and was tested with this Trio")
