"""The answers of ``Connection._wait_change()``, and what it watches on request; also in ``_ffi/fastpath/fastpath.h``."""

from __future__ import annotations

from typing import Final

CHANGED: Final = 0
"""The kernel has taken bytes (with WATCH_SENT), or ``_note_change()`` was called."""
ENDED: Final = -1
"""The peer has ended the stream, and all bytes that came before were reported.  It is every answer from then on."""
FULL: Final = -2
"""The queue is at its high mark, and nothing more comes before the program takes some of it.  It is one answer a pause."""

WATCH_SENT: Final = 1
"""Answer also when the kernel has taken bytes."""
WATCH_RESETS: Final = 2
"""Raise the socket's error also while the queue is full, before the program has taken what is in it.

A program that may never take it asks for this: it would not learn that the peer has reset the connection.
"""

MOST_SEEN: Final = 65536
"""The most bytes that one answer reports, so that other tasks have a turn between two answers."""
