"""The first steps of a worker process: ``python .../_boot.py CONTROL``, with the control channel's descriptor.

This file is run by its path and imports nothing of the package at first, because the package may be where only the parent's
``sys.path`` leads.  The parent's first message says where that is.  multiprocessing's :func:`prepare` does the rest: the
path, the arguments, the working directory and, when the handler is of the program that was started, that program as
``__mp_main__``, so that the block under ``if __name__ == "__main__"`` is not run again.

The first message has two parts: what :func:`prepare` needs, and the pickled function that is the worker.  This file names
no other module of the package, so every one of them can import it.

The signals that a terminal sends to all its processes do not end a worker: the parent decides.  The worker does not ignore
these signals, because programs that a handler starts would ignore them, too.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from multiprocessing import process, spawn
from typing import Any

FRAME = struct.Struct("!Q")
"""In front of every message of the control channel: its length in bytes."""


def _receive_exactly(control: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = control.recv(min(count - len(received), 1 << 20))
        if not data:
            control.close()
            sys.exit(1)  # the server is gone, or does not want this process any more
        received += data
    return bytes(received)


def described(error: BaseException) -> tuple[str, str]:
    """An exception in a line, and with its traceback; without the groups that nurseries have put it alone into."""
    inner: tuple[BaseException, ...]
    while len(inner := getattr(error, "exceptions", ())) == 1:
        (error,) = inner
    reason = "".join(traceback.format_exception_only(type(error), error)).strip()
    return reason, "".join(traceback.format_exception(type(error), error, error.__traceback__))


def report_failure(control: socket.socket, error: BaseException) -> None:
    """Send the parent why this process ends, and close the channel; the parent may be gone itself."""
    reason, text = described(error)
    content = pickle.dumps(("Failed", (reason, text)))
    control.setblocking(True)
    try:
        with control:
            control.sendall(FRAME.pack(len(content)) + content, getattr(socket, "MSG_NOSIGNAL", 0))
    except OSError as lost:
        sys.stderr.write(f"{text}gain_trio: the message to the server failed: {lost}\n")


def _leave_to_the_parent(_number: int, _frame: object) -> None:
    """What SIGINT and SIGHUP do in a worker."""


def boot(descriptor: int) -> None:
    """Become a worker."""
    signal.signal(signal.SIGINT, _leave_to_the_parent)
    signal.signal(signal.SIGHUP, _leave_to_the_parent)
    os.set_inheritable(descriptor, False)
    control = socket.socket(fileno=descriptor)
    (length,) = FRAME.unpack(_receive_exactly(control, FRAME.size))
    preparation: dict[str, Any]
    preparation, pickled = pickle.loads(_receive_exactly(control, length))  # noqa: S301 - from the process that made this one
    try:
        # multiprocessing's own mark: a program that starts processes while it is imported gets an error about __main__.
        process.current_process()._inheriting = True  # type: ignore[attr-defined]
        try:
            spawn.prepare(preparation)
        finally:
            del process.current_process()._inheriting  # type: ignore[attr-defined]
        # Its module is imported here, and not before: only now Python finds the package.
        work: Callable[[socket.socket], None] = pickle.loads(pickled)  # noqa: S301 - the same
    except Exception as error:  # noqa: BLE001 - the program can raise anything when it is imported
        report_failure(control, error)
        sys.exit(1)
    work(control)


if __name__ == "__main__":
    boot(int(sys.argv[1]))
