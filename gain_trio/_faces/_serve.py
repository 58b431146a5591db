"""``gain-trio serve``: a handler, served until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

import gain_trio
from gain_trio import Server, ServerConfig
from gain_trio._server._consumer import Handler
from gain_trio._transports import address_text, parse_address

from ._handlers import find_handler
from ._logging import configure_logging
from ._parsing import Subparsers, fail
from ._serve_options import add_arguments, config_of


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
        for address in options.address:
            parse_address(address, schemes=("tcp", "unix", "fd"))
        handler = find_handler(options.handler)
        gain_trio.run(_serve, handler, options, config_of(options))
    except KeyboardInterrupt:
        return 0
    except (ValueError, gain_trio.RingUnavailable) as error:
        return fail(str(error))
    except OSError as error:
        return fail(error.strerror or str(error))
    return 0


async def _serve(handler: Handler, options: argparse.Namespace, config: ServerConfig) -> None:
    refused: Exception | None = None
    running: list[Server] = []

    async def serve(*, task_status: trio.TaskStatus[Server]) -> None:
        await gain_trio.serve(handler, options.address, config=config, task_status=task_status)
        nursery.cancel_scope.cancel()  # it is drained

    async def stop_on_signals(signals: AsyncIterator[int]) -> None:
        drains = False
        async for _signal_number in signals:
            if not running or drains:
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
                for address in running[0].addresses:
                    print(f"serving {options.handler} on {address_text(address)}; Ctrl-C stops it", flush=True)
    if refused is not None:
        raise refused
