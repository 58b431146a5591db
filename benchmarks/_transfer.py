"""Large transfers: all servers at once, each asleep but for the one whose turn it is.

In every round each server makes the same transfer, one after the other, so that a change of the machine's mood falls on
all of them.  The servers stay the same processes all the time: what they do once, such as loading code, is in a first
round that does not count.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from _build import BUILD
from _measure import LoadError, Result, Settings, attempt, run_load, say, wait_for_quiet
from _servers import Server, Spec, running

FILE = BUILD / "transfer.bin"
TLS_LOAD = Path(__file__).with_name("_transfer_tls.py")
KINDS = ("TCP", "Unix", "TLS")
DIRECTIONS = ("up", "down", "file")
PATIENCE = 90.0
GIBIBYTE = 1 << 30
PIECE = 1 << 20

Results = dict[tuple[str, str], dict[str, list[Result]]]


def _make_file(size: int) -> None:
    """What the servers send; read once, so that it is in the page cache."""
    if not FILE.exists() or FILE.stat().st_size != size:
        with FILE.open("wb") as file:
            for done in range(0, size, PIECE):
                file.write(b"x" * min(PIECE, size - done))
    with FILE.open("rb") as file:
        while file.read(PIECE):
            pass


def make_certificate(folder: Path) -> Path:
    """For localhost, with its key, by an authority of its own."""
    import trustme  # noqa: PLC0415  # nothing else here needs it

    file = folder / "certificate.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    return file


def measure_once(server: Server, direction: str, size: int, settings: Settings, *, tls: bool) -> Result:
    arguments = [server.address, str(server.pid), direction, str(size)]
    if tls:
        result = run_load(settings, [str(TLS_LOAD), *arguments], PATIENCE, Path(sys.executable))
    else:
        result = run_load(settings, arguments, PATIENCE, settings.programs.transfer)
    if result["bytes"] != size:
        raise LoadError(f"{result['bytes']} bytes instead of {size}")
    result["mib_per_second"] = size / (1 << 20) / result["seconds"]
    result["cpu_per_gib"] = result["cpu_seconds"] / (size / GIBIBYTE)
    return result


def _run_kind(kind: str, specs: list[Spec], size: int, settings: Settings, results: Results) -> None:
    tls = kind == "TLS"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = {"TRANSFER_CERTIFICATE": str(make_certificate(folder))} if tls else {}
        servers: dict[str, Server] = {}
        for spec in specs:
            path = str(folder / spec.name) if kind == "Unix" else None
            servers[spec.name] = stack.enter_context(running(spec, settings.server_cpu, path=path, variables=variables))
        for number in range(settings.rounds + 1):
            for direction in DIRECTIONS:
                for name, server in servers.items():
                    wait_for_quiet(settings.cpus)
                    result = attempt(name, lambda: measure_once(server, direction, size, settings, tls=tls))  # noqa: B023  # now
                    if number:
                        results.setdefault((kind, direction), {}).setdefault(name, []).append(result)
                        say(f"  round {number}/{settings.rounds}, {kind}, {direction}, {name}: {_summary(result)}")


def _summary(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    return f"{result['mib_per_second']:,.0f} MiB/s, {result['cpu_per_gib']:.3f} CPU s/GiB"


def run_rounds(specs: list[Spec], size: int, kinds: list[str], settings: Settings) -> Results:
    """Raises ValueError where TLS is wanted and what makes certificates is not installed."""
    if "TLS" in kinds and importlib.util.find_spec("trustme") is None:
        raise ValueError(
            "transfers over TLS need trustme, which makes their certificate: install it, or leave TLS out (--kinds)"
        )
    results: Results = {}
    _make_file(size)
    try:
        for kind in kinds:
            _run_kind(kind, specs, size, settings, results)
    finally:
        FILE.unlink()
    return results
