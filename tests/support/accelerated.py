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
    """Every function of Trio whose code a piece replaces, by its path."""
    return {part.path: part.function for piece in PIECES for part in piece.present}


def codes() -> dict[str, types.CodeType]:
    """The present code objects of these functions."""
    return {path: function.__code__ for path, function in functions().items()}


def is_in(function: Any) -> bool:
    """Whether the function's code calls the C module."""
    return any(
        getattr(type(value), "__module__", "") == "gain_trio._trio_core" for value in function.__code__.co_consts
    ) or any(getattr(value, "__module__", "") == "gain_trio._trio_core" for value in function.__code__.co_consts)


def run(pieces: bool | tuple[str, ...], async_fn: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """Run a function on the session's backend, with these pieces and no others."""
    return gain_trio.run(async_fn, *args, accelerate=pieces, **options)


async def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Open two connected Trio streams."""
    one, other = trio.socket.socketpair()
    return trio.SocketStream(one), trio.SocketStream(other)


ALL = NAMES
