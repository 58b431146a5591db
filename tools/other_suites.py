"""The test suites of libraries and servers that use Trio: as they are, and with gain_trio below them.

    python tools/other_suites.py [--projects anyio,httpx] [--backends io_uring,trio] [--folder build/suites]

Each project is a released sdist in a virtual environment of its own, with gain_trio installed from this tree.  Its tests run
with Trio's own code first, and then with ``-p gain_trio.pytest_plugin`` on each of the backends.  Prints the tests that fail
only with gain_trio, each after a second run by itself, with and without it; exit status 1 if there is one that fails both
times with gain_trio and passes without, or if a suite does not come to its end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 900.0
PLAIN = "plain"


@attrs.frozen
class Project:
    """A release whose sdist has its tests."""

    name: str
    version: str
    requirements: tuple[str, ...]
    """What its tests need beside it."""
    arguments: tuple[str, ...] = ("tests",)
    """What pytest is to run."""

    @property
    def sdist(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


_PYTEST = ("pytest>=9,<10", "pytest-timeout")
_TRIO = ("pytest>=8,<9", "pytest-timeout", "pytest-trio==0.8.0")  # which does not know pytest 9

PROJECTS = (
    Project(
        "anyio",
        "4.16.0",
        (*_PYTEST, "blockbuster", "hypothesis", "psutil", "pytest-mock", "trustme", "truststore", "exceptiongroup"),
        ("tests", "-k", "trio"),
    ),
    Project("httpcore", "1.0.9", (*_TRIO, "anyio", "h2", "socksio==1.*", "pytest-httpbin"), ("tests",)),
    Project(
        "httpx",
        "0.28.1",
        (
            *_PYTEST,
            "anyio",
            "h2",
            "chardet",
            "trustme",
            "uvicorn",
            "zstandard",
            "brotli",
            "socksio==1.*",
            "click",
            "rich",
        ),
        ("tests", "-k", "trio"),
    ),
    Project(
        "hypercorn", "0.18.0", (*_TRIO, "pytest-asyncio", "httpx", "hypothesis", "mock"), ("tests", "-o", "addopts=")
    ),
    Project("trio-websocket", "0.12.2", (*_TRIO, "trustme"), ("tests", "-o", "trio_mode=true")),
    Project("pytest-trio", "0.8.0", (*_TRIO, "hypothesis"), ("pytest_trio/_tests",)),
    Project("tricycle", "0.4.1", _TRIO, ("tricycle",)),
    Project("trio-util", "0.8.0", _TRIO, ("tests", "-o", "trio_mode=true")),
    Project("trio-parallel", "1.3.0", _TRIO, ("trio_parallel", "-o", "addopts=")),
    # Its copy of Python's own tests of asyncio takes longer than PATIENCE_SECONDS with Trio alone.
    Project("trio-asyncio", "0.16.0", _TRIO, ("tests", "--ignore=tests/python")),
    Project(
        "starlette",
        "1.10.0",
        (
            *_PYTEST,
            "anyio",
            "itsdangerous",
            "jinja2",
            "python-multipart",
            "pyyaml",
            "httpx",
            "httpx2",
            "opentelemetry-sdk",
        ),
        ("tests", "-k", "trio"),
    ),
    Project("quart-trio", "0.12.0", (*_TRIO, "hypercorn"), ("tests", "-o", "addopts=")),
    Project(
        "libp2p",
        "0.8.1",
        (*_TRIO, "factory-boy<3", "p2pclient", "pytest-rerunfailures"),
        ("tests/core", "-m", "not slow", "-p", "no:rerunfailures"),
    ),
)


@attrs.define
class Outcomes:
    """How the tests of one run ended."""

    passed: set[str] = attrs.field(factory=set)
    failed: set[str] = attrs.field(factory=set)
    others: set[str] = attrs.field(factory=set)
    """Skipped, or expected to fail."""


def call(command: Iterable[object], folder: Path, log: Path, seconds: float = PATIENCE_SECONDS) -> int | None:
    """Run a command with its output in a file.  Returns its exit status, or None when it takes too long."""
    with log.open("w", encoding="utf-8") as output:
        try:
            return subprocess.run(  # noqa: S603  # the commands of this file
                [str(part) for part in command], cwd=folder, stdout=output, stderr=output, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def demand(command: Iterable[object], folder: Path, log: Path) -> None:
    """The same of a command without which there is nothing to test."""
    if call(command, folder, log) != 0:
        sys.exit(f"cannot set a suite up: {log.read_text(encoding='utf-8')[-2000:]}")


def make_wheel(folder: Path) -> Path:
    """Build gain_trio from this tree."""
    for old in folder.glob("gain_trio-*.whl"):
        old.unlink()
    demand([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ROOT], folder, folder / "wheel.log")
    (wheel,) = folder.glob("gain_trio-*.whl")
    return wheel


def unpack(project: Project, folder: Path) -> Path:
    """Fetch the sdist, and return the folder with its files."""
    sources = folder / "source"
    if not sources.exists():
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", project.name, project.sdist]
        demand([*download, "-d", folder], folder, folder / "download.log")
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(sources, filter="data")
    (top,) = (path for path in sources.iterdir() if path.is_dir())
    return top


def set_up(project: Project, folder: Path, wheel: Path) -> tuple[Path, Path]:
    """Returns the interpreter of the project's environment and the folder with its files."""
    folder.mkdir(parents=True, exist_ok=True)
    # For an sdist without settings: pytest would take this project's, which lie above.
    (folder / "pytest.ini").touch()
    source = unpack(project, folder)
    python = folder / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not python.exists():
        demand([sys.executable, "-m", "venv", folder / "venv"], folder, folder / "venv.log")
        demand([*install, source, "trio", wheel, *project.requirements], folder, folder / "install.log")
    again = [*install, "--force-reinstall", "--no-deps"]
    demand([*again, wheel], folder, folder / "gain_trio.log")
    return python, source


