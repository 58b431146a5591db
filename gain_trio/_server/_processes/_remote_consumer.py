"""A consumer in a worker process, as the server's process sees it."""

from __future__ import annotations

from typing import Protocol, final

from ._accepted_socket import AcceptedSocket


class ConsumerProcess(Protocol):
    """The worker process of a consumer."""

    @property
    def pid(self) -> int | None: ...

    def hand_off(self, connection: AcceptedSocket, consumer: RemoteConsumer, /) -> None: ...


@final
class RemoteConsumer:
    """A consumer in a worker process, as a balancer sees it."""

    def __init__(self, index: int, number: int, worker: ConsumerProcess) -> None:
        self.index = index
        self.number = number
        """Its place within its process."""
        self.connections = 0
        self.ended = 0
        """Connections that have ended, as far as the process has reported."""
        self.worker = worker

    def __repr__(self) -> str:
        return f"<consumer {self.index} in process {self.worker.pid}: {self.active} connections>"

    @property
    def active(self) -> int:
        """Its connections that are open now, with those on their way to it."""
        return self.connections - self.ended

    def hand_off(self, connection: AcceptedSocket) -> None:
        """Have it serve an accepted connection, which is the worker's from now on."""
        self.connections += 1
        self.worker.hand_off(connection, self)
