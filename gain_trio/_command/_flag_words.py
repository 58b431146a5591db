"""Messages about options, in the words of the command line.

A check of an option names the field, as a program writes it; an operator writes a flag.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from gain_trio import ServerConfig
from gain_trio._server import flags_of
from gain_trio.asgi import AsgiConfig

_NO_VALUES: Final = re.compile(r", or (?:None|math\.inf)(?=,|$)")


@functools.cache
def _names() -> dict[str, str]:
    """Fields, and their flags."""
    flags = flags_of(AsgiConfig) | flags_of(ServerConfig)
    return {name: f"--{(flag.name or name).replace('_', '-')}" for name, flag in flags.items()}


def in_flags(message: str) -> str:
    """``message`` with flags in place of fields: where one or several begin it, have a value, or cannot be words."""
    names = _names()
    either = "|".join(sorted(names, key=len, reverse=True))
    message = _NO_VALUES.sub("", message)
    message = re.sub(
        rf"(?<![\w-])({either})=(?:'([^']*)'|True|(?=[,;. ]|$))",
        lambda found: f"{names[found[1]]} {found[2] or ''}".rstrip(),
        message,
    )
    with_lines = "|".join(name for name in names if "_" in name)
    message = re.sub(rf"(?<![\w-])({with_lines})\b", lambda found: names[found[1]], message)
    one = rf"(?:--[\w-]+|(?:{either})\b(?!-))"
    return re.sub(
        rf"^{one}(?:(?:, | and ){one})*",
        lambda found: re.sub(r"(?<![\w-])\w+", lambda name: names.get(name[0], name[0]), found[0]),
        message,
    )
