"""Worker processes: a server whose connections are served by several processes, each with its own Trio run and ring.

::

    server's process                                          worker process × N
    ─────────────────                                         ──────────────────
    serve(..., processes=N)
    └─ server nursery
       ├─ acceptors        (reactor: accept here) ──────────> descriptors, by SCM_RIGHTS     _hand_off
       ├─ stand-ins        (sharding: for one that is gone)
       └─ supervisors × N                                     _boot, then _worker
          └─ worker process   start, attend, see it gone <──> control channel                _control, _control_messages
                                                              └─ serve_listeners(): the server nursery of one process

- ``_worker_launcher``: what a process needs, checked before one is started; ``_boot`` is its first step, ``_worker`` the
  rest, with ``_watchdog`` for when the server is gone.
- ``_worker_process`` is one process as the server sees it, ``_supervisor`` keeps one running, ``_worker_pool`` has all of
  them.
- ``_placement``: CPUs and priorities.  ``_log_forwarding``: a worker's log records are the server's.

The server's process owns the listening sockets, whatever becomes of the workers, so nothing that waits in a backlog is lost
with one of them.
"""

from typing import TYPE_CHECKING

from ._placement import HIGH_PRIORITY, take_process_priority
from ._worker_failed import WorkerFailed

if TYPE_CHECKING:
    from ._process_serving import serve_processes

__all__ = [
    "HIGH_PRIORITY",
    "WorkerFailed",
    "serve_processes",
    "take_process_priority",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what starts processes when a server has some: not every system has multiprocessing."""
        if name == "serve_processes":
            from ._process_serving import serve_processes  # noqa: PLC0415 - see above

            return serve_processes
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
