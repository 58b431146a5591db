"""Measure echo servers against a C reference and print Markdown tables.

    python benchmarks/run.py
    python benchmarks/run.py --servers gain_trio,uvloop --configs 64:64:1 --rounds 5
    python benchmarks/run.py --churn
    python benchmarks/run.py --udp
    python benchmarks/run.py --http
    python benchmarks/run.py --asgi
    python benchmarks/run.py --memory
    python benchmarks/run.py --report build/report
    python benchmarks/run.py --transfer
    python benchmarks/run.py --over

README.md beside this file explains the method.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import _asgi
import _http
import _measure
import _over
import _report
import _servers
import _table
import _transfer
from _build import BuildError, Programs, build
from _measure import Config, Settings, say
from _servers import Interpreter, ServerError, Spec

DEFAULT_CONFIGS = "64:64:1,512:64:1,64:16384:1,1:64:1"
DEFAULT_CHURN_CONFIGS = "64:64:1"
DEFAULT_UDP_CONFIGS = "64:64:1"
DEFAULT_IDLE = 10_000
DEFAULT_TRANSFER = 1024
SPARE_FILES = 64


def add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--servers", metavar="NAME,...", help="which, of --list (default: all installed)")
    add(
        "--server",
        action="append",
        default=[],
        metavar="'NAME=COMMAND {port}'",
        help="another server, of one process, echoing on 127.0.0.1:{port}",
    )
    add(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the Python that runs the servers (default: this one)",
    )
    add("--list", action="store_true", help="list the servers, and why any is missing")
    add(
        "--configs",
        metavar="CONNECTIONS:SIZE:DEPTH[:IDLE],...",
        help=f"default: {DEFAULT_CONFIGS}; with --churn {DEFAULT_CHURN_CONFIGS}, with --udp {DEFAULT_UDP_CONFIGS}",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--churn", action="store_true", help="connect, echo one message, close, over and over")
    mode.add_argument("--udp", action="store_true", help="echo datagrams")
    mode.add_argument("--http", action="store_true", help="HTTP plaintext; --configs CONNECTIONS:DEPTH,...")
    mode.add_argument("--over", action="store_true", help="echo over Unix sockets and TLS (--kinds Unix,TLS)")
    mode.add_argument(
        "--asgi",
        nargs="?",
        const=",".join(_asgi.ROWS),
        metavar="ROW,...",
        help=f"ASGI apps: {', '.join(_asgi.ROWS)} (default: all)",
    )
    mode.add_argument(
        "--memory",
        type=int,
        nargs="?",
        const=DEFAULT_IDLE,
        metavar="CONNECTIONS",
        help=f"RSS of idle connections (default: {DEFAULT_IDLE})",
    )
    mode.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="a page with plots: echo (--configs), and memory; in this new folder, with the results as JSON",
    )
    mode.add_argument(
        "--transfer",
        type=int,
        nargs="?",
        const=DEFAULT_TRANSFER,
        metavar="MIB",
        help=f"large transfers, over TCP, Unix sockets and TLS, in MiB (default: {DEFAULT_TRANSFER})",
    )


def add_conduct(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="over all servers (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=3.0,
        help="each server's and the reference's share of a measurement (default: %(default)s)",
    )
    add(
        "--retries",
        type=int,
        default=2,
        help="measure again so often when too few slices were quiet (default: %(default)s)",
    )
    add(
        "--min-quiet",
        type=float,
        default=0.4,
        help="share of slices that must be quiet (default: %(default)s)",
    )
    add("--server-cpu", type=int, default=0, help="default: %(default)s")
    add("--load-cpu", type=int, default=1, help="default: %(default)s")
    add("--kinds", metavar="KIND,...", help="of --transfer and --over (default: all)")
    add("--json", type=Path, metavar="FILE", help="write everything measured, slice by slice")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choices(parser)
    add_conduct(parser)
    arguments = parser.parse_args()
    if not 1 <= arguments.rounds <= 1000 or not 0 <= arguments.retries <= 100:
        parser.error("--rounds must be 1 to 1000, --retries 0 to 100")
    if not 0.1 <= arguments.seconds <= 300:
        parser.error("--seconds must be 0.1 to 300")
    if arguments.report is not None and arguments.report.exists():
        parser.error(f"--report makes a new folder, and {arguments.report} exists")
    if arguments.memory is not None and arguments.memory < 1:
        parser.error("--memory takes a positive number of connections")
    if arguments.transfer is not None and arguments.transfer < 1:
        parser.error("--transfer takes a positive number of MiB")
    kinds = _over.KINDS if arguments.over else _transfer.KINDS
    arguments.kinds = arguments.kinds.split(",") if arguments.kinds else list(kinds)
    if not set(arguments.kinds) <= set(kinds):
        parser.error(f"--kinds takes some of {','.join(kinds)}")
    if arguments.asgi is not None and not set(arguments.asgi.split(",")) <= set(_asgi.ROWS):
        parser.error(f"--asgi takes some of {','.join(_asgi.ROWS)}")
    return arguments


def choose_servers(
    arguments: argparse.Namespace, known: dict[str, Spec], interpreter: Interpreter
) -> tuple[list[Spec], list[str]]:
    """The servers asked for that can run, and why the others cannot."""
    extra = [_servers.parse_extra(text, udp=arguments.udp) for text in arguments.server]
    known = known | {spec.name: spec for spec in extra}
    names = arguments.servers.split(",") if arguments.servers else list(known)
    chosen: list[Spec] = []
    skipped: list[str] = []
    for name in [*names, *(spec.name for spec in extra if spec.name not in names)]:
        if name not in known:
            raise ValueError(f"no server {name!r}; there are {', '.join(known)}")
        reason = interpreter.why_missing(known[name])
        if reason:
            skipped.append(f"skipped {name}: {reason}")
        else:
            chosen.append(known[name])
    if not chosen:
        raise ValueError("\n".join(["none of the servers can be run", *skipped]))
    return chosen, skipped


def list_servers(known: dict[str, Spec], interpreter: Interpreter) -> None:
    for name, spec in known.items():
        reason = interpreter.why_missing(spec)
        print(f"{name:16} {'missing: ' + reason if reason else 'installed'}")


def check_cpus(settings: Settings) -> None:
    available = os.sched_getaffinity(0)
    for cpu in (settings.server_cpu, settings.load_cpu):
        if cpu not in available:
            raise ValueError(f"CPU {cpu} is not available (of {sorted(available)})")
    if settings.server_cpu == settings.load_cpu:
        raise ValueError("the server and the generator need a CPU each")


def raise_open_file_limit() -> int:
    """For the servers, which inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def run_memory(specs: list[Spec], wanted: int, limit: int, settings: Settings) -> dict[str, Any]:
    connections = min(wanted, limit - SPARE_FILES)
    if connections < wanted:
        say(f"{connections} connections instead of {wanted}: no more files may be open")
    say(f"memory, {connections} connections")
    results = _measure.run_rounds(
        specs,
        settings.rounds,
        lambda spec: _measure.attempt(spec.name, lambda: _measure.measure_memory_once(spec, connections, settings)),
    )
    print(_table.memory_table(connections, results), flush=True)
    return {"mode": "memory", "connections": connections, "results": results}