def plugin(backend: str) -> tuple[str, ...]:
    """The arguments that put gain_trio below the tests."""
    return () if backend == PLAIN else ("-p", "gain_trio.pytest_plugin", f"--gain-trio-backend={backend}")


def read_outcomes(report: Path) -> Outcomes:
    """What a report in JUnit's format says."""
    outcomes = Outcomes()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest has written it
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes.failed.add(name)
        elif case.find("skipped") is None:
            outcomes.passed.add(name)
        else:
            outcomes.others.add(name)
    return outcomes


def run_tests(python: Path, source: Path, arguments: Iterable[str], backend: str, log: Path) -> Outcomes | None:
    """Run pytest; None when it did not come to its end."""
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", f"--junitxml={report}"]
    command += ["--continue-on-collection-errors"]
    call([*command, *plugin(backend), *arguments], source, log)
    return read_outcomes(report) if report.exists() else None


def run_again(python: Path, source: Path, project: Project, backend: str, names: Iterable[str]) -> set[str]:
    """Return the tests that fail again by themselves, and pass with Trio's own code."""
    bad = set()
    folder = python.parent.parent.parent
    for name in sorted(names):
        function = name.rpartition("::")[2].partition("[")[0]
        arguments = [*(one for one in project.arguments if one not in ("-k", "trio")), "-k", function]
        with_it = run_tests(python, source, arguments, backend, folder / f"again-{backend}.log")
        without = run_tests(python, source, arguments, PLAIN, folder / "again-plain.log")
        if with_it is None or without is None or (name in with_it.failed and name in without.passed):
            bad.add(name)
    return bad


def compare(project: Project, backends: Iterable[str], folder: Path, wheel: Path) -> int:
    """Print a line for each backend, and return the number of new failures; a suite without an end counts as one."""
    python, source = set_up(project, folder, wheel)
    plain = run_tests(python, source, project.arguments, PLAIN, folder / "plain.log")
    if plain is None:
        print(f"{project.sdist:24} plain: did not come to its end, see {folder}/plain.log", flush=True)
        return 1
    print(f"{project.sdist:24} plain: {len(plain.passed)} passed, {len(plain.failed)} failed", flush=True)
    total = 0
    for backend in backends:
        found = run_tests(python, source, project.arguments, backend, folder / f"{backend}.log")
        if found is None:
            print(f"{project.sdist:24} {backend}: did not come to its end, see {folder}/{backend}.log", flush=True)
            total += 1
            continue
        new = found.failed - plain.failed
        bad = run_again(python, source, project, backend, new)
        counts = f"{len(found.passed)} passed, {len(found.failed)} failed"
        print(f"{project.sdist:24} {backend}: {counts}, {len(new)} new, {len(bad)} of them again", flush=True)
        for name in sorted(new):
            print(f"    {'again' if name in bad else 'once '} {name}", flush=True)
        missing = plain.passed - found.passed - found.failed - found.others
        if missing:
            print(f"    {len(missing)} tests that passed did not run, such as {min(missing)}", flush=True)
        total += len(bad) + len(missing)
    return total


def main() -> int:
    """Run what was asked for, and return the exit status."""
    known = {project.name: project for project in PROJECTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", default=",".join(known), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--backends", default="io_uring,trio", metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/suites", help="default: %(default)s")
    arguments = parser.parse_args()
    chosen = arguments.projects.split(",")
    if unknown := sorted(set(chosen) - known.keys()):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = make_wheel(folder)
    backends = arguments.backends.split(",")
    new = sum(compare(known[name], backends, folder / name, wheel) for name in chosen)
    print(f"{new} new failures with gain_trio")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
