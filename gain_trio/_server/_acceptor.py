"""An acceptor: the task that takes connections from a listener and hands them to consumers."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import final

import trio

from gain_trio._transports import Connection, Listener
from gain_trio._transports._listener import RESOURCE_ERRNOS

from ._balancer import RoundRobin
from ._consumer import Consumer

RESOURCE_PAUSE = 0.1
"""Seconds without accepting when the process or the machine is out of descriptors or memory: Trio's policy."""

logger = logging.getLogger("gain_trio")


@final
class Acceptor:
    """Serves one listener."""

    def __init__(self, listener: Listener, consumers: Sequence[Consumer], balancer: RoundRobin) -> None:
        self._listener = listener
        self._consumers = consumers
        self._balancer = balancer

    async def run(self) -> None:
        """Accept and hand off, until cancelled."""
        while True:
            try:
                connection: Connection | None = await self._listener.accept()
                while connection is not None:
                    self._balancer.pick(self._consumers).hand_off(connection)
                    connection = self._listener._accept_ready()
            except OSError as error:
                if error.errno not in RESOURCE_ERRNOS:
                    raise
                logger.error(
                    "cannot accept connections on %s: %s (%s); trying again in %s seconds",
                    self._listener.local_address,
                    errno.errorcode[error.errno],
                    error.strerror,
                    RESOURCE_PAUSE,
                )
                await trio.sleep(RESOURCE_PAUSE)
