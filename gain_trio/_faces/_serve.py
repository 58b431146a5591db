"""``gain-trio serve``: a handler, served until interrupted."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

import gain_trio
from gain_trio._server._consumer import Handler
from gain_trio._transports import address_text, parse_address

from ._handlers import BUILT_IN, find_handler
from ._parsing import Subparsers, fail


def add_parser(commands: Subparsers) -> None:
    """The arguments of ``serve``."""
    serve = commands.add_parser(
        "serve",
        help="serve a handler until interrupted",
        description="Serve a handler until Ctrl-C or SIGTERM, which end it with exit status 0.",
    )
    serve.add_argument(
        "address", help="where to listen: tcp://HOST:PORT (port 0 lets the kernel choose), unix:///PATH or fd://systemd"
    )
    serve.add_argument(
        "--handler",
        required=True,
        metavar="NAME",
        help=f"what serves a connection: {', '.join(BUILT_IN)}, or an async function as package.module:function",
    )
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="consumers that share the connections (1)")
    serve.add_argument(
        "--backlog", type=int, metavar="N", help="connections that may wait to be accepted (all the system allows)"
    )
    serve.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Serve, and return the exit status."""
    sys.path.insert(0, str(Path.cwd()))  # as python -m does: a handler of one's own is found where one stands
    try:
        parse_address(options.address, schemes=("tcp", "unix", "fd"))
        handler = find_handler(options.handler)
        gain_trio.run(_serve, handler, options)
    except KeyboardInterrupt:
        return 0
    except (ValueError, gain_trio.RingUnavailable) as error:
        return fail(str(error))
    except socket.gaierror as error:
        return fail(f"cannot listen on {options.address}: {error.strerror}")
    except OSError as error:
        return fail(error.strerror or str(error))
    return 0


async def _serve(handler: Handler, options: argparse.Namespace) -> None:
    refused: Exception | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            try:
                server = await nursery.start(_start, handler, options)
            except (OSError, ValueError) as error:
                refused = error  # raised below, outside the nursery, which would put it into a group
                nursery.cancel_scope.cancel()
            else:
                for address in server.addresses:
                    print(f"serving {options.handler} on {address_text(address)}; Ctrl-C stops it", flush=True)
    if refused is not None:
        raise refused


async def _start(
    handler: Handler, options: argparse.Namespace, *, task_status: trio.TaskStatus[gain_trio.Server]
) -> None:
    await gain_trio.serve(
        handler, options.address, workers=options.workers, backlog=options.backlog, task_status=task_status
    )


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _signal_number in signals:
        scope.cancel()
        return
