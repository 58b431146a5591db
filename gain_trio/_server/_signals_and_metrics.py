"""What goes with a server while it runs: signals, and an endpoint for its statistics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

import trio

from gain_trio._transports import shown

from ._server import Server
from ._server_config import ServerConfig
from ._signals import obey_signals, received_signals

if TYPE_CHECKING:
    from ._metrics import MetricsEndpoint

logger = logging.getLogger("gain_trio")


async def run_in_company(
    core: Callable[[trio.TaskStatus[Server]], Awaitable[None]],
    config: ServerConfig,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run ``core``, which serves, and with it what the configuration asks for.

    Raises what ``core`` raises, as it is, and:

    Raises:
      KeyboardInterrupt: SIGTERM or SIGINT came before the server was up.
      RuntimeError: ``signals`` outside of the main thread.
      ImportError: ``metrics`` without the package that it needs.
      ValueError, OSError: its address is none, or cannot be had.
      WorkerFailed: the server was told to end, and had to kill worker processes for that.
    """
    if not config.signals and config.metrics is None:
        await core(task_status)
        return
    failure: Exception | None = None
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(received_signals()) if config.signals else None
        endpoint: MetricsEndpoint | None = None
        if config.metrics is not None:
            from ._metrics import MetricsEndpoint  # noqa: PLC0415 - a server without the endpoint is spared HTTP

            endpoint = await MetricsEndpoint.open(config.metrics)
            stack.callback(endpoint.close)
        scope = trio.CancelScope()
        async with trio.open_nursery() as company:
            introduction = _Introduction(company, scope, config, endpoint, task_status)
            if signals is not None:
                company.start_soon(obey_signals, signals, introduction, company, name="gain_trio signals")
            with scope:
                try:
                    await core(introduction)
                except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would make a group of it
                    failure = error
            company.cancel_scope.cancel()
    if failure is None and introduction.server is not None:
        failure = introduction.server._end_failure()
    if failure is not None:
        raise failure
    if introduction.server is None:
        raise KeyboardInterrupt("a signal came before the server was up")


@final
class _Introduction(trio.TaskStatus[Server]):
    """Gets the server when it has started, before its caller does, and passes signals on to it."""

    def __init__(
        self,
        company: trio.Nursery,
        scope: trio.CancelScope,
        config: ServerConfig,
        endpoint: MetricsEndpoint | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        self.company = company
        self.server: Server | None = None
        self._scope = scope
        self._graceful_timeout = config.graceful_timeout
        self._is_draining = False
        self._endpoint = endpoint
        self._task_status = task_status

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        self.server = value
        if self._endpoint is not None:
            value.metrics_addresses = self._endpoint.addresses
            self.company.start_soon(self._endpoint.run, value, name="gain_trio metrics")
        self._task_status.started(value)

    # --- Signalled ---

    def begin_to_end(self, name: str) -> bool:
        """Let the server drain; False before the server is up, and when it drains already."""
        if self.server is None or self._is_draining:
            return False
        logger.info("%s: the server drains; another one cancels it", shown(name))
        self._is_draining = True
        self.company.start_soon(self.server.drain, self._graceful_timeout, name="gain_trio drain")
        return True

    def cancel(self, name: str) -> None:
        """Cancel the server, be it up or not."""
        logger.info("%s: the server is cancelled", shown(name))
        self._scope.cancel()

    async def replace_workers(self, name: str) -> None:
        """Replace the worker processes of a server that is up."""
        if self.server is None or self._is_draining:
            when = "any more" if self._is_draining else "yet"
            logger.info("%s is ignored: the server is not up %s", shown(name), shown(when))
        else:
            await self.server._replace_workers()
