"""``gain-trio asgi``: an ASGI app, served until interrupted."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Final

import attrs

import gain_trio
import gain_trio.asgi
from gain_trio import ServerConfig
from gain_trio._server import configure_logging, flags_of
from gain_trio._transports import parse_address
from gain_trio.asgi import AsgiConfig

from ._announcing import Starter, serve_announced
from ._own_errors import fail_with
from ._parsing import Subparsers
from ._reloading import check_watchfiles, serve_reloading
from ._serve_options import (
    add_flags,
    add_logging,
    add_process_priority,
    add_tls,
    check_partners,
    config_of,
    take_priority,
)

DEFAULT_ADDRESS: Final = "tcp://127.0.0.1:8000"
STANDARD_OUTPUT: Final = 1

_GROUPS: Final = (
    "web apps",
    "development",
    "who serves",
    "worker processes",
    "limits",
    "sockets",
    "proxies",
    "TLS",
    "log and statistics",
)
_DESCRIPTION: Final = """\
Serve an ASGI app until Ctrl-C or SIGTERM.  The first lets requests finish, the second cuts them off; either way the
exit status is 0.  It is 1 if the app cannot start or fails when it ends, if connections are cut off because they have
not ended within --graceful-timeout, or if something has to be killed.
SIGHUP replaces worker processes one by one; without them it loads the TLS certificate again.
"""
_EPILOG: Final = """\
examples:
  gain-trio asgi app:app
  gain-trio asgi app:app --reload
  gain-trio asgi my_package.web:create_app tcp://0.0.0.0:8000 --factory --processes auto --access-log
  gain-trio asgi app:app unix:///run/app.sock --proxy-headers --forwarded-allow-ips unix
"""


def add_parser(commands: Subparsers) -> None:
    """The arguments of ``asgi``."""
    parser = commands.add_parser(
        "asgi",
        help="serve an ASGI app until interrupted",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="APP", help="the app as package.module:name")
    parser.add_argument(
        "address",
        nargs="*",
        metavar="ADDRESS",
        help="where to listen: tcp://HOST:PORT (port 0 lets the kernel choose), unix:///PATH or fd://systemd; or several "
        f"({DEFAULT_ADDRESS})",
    )
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    groups["web apps"].add_argument(
        "--app-dir", metavar="FOLDER", help="where the app's module is looked for first (the current folder)"
    )
    groups["development"].add_argument(
        "--reload",
        action="store_true",
        help="have a worker process serve, and replace it when a Python file changes; needs the package watchfiles",
    )
    groups["development"].add_argument(
        "--reload-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help="of --reload: a folder whose files count, with all below; may be given again (that of --app-dir)",
    )
    add_logging(groups["log and statistics"])
    add_flags(groups, AsgiConfig)
    add_flags(groups, ServerConfig, without={"lifespan"})  # an app has a lifespan of its own
    add_process_priority(groups["worker processes"])
    add_tls(groups["TLS"])
    parser.set_defaults(execute=execute, takes_more="address")


def execute(options: argparse.Namespace) -> int:
    """Serve, and return the exit status."""
    folder = Path(options.app_dir or "").absolute()
    sys.path.insert(0, str(folder))
    configure_logging(options.log_level, options.log_format)
    try:
        _check_folder(folder, options.app_dir)
        addresses = options.address or [DEFAULT_ADDRESS]
        for address in addresses:
            parse_address(address, schemes=("tcp", "unix", "fd"))
        check_partners(options)
        config, asgi = config_of(options), asgi_config_of(options)
        if options.reload:
            check_watchfiles()
            config = attrs.evolve(config, processes=config.processes or 1)
        take_priority(options, config)
        start: Starter = functools.partial(gain_trio.asgi.serve, options.app, addresses, config=config, asgi=asgi)
        if options.reload:
            folders = [Path(name).absolute() for name in options.reload_dir] or [folder]
            start = functools.partial(serve_reloading, start, folders)
        return gain_trio.run(serve_announced, start, options.app, addresses[0])
    except KeyboardInterrupt:
        return 0
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        return fail_with(error)


def _check_folder(folder: Path, name: str | None) -> None:
    if not folder.is_dir():
        raise ValueError(f"--app-dir is a folder, and there is none of the name {name}")


def asgi_config_of(options: argparse.Namespace) -> AsgiConfig:
    """The options of apps and of HTTP.

    Raises:
      ValueError: they make no sense together.
    """
    given = {name: value for name, value in vars(options).items() if name in flags_of(AsgiConfig)}
    if options.reload_dir and not options.reload:
        raise ValueError("--reload-dir is for --reload, which is not given")
    if "proxy_headers" not in given:
        for name in {"forwarded_allow_ips", "proxy_host"} & given.keys():
            raise ValueError(f"--{name.replace('_', '-')} is for --proxy-headers, which is not given")
    if "max_requests_jitter" in given and "max_requests" not in given:
        raise ValueError("--max-requests-jitter is for --max-requests, which is not given")
    return AsgiConfig(**given, access_log_descriptor=STANDARD_OUTPUT)
