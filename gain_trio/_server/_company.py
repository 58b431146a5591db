"""What goes with a server while it runs: signals, and an endpoint for its statistics."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import final

import trio

from gain_trio._transports import shown

from ._config import ServerConfig
from ._cut import cut_off
from ._end_signals import END_SIGNALS, REPLACE_SIGNALS, received_signals
from ._metrics import MetricsEndpoint
from ._server import Server

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
        signals = stack.enter_context(_signal_receiver()) if config.signals else None
        endpoint = None if config.metrics is None else await MetricsEndpoint.open(config.metrics)
        if endpoint is not None:
            stack.callback(endpoint.close)
        scope = trio.CancelScope()
        async with trio.open_nursery() as company:
            introduction = _Introduction(company, endpoint, task_status)
            if signals is not None:
                company.start_soon(_attend, signals, introduction, config, scope, name="gain_trio signals")
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
    """Learns of the server when it has started, before whoever started it does."""

    def __init__(
        self, company: trio.Nursery, endpoint: MetricsEndpoint | None, task_status: trio.TaskStatus[Server]
    ) -> None:
        self.company = company
        self.server: Server | None = None
        self._endpoint = endpoint
        self._task_status = task_status

    def started(self, value: Server | None = None) -> None:
        assert value is not None
        self.server = value
        if self._endpoint is not None:
            value.metrics_addresses = self._endpoint.addresses
            self.company.start_soon(self._endpoint.run, value, name="gain_trio metrics")
        self._task_status.started(value)


@contextlib.contextmanager
def _signal_receiver() -> Iterator[AsyncIterator[int]]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "signals=True is for a server in the main thread, the only one in which Python receives signals; leave it out "
            "and call server.drain() yourself"
        )
    with received_signals(*END_SIGNALS, *REPLACE_SIGNALS) as signals:
        yield signals


async def _attend(
    signals: AsyncIterator[int], introduction: _Introduction, config: ServerConfig, scope: trio.CancelScope
) -> None:
    """SIGTERM and SIGINT drain the server, the second one cancels it, and SIGHUP replaces the worker processes.

    A server that was cancelled and does not end, because a thread is busy, ends with its process.
    """
    is_draining = False
    async for number in signals:
        name, server = signal.Signals(number).name, introduction.server
        if number in REPLACE_SIGNALS:
            if server is None or is_draining:
                logger.info("%s is ignored: the server is not up %s", shown(name), "any more" if is_draining else "yet")
            else:
                introduction.company.start_soon(server._replace_workers, name="gain_trio replacement of workers")
        elif server is None or is_draining:
            logger.info("%s: the server is cancelled", shown(name))
            scope.cancel()
            await cut_off(signals, introduction.company, REPLACE_SIGNALS)
        else:
            logger.info("%s: the server drains; another one cancels it", shown(name))
            is_draining = True
            introduction.company.start_soon(server.drain, config.graceful_timeout, name="gain_trio drain")
