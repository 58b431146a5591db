r"""Escaping of text that a peer has chosen, for lines of the log, warnings and messages of errors.

A peer chooses more than the bytes that it sends: the path of its Unix socket, the names in its TLS handshake, the
addresses in a PROXY header.  A newline in one of them would let the peer write a line of its own into the log, and an
escape sequence would reach the terminal of the person who reads it.  So every value that is not a number goes through
:func:`shown` on its way into a line, and the text of an exception through :func:`shown_traceback`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Final

MOST: Final = 300
"""The most characters of a value that :func:`shown` returns."""
MOST_OF_AN_ERROR: Final = 4000
"""The most characters of an exception's message in a traceback."""
MOST_OF_A_TEXT: Final = 32768
"""The most characters of a text of several lines."""


def shown(value: object, most: int = MOST) -> str:
    r"""The text of a value on one line, in printable characters, of a bounded length.

    A control character, a line separator, a surrogate and a character that changes the direction of text become escapes
    as Python writes them, ``\n`` or ``\x1b``.  Everything else stays as it is.
    """
    if not isinstance(value, str):
        try:
            value = str(value)
        except Exception as error:  # noqa: BLE001 - whatever a program's __str__ raises: a line of the log is no place to fail
            return f"<{type(value).__qualname__}, whose str() raised {type(error).__qualname__}>"
    cut = value[:most]
    text = cut if cut.isprintable() else "".join(map(_escaped, cut))
    return text if len(cut) == len(value) else f"{text}... ({len(value)} characters)"


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def shown_lines(text: str, most: int = MOST_OF_A_TEXT) -> str:
    """Escape, bound and indent a text of several lines, such as a traceback that another process has sent."""
    lines = [f"    {shown(line, most)}" for line in text[:most].rstrip("\n").split("\n")]
    if len(text) > most:
        lines.append(f"    ... ({len(text)} characters)")
    return "\n".join(lines)


def shown_traceback(error: BaseException) -> str:
    """The traceback of an exception as Python prints it, with its messages escaped, bounded and indented.

    A message may have several lines.  Those after the first are indented, so that a reader mistakes none of them for a line
    of the log.
    """
    return "".join(_chunks(error)).rstrip("\n")


def _chunks(error: BaseException) -> Iterator[str]:
    has_message = False
    for chunk in traceback.TracebackException(type(error), error, error.__traceback__).format():
        begins_another = chunk.startswith("\n") and chunk != "\n"  # "During handling of the above exception, ..."
        if begins_another or chunk.startswith("Traceback (most recent call last)"):
            has_message = False
            yield chunk
            continue
        lines = chunk.removesuffix("\n")[: MOST_OF_AN_ERROR + 1].split("\n")
        is_first_of_message = not has_message and not chunk[:1].isspace()  # what comes after it are notes
        has_message |= is_first_of_message
        indented = [
            line if line.startswith("  ") or (is_first_of_message and not number) else f"    {line}"
            for number, line in enumerate(lines)
        ]
        text = "\n".join(shown(line, MOST_OF_AN_ERROR) for line in indented)
        yield f"{text}{'... [cut]' if len(chunk) > MOST_OF_AN_ERROR + 1 else ''}\n"
