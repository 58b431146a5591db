"""What a server of worker processes ends with when they cannot do their work."""

from __future__ import annotations

from typing import final

from ._control_messages import Failed


@final
class WorkerFailed(RuntimeError):
    """Worker processes cannot do their work, or have not ended well.

    A process could not begin to serve, or has ended by an exception that is to end the server, or it did not end in time
    with its server, and had to be killed.

    The message has the reason, and the traceback of the worker process, if there is one.

    Attributes:
      reason (str): the reason, in a line.
      worker_traceback (str): of the exception in the worker process; empty if it died otherwise.
    """

    def __init__(self, summary: str, reason: str, worker_traceback: str = "") -> None:
        super().__init__(summary, reason, worker_traceback)
        self._summary = summary
        self.reason = reason
        self.worker_traceback = worker_traceback

    def __str__(self) -> str:
        text = f"{self._summary}: {self.reason}"
        return f"{text}\n\nIn the worker process:\n{self.worker_traceback}" if self.worker_traceback else text


def failure_of(summary: str, failed: Failed | None, end: str) -> WorkerFailed:
    """The error for a process that said ``failed``, or nothing, before its ``end``."""
    if failed is None:
        return WorkerFailed(summary, f"the process {end}")
    return WorkerFailed(summary, failed.reason, failed.traceback)
