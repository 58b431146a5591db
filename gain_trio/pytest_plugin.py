"""Run a whole pytest session on a chosen backend: ``pytest -p gain_trio.pytest_plugin [--gain-trio-backend=...]``.

Every :func:`trio.run` of the session is then on it, whoever calls it: pytest-trio, the tests, or the code under test.
"""

from __future__ import annotations

import pytest

from gain_trio import backend_info, install, uninstall


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gain-trio-backend``."""
    parser.addoption(
        "--gain-trio-backend",
        choices=("io_uring", "trio"),
        default="io_uring",
        help="what trio.run is on in this session: gain_trio's I/O manager (io_uring, the default) or Trio's own (trio)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Install the backend; without a ring, ``io_uring`` ends the session before it starts, with the reason."""
    if config.getoption("--gain-trio-backend") == "io_uring":
        install()


def pytest_unconfigure() -> None:
    """Leave Trio as it was."""
    uninstall()


def pytest_report_header(config: pytest.Config) -> str:
    """Name the backend at the top of the report."""
    if config.getoption("--gain-trio-backend") == "trio":
        return "gain_trio: backend trio"
    return f"gain_trio: backend io_uring ({', '.join(backend_info().features)})"
