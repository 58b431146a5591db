"""How an option of a server is given on the command line; it stands beside the field that it sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, final

import attrs

Group: TypeAlias = Literal[
    "who serves", "worker processes", "limits", "sockets", "proxies", "TLS", "log and statistics", "web apps"
]


@final
@attrs.frozen(kw_only=True)
class Flag:
    """One argument of ``gain-trio serve`` or ``gain-trio asgi``, with the field's name in dashes and its default."""

    group: Group
    """The group of the help that lists it."""
    help: str
    """What it does; the help adds the default."""
    name: str | None = None
    """The argument's name where it is not the field's."""
    bare: str | None = None
    """The value of the argument without one; None where it needs one."""
    usual: str | None = None
    """The default in words, where the value says too little."""
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    """Makes the field's value of the argument; None for a flag without an argument, which sets the field to True."""
    words: Mapping[str, Any] = attrs.field(factory=dict)
    """Words that are allowed besides, and what they mean."""
    choices: tuple[str, ...] | None = None
    """The only values."""

    def beside(self) -> dict[str, Flag]:
        """The metadata of the field."""
        return {"flag": self}


def flags_of(config: type[attrs.AttrsInstance]) -> dict[str, Flag]:
    """The flags of a configuration's fields, by the fields' names."""
    return {field.name: field.metadata["flag"] for field in attrs.fields(config) if "flag" in field.metadata}
