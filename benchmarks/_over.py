"""Echo over Unix sockets and TLS: all servers at once, each asleep but for the one whose turn it is.

There is no reference in C, so the figures of a round are compared with uvloop's in that round.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from pathlib import Path

from _measure import Config, LoadError, Result, Settings, attempt, run_load, say, wait_for_quiet
from _servers import SERVERS, Server, Spec, running
from _table import over_table
from _transfer import make_certificate

LOAD = Path(__file__).with_name("_over_load.py")
KINDS = ("Unix", "TLS")
DEFAULT_CONFIGS = "64:64:1,1:64:1,64:16384:1"
PATIENCE_SECONDS = 60.0

# name, file in servers/, its second argument, what must be importable
OVER_SERVERS = (
    ("gain_trio", "over_gain_trio.py", None, ("gain_trio",)),
    ("gain_trio-callbacks", "over_gain_trio.py", "callbacks", ("gain_trio",)),
    ("uvloop", "over_protocol.py", "uvloop", ("uvloop",)),
    ("asyncio", "over_protocol.py", "asyncio", ()),
)


def known_servers(python: str) -> dict[str, Spec]:
    return {
        name: Spec(name, (python, str(SERVERS / file), "{port}", *([argument] if argument else [])), needs)
        for name, file, argument, needs in OVER_SERVERS
    }


def measure_once(server: Server, config: Config, settings: Settings, *, tls: bool) -> Result:
    arguments = [str(LOAD), server.address, str(server.pid), str(config.connections), str(config.size)]
    arguments += [str(settings.seconds), *(["tls"] if tls else [])]
    result = run_load(settings, arguments, settings.seconds + PATIENCE_SECONDS, Path(sys.executable))
    if not result["requests"]:
        raise LoadError("not a round was over in time")
    result["cpu_us"] = result["cpu_seconds"] * 1e6 / result["requests"]
    result["requests_per_second"] = result["requests"] / result["seconds"]
    return result


def _summary(result: Result) -> str:
    return f"failed: {result['error']}" if "error" in result else f"{result['cpu_us']:.2f} µs"


def _run_kind(kind: str, specs: list[Spec], config: Config, settings: Settings) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {spec.name: [] for spec in specs}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = {"TRANSFER_CERTIFICATE": str(make_certificate(folder))} if kind == "TLS" else {}
        servers: dict[str, Server] = {}
        for spec in specs:
            path = str(folder / spec.name) if kind == "Unix" else None
            servers[spec.name] = stack.enter_context(running(spec, settings.server_cpu, path=path, variables=variables))
        for number in range(settings.rounds):
            for name, server in servers.items():
                wait_for_quiet(settings.cpus)
                result = attempt(name, lambda: measure_once(server, config, settings, tls=kind == "TLS"))  # noqa: B023  # now
                results[name].append(result)
                say(f"  round {number + 1}/{settings.rounds}, {kind}, {name}: {_summary(result)}")
    return results


def run_over(specs: list[Spec], kinds: list[str], config: Config, settings: Settings) -> Result:
    """Raises ValueError where TLS is wanted and what makes certificates is not installed."""
    if "TLS" in kinds and importlib.util.find_spec("trustme") is None:
        raise ValueError(
            "echo over TLS needs trustme, which makes its certificate: install it, or leave TLS out (--kinds)"
        )
    if config.depth != 1 or config.idle:
        raise ValueError("with --over there is one message under way on a connection, and none is idle: 64:64:1")
    results: dict[str, dict[str, list[Result]]] = {}
    for kind in kinds:
        say(f"echo over {kind}, {config.connections}:{config.size}")
        results[kind] = _run_kind(kind, specs, config, settings)
        title = f"Echo over {kind}: {config.connections} connections, {config.size} B"
        print(over_table(title, results[kind]), end="\n\n", flush=True)
    return {"mode": "over", "connections": config.connections, "size": config.size, "results": results}
