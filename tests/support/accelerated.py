"""Runs with Trio's own code and with gain_trio's pieces in it, for tests that make the same assertions about both."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

import gain_trio
from gain_trio._acceleration import NAMES, PIECES

T = TypeVar("T")


def functions() -> dict[str, Any]:
    """Every function of Trio that some piece replaces the code of, by its path."""
    return {part.path: part.function for piece in PIECES for part in piece.parts}


def codes() -> dict[str, types.CodeType]:
    """The codes that they have now."""
    return {path: function.__code__ for path, function in functions().items()}


def is_in(function: Any) -> bool:
    """Whether the C module is called from the function's code."""
    return any(
        getattr(type(value), "__module__", "") == "gain_trio._trio_core" for value in function.__code__.co_consts
    ) or any(getattr(value, "__module__", "") == "gain_trio._trio_core" for value in function.__code__.co_consts)


def run(pieces: bool | tuple[str, ...], async_fn: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """On the session's backend, with these pieces and no others."""
    return gain_trio.run(async_fn, *args, accelerate=pieces, **options)


async def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two Trio streams, connected."""
    one, other = trio.socket.socketpair()
    return trio.SocketStream(one), trio.SocketStream(other)


ALL = NAMES
