"""Run a whole pytest session on a chosen backend: ``pytest -p gain_trio.pytest_plugin [--gain-trio-backend=...]``.

Every :func:`trio.run` of the session is then on it, called by pytest-trio, by the tests or by the code under test.
"""

from __future__ import annotations

import os
from typing import get_args

import pytest

from gain_trio import Backend, BackendInfo, RingUnavailable, backend_info, uninstall
from gain_trio._io_manager import BackendSetting, install_setting, resolve

_chosen = pytest.StashKey[BackendInfo]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gain-trio-backend``."""
    parser.addoption(
        "--gain-trio-backend",
        choices=get_args(Backend),
        help=(
            "what trio.run is on in this session: gain_trio's I/O manager (io_uring), Trio's own (trio), or the first where "
            "it can be had (auto); GAIN_TRIO_BACKEND, or else io_uring, by default"
        ),
    )


def _setting(asked: Backend | None) -> BackendSetting:
    """What the session is to be on; the command line outweighs the environment."""
    if asked is not None:
        return BackendSetting(asked, f"--gain-trio-backend={asked}")
    if os.environ.get("GAIN_TRIO_BACKEND"):
        return resolve("auto")  # which asks the variable, and names it in what it complains of
    return BackendSetting("io_uring", "the pytest plugin's default")


def pytest_configure(config: pytest.Config) -> None:
    """Install the backend; without a ring, ``io_uring`` ends the session before it starts, with the reason."""
    try:
        config.stash[_chosen] = install_setting(_setting(config.getoption("--gain-trio-backend")))
    except RingUnavailable as error:
        cure = (
            "--gain-trio-backend=auto tests without it where it is not available, --gain-trio-backend=trio everywhere"
        )
        raise pytest.UsageError(f"gain_trio: {error}; {cure}") from error
    except ValueError as error:
        raise pytest.UsageError(f"gain_trio: {error}") from error


def pytest_unconfigure() -> None:
    """Leave Trio as it was."""
    uninstall()


def pytest_report_header(config: pytest.Config) -> str:
    """Name the backend at the top of the report."""
    info = config.stash.get(_chosen, None) or backend_info()
    features = ", ".join(info.features) or "no features"
    return f"gain_trio: backend {info.backend}, tier {info.tier}: {info.reason} ({features})"
