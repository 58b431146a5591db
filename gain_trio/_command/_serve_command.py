"""``gain-trio serve``: a handler, served until interrupted."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import attrs
import trio

import gain_trio
from gain_trio import ServerConfig
from gain_trio._server import (
    configure_logging,
    flags_of,
    no_workers_to_replace,
    obey_signals,
    received_signals,
    service_manager,
    ungrouped,
)
from gain_trio._transports import endpoint_text, parse_address

from ._announcing import Starter, serve_announced
from ._handlers import find_datagram_handler, find_handler
from ._network import SERVED, full_address, is_of_datagrams
from ._own_errors import fail_with
from ._parsing import Subparsers
from ._serve_events import starter as events_starter
from ._serve_options import add_arguments, check_partners, config_of, take_priority

_OF_DATAGRAMS = {"workers", "architecture", "cbpf", "lifespan", "control"}
"""The options that make sense for a server of datagrams."""
_OF_COMMAND = {"signals", "sd_notify"}
"""The options that :func:`_until_signalled` stands for."""


def add_parser(commands: Subparsers) -> None:
    """The arguments of ``serve``."""
    serve = commands.add_parser(
        "serve",
        help="serve a handler until interrupted",
        description=(
            "Serve a handler until Ctrl-C or SIGTERM.  The first lets connections finish, the second cuts them off;\n"
            "either way the exit status is 0.  It is 1 if connections are cut off because they have not ended within\n"
            "--graceful-timeout, if worker processes do not end and have to be killed, or if a thread is busy still\n"
            "7 seconds after the second, which the log names.\n"
            "SIGHUP replaces worker processes one by one; without them it loads the TLS certificate again."
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
        check_partners(options)
        config = config_of(options)
        take_priority(options, config)
        return gain_trio.run(serve_announced, _starter(options, addresses, config), options.handler, addresses[0])
    except KeyboardInterrupt:
        return 0
    except (ValueError, ImportError, OSError, gain_trio.RingUnavailable, gain_trio.WorkerFailed) as error:
        return fail_with(error)


def _starter(options: argparse.Namespace, addresses: Sequence[str], config: ServerConfig) -> Starter:
    """What to start in a nursery."""
    usual = ServerConfig()
    changed = {name: getattr(config, name) for name in attrs.fields_dict(ServerConfig)}
    changed = {
        name: value for name, value in changed.items() if value != getattr(usual, name) and name not in _OF_COMMAND
    }
    if "graceful_timeout" in options:  # the usual one is shorter for callbacks
        changed["graceful_timeout"] = config.graceful_timeout
    of_datagrams = any(map(is_of_datagrams, addresses))
    if of_datagrams:
        _check_of_datagrams(addresses, changed)
    events = events_starter(options, addresses, **changed)
    if events is not None:
        return functools.partial(_until_signalled, events)
    if of_datagrams:
        handler = find_datagram_handler(options.handler)
        is_sharded = config.architecture == "socket_sharding"
        shards, workers = (config.workers, 1) if is_sharded else (None, config.workers)
        serve = functools.partial(
            gain_trio.serve_datagrams,
            handler,
            addresses[0],
            workers=workers,
            shards=shards,
            cbpf=config.cbpf,
            lifespan=config.lifespan,
            control=config.control,
        )
        return functools.partial(_until_signalled, serve)
    return functools.partial(gain_trio.serve, find_handler(options.handler), addresses, config=config)


def _check_of_datagrams(addresses: Sequence[str], changed: dict[str, Any]) -> None:
    if len(addresses) > 1:
        raise ValueError("a UDP address is served alone: start another gain-trio for the others")
    for name in changed:
        if name not in _OF_DATAGRAMS:
            flag = flags_of(ServerConfig).get(name)
            option = "tls-cert" if flag is None else (flag.name or name).replace("_", "-")
            raise ValueError(f"--{option} is for connections, which a UDP address has not")


async def _until_signalled(start: Starter, *, task_status: trio.TaskStatus[Any]) -> None:
    """Run a server that obeys no signals itself, of callbacks or of datagrams."""
    scope = trio.CancelScope()
    with ungrouped(), service_manager() as manager, received_signals() as signals:
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
                with scope:
                    await start(task_status=task_status)
                nursery.cancel_scope.cancel()

            server = await nursery.start(serve)
            task_status.started(server)
            nursery.start_soon(manager.attend, functools.partial(_status, server), name="gain_trio service manager")
            is_of_callbacks = isinstance(server, gain_trio.callbacks.EventServer)
            target = server._signalled() if is_of_callbacks else _Datagrams(server, scope)
            await obey_signals(signals, target, nursery, manager)


def _status(server: gain_trio.callbacks.EventServer | gain_trio.DatagramServer) -> str:
    """A line for the service manager."""
    return f"serving on {', '.join(map(endpoint_text, server.addresses))}"


@final
class _Datagrams:
    """A server of datagrams, which has no gentle end and no worker processes, as signals see it."""

    def __init__(self, server: gain_trio.DatagramServer, scope: trio.CancelScope) -> None:
        self._server = server
        self._scope = scope

    def begin_to_end(self, _name: str) -> bool:
        """False: its first signal ends it at once."""
        return False

    def cancel(self, _name: str) -> None:
        """End the server at once."""
        self._scope.cancel()

    async def renew(self, name: str) -> None:
        """Log that there are none."""
        no_workers_to_replace(name, self._server)