def run_echo(specs: list[Spec], config: Config, settings: Settings) -> dict[str, Any]:
    mode = "churn" if settings.churn else "udp" if settings.udp else "echo"
    say(f"{mode}, {config.connections}:{config.size}:{config.depth}")
    results = _measure.run_rounds(specs, settings.rounds, lambda spec: _measure.measure(spec, config, settings))
    print(_table.echo_table(config, mode, results), end="\n\n", flush=True)
    return {
        "mode": mode,
        **dataclasses.asdict(config),
        "ratio_to_c": _table.ratios_to_c(results),
        "results": results,
    }


def run_transfer(specs: list[Spec], mebibytes: int, kinds: list[str], settings: Settings) -> dict[str, Any]:
    say(f"transfers of {mebibytes} MiB")
    results = _transfer.run_rounds(specs, mebibytes << 20, kinds, settings)
    print(_table.transfer_tables(mebibytes, results), flush=True)
    by_name = {f"{kind}, {direction}": servers for (kind, direction), servers in results.items()}
    return {"mode": "transfer", "mebibytes": mebibytes, "results": by_name}


def run_report(
    arguments: argparse.Namespace, specs: list[Spec], limit: int, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Measure what --report shows."""
    for text in (arguments.configs or DEFAULT_CONFIGS).split(","):
        yield run_echo(specs, Config.parse(text), settings)
    yield run_memory(specs, DEFAULT_IDLE, limit, settings)


def run_mode(
    arguments: argparse.Namespace, specs: list[Spec], limit: int, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Measure what was asked for, and print its tables."""
    if arguments.memory is not None:
        yield run_memory(specs, arguments.memory, limit, settings)
    elif arguments.transfer is not None:
        yield run_transfer(specs, arguments.transfer, arguments.kinds, settings)
    elif arguments.over:
        for text in (arguments.configs or _over.DEFAULT_CONFIGS).split(","):
            yield _over.run_over(specs, arguments.kinds, Config.parse(text), settings)
    elif arguments.asgi is not None:
        for row in arguments.asgi.split(","):
            yield _asgi.run_row(row, specs, arguments.python, settings)
    elif arguments.http:
        for text in (arguments.configs or _http.DEFAULT_CONFIGS).split(","):
            yield _http.run_http(specs, _http.HttpConfig.parse(text), settings)
    else:
        default = DEFAULT_CHURN_CONFIGS if settings.churn else DEFAULT_UDP_CONFIGS if settings.udp else DEFAULT_CONFIGS
        for config in [Config.parse(text) for text in (arguments.configs or default).split(",")]:
            yield run_echo(specs, config, settings)


def known_servers(arguments: argparse.Namespace, programs: Programs) -> dict[str, Spec]:
    """The servers of the mode that was chosen."""
    if arguments.transfer:
        return _servers.transfer_servers(arguments.python, _transfer.FILE)
    if arguments.http:
        return _http.known_servers(programs.http_reference, arguments.python)
    if arguments.over:
        return _over.known_servers(arguments.python)
    if arguments.asgi:
        return _asgi.known_servers(arguments.asgi.split(","), arguments.python)
    return _servers.known_servers(programs, arguments.python, udp=arguments.udp)


def run(arguments: argparse.Namespace) -> None:
    programs = build()
    interpreter = Interpreter.probe(arguments.python)
    known = known_servers(arguments, programs)
    if arguments.list:
        list_servers(known, interpreter)
        return
    settings = Settings(
        programs=programs,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        retries=arguments.retries,
        min_quiet=arguments.min_quiet,
        server_cpu=arguments.server_cpu,
        load_cpu=arguments.load_cpu,
        churn=arguments.churn,
        udp=arguments.udp,
        keep_slices=arguments.json is not None,
    )
    check_cpus(settings)
    limit = raise_open_file_limit()
    specs, skipped = choose_servers(arguments, known, interpreter)
    machine = _servers.machine_line(interpreter, os.cpu_count() or 0)
    print("\n\n".join([machine, *skipped]), end="\n\n", flush=True)
    measure = run_mode if arguments.report is None else run_report
    runs = list(measure(arguments, specs, limit, settings))
    record = {
        "date": f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d}",
        "machine": machine,
        "command": command_without_json(sys.argv),
        "skipped": skipped,
        "seconds": settings.seconds,
        "runs": runs,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.report:
        _report.write(arguments.report, record)
        say(f"the report: {arguments.report / 'index.html'}")


def command_without_json(argv: list[str]) -> str:
    """Return the command that measures the same: the file's name says nothing about the results."""
    parts = iter(argv)
    kept = ["python"]
    for part in parts:
        if part == "--json":
            next(parts)
        elif not part.startswith("--json="):
            kept.append(part)
    return shlex.join(kept)


def end_on_signal(number: int, _frame: object) -> NoReturn:
    """Leave through every `with` and `finally`, so that the servers end, too."""
    sys.exit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGHUP, end_on_signal)
    try:
        run(parse_arguments())
    except (BuildError, ServerError, ValueError) as error:
        sys.exit(f"run.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
