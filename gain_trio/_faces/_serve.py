"""``gain-trio serve``: a handler, served until interrupted."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

import gain_trio
from gain_trio import DatagramServer, Server, ServerConfig
from gain_trio._transports import parse_address

from ._handlers import find_datagram_handler, find_handler
from ._logging import configure_logging
from ._network import SERVED, full_address, is_of_datagrams, served_text
from ._parsing import Subparsers, fail
from ._serve_events import starter as events_starter
from ._serve_options import add_arguments, config_of

Starter = Callable[..., Awaitable[None]]
"""Something for ``nursery.start`` that starts a server."""

_OF_DATAGRAMS = {"workers"}
"""The options that make sense for a server of datagrams."""


def add_parser(commands: Subparsers) -> None:
    """The arguments of ``serve``."""
    serve = commands.add_parser(
        "serve",
        help="serve a handler until interrupted",
        description=(
            "Serve a handler until Ctrl-C or SIGTERM.  The first lets connections finish, the second cuts them off;\n"
            "either way the exit status is 0."
        ),
    )
    add_arguments(serve)
    serve.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Serve, and return the exit status."""
    sys.path.insert(0, str(Path.cwd()))  # as python -m does: a handler of one's own is found where one stands
    configure_logging(options.log_level, options.log_format)
    try:
        addresses = [full_address(address, options.network) for address in options.address]
        for address in addresses:
            parse_address(address, schemes=SERVED)
        config = config_of(options)
        gain_trio.run(_serve, _starter(options, addresses, config), options.handler, addresses[0], config)
    except KeyboardInterrupt:
        return 0
    except (ValueError, gain_trio.RingUnavailable) as error:
        return fail(str(error))
    except OSError as error:
        return fail(error.strerror or str(error))
    return 0


def _starter(options: argparse.Namespace, addresses: Sequence[str], config: ServerConfig) -> Starter:
    """What to start in a nursery."""
    usual = ServerConfig()
    changed = {name: getattr(config, name) for name in attrs.fields_dict(ServerConfig)}
    changed = {name: value for name, value in changed.items() if value != getattr(usual, name)}
    of_datagrams = any(map(is_of_datagrams, addresses))
    if of_datagrams:
        _check_of_datagrams(addresses, changed)
    events = events_starter(options, addresses, **changed)
    if events is not None:
        return events
    if of_datagrams:
        handler = find_datagram_handler(options.handler)
        return functools.partial(gain_trio.serve_datagrams, handler, addresses[0], workers=config.workers)
    return functools.partial(gain_trio.serve, find_handler(options.handler), addresses, config=config)


def _check_of_datagrams(addresses: Sequence[str], changed: dict[str, Any]) -> None:
    if len(addresses) > 1:
        raise ValueError("a UDP address is served alone: start another gain-trio for the others")
    for name in changed:
        if name not in _OF_DATAGRAMS:
            option = {"ssl_context": "tls-cert"}.get(name, name.replace("_", "-"))
            raise ValueError(f"--{option} is for connections, which a UDP address has not")


async def _serve(start: Starter, handler: str, address: str, config: ServerConfig) -> None:
    refused: Exception | None = None
    running: list[Server | DatagramServer] = []

    async def serve(*, task_status: trio.TaskStatus[Server | DatagramServer]) -> None:
        await start(task_status=task_status)
        nursery.cancel_scope.cancel()  # it is drained

    async def stop_on_signals(signals: AsyncIterator[int]) -> None:
        drains = False
        async for _signal_number in signals:
            if drains or not running or not isinstance(running[0], Server):
                nursery.cancel_scope.cancel()
                return
            nursery.start_soon(running[0].drain, config.graceful_timeout)
            drains = True

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signals, signals)
            try:
                running.append(await nursery.start(serve))
            except (OSError, ValueError) as error:
                refused = error  # raised below, outside the nursery, which would put it into a group
                nursery.cancel_scope.cancel()
            else:
                for sockaddr in running[0].addresses:
                    print(f"serving {handler} on {served_text(address, sockaddr)}; Ctrl-C stops it", flush=True)
    if refused is not None:
        raise refused
