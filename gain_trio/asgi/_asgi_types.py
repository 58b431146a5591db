"""The types of ASGI 3, and the error of a client that is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
"""What an app is called with: the request, or the connection."""
Message: TypeAlias = MutableMapping[str, Any]
"""An event, with its name in ``"type"``."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[object]]
"""An ASGI 3 application: an async function of a scope, ``receive`` and ``send``.  Frameworks annotate the three
differently."""


class ClientDisconnected(OSError):
    """The client is gone, so ``send`` cannot send anything to it any more (ASGI 2.4)."""
