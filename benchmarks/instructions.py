"""Count the instructions that a message costs a server, outside the kernel.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --servers gain_trio,c --configs 64:64:1,1:64:1 --functions 30
    python benchmarks/instructions.py --http --servers gain_trio,uvloop --configs 64:1,64:16
    python benchmarks/instructions.py --asgi plain,json,pipelined --servers gain_trio,uvicorn
    python benchmarks/instructions.py --churn --servers gain_trio,gain_trio-callbacks,uvloop
    python benchmarks/instructions.py --udp --servers gain_trio,gain_trio-handler,uvloop

A server runs under valgrind's callgrind (``apt install valgrind``), which counts the instructions of a process whatever
else the machine does: the same twice to about a percent, where CPU time differs by ten.  It counts none of the kernel's,
which are most of the CPU time of a small message.  So this shows what a change of the code saves, and ``run.py`` what that
is worth.

The client has one round after the other: it sends a message, or a batch of requests, on each connection, and waits for all
answers.  Counting begins after some rounds, when all connections are open and all code has run.  With ``--churn`` a round is
the whole life of each connection: connect, one message echoed, the end of both sides.  With ``--udp`` a message is a
datagram, and a connection a connected UDP socket.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import _asgi
import _http
import _over
import _over_load
import _servers
from _build import BUILD, BuildError, build
from _measure import Config, LoadError
from _servers import Interpreter, ServerError, Spec
from _transfer import make_certificate

DEFAULT_SERVERS = "c,gain_trio,gain_trio-callbacks,uvloop"
DEFAULT_CONFIGS = "64:64:1,1:64:1"
WARMUP_ROUNDS = 20
LEAST_ROUNDS = 10
PATIENCE_SECONDS = 120.0
SERVER_CPU = 0
VALGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-instr=no", "--vgdb-poll=1000")


@dataclasses.dataclass(frozen=True)
class Load:
    """What one round sends on each connection, and how the answer to it is recognised."""

    connections: int
    messages: int
    """In ``request``."""
    request: bytes
    is_answer: Callable[[bytes], bool]
    certificate: Path | None = None
    """The certificate of a server that speaks TLS."""
    is_churn: bool = False
    """Whether each round has connections of its own."""
    is_udp: bool = False
    """Whether a message is a datagram."""


def echo_load(text: str) -> Load:
    """The load of a configuration, connections : message size : messages under way."""
    config = Config.parse(text)
    request = (bytes(range(256)) * (config.size * config.depth // 256 + 1))[: config.size * config.depth]
    return Load(config.connections, config.depth, request, lambda answer: answer == request)


def request_load(connections: int, depth: int, request: str, body: bytes) -> Load:
    """A number of requests at a time, each of which is answered with this body."""

    def is_answer(answer: bytes) -> bool:
        return answer.count(body) == depth and answer.endswith(body)

    return Load(connections, depth, request.encode() * depth, is_answer)


def http_load(text: str) -> Load:
    """The load of a configuration, connections : requests at a time."""
    config = _http.HttpConfig.parse(text)
    return request_load(config.connections, config.depth, _http.fields(), _http.PLAINTEXT)


def asgi_load(name: str) -> Load:
    """The load of a row of ``run.py --asgi``."""
    row = _asgi.ROWS[name]
    if row.request is None or row.body is None or name == "memory":
        raise ValueError(
            f"the instructions of a request are counted for plain, json, fields, pipelined, many, not {name}"
        )
    return request_load(row.config.connections, row.config.depth, row.request, row.body)


def load_of(text: str, arguments: argparse.Namespace) -> Load:
    """The load of a configuration, as the arguments want it."""
    load = (asgi_load if arguments.asgi else http_load if arguments.http else echo_load)(text)
    certificate = make_certificate(BUILD) if arguments.tls else None
    return dataclasses.replace(load, certificate=certificate, is_churn=arguments.churn, is_udp=arguments.udp)


def control(pid: int, command: str) -> None:
    """Have callgrind do something in the server."""
    result = subprocess.run(
        ["vgdb", f"--pid={pid}", *command.split()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise ServerError(f"vgdb cannot control the server: {result.stderr.strip()}")


@contextmanager
def connected(port: int, load: Load) -> Iterator[list[socket.socket]]:
    """The connections of a load."""
    with ExitStack() as stack:
        if load.is_udp:
            clients = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(load.connections)]
            for client in clients:
                client.settimeout(PATIENCE_SECONDS)
                client.connect(("127.0.0.1", port))
            yield clients
            return
        connect = partial(_over_load.connect, str(port), tls=load.certificate is not None)
        yield [stack.enter_context(connect()) for _ in range(load.connections)]


def run_round(clients: list[socket.socket], load: Load) -> None:
    """Send the request on every connection, and receive the answer on each."""
    for client in clients:
        client.sendall(load.request)
    for client in clients:
        answer = b""
        while not load.is_answer(answer):
            data = client.recv(1 << 20)
            if not data:
                raise LoadError(f"the server has ended a connection after {answer[:200]!r}")
            answer += data


def end(clients: list[socket.socket]) -> None:
    """End all connections in good order: this side first, and then the server's."""
    for client in clients:
        client.shutdown(socket.SHUT_WR)
    for client in clients:
        if client.recv(1):
            raise LoadError("more came back than was sent")


@contextmanager
def rounds_of(port: int, load: Load) -> Iterator[Callable[[int], None]]:
    """What runs a number of rounds."""
    if load.is_churn:

        def churn(rounds: int) -> None:
            for _ in range(rounds):
                with connected(port, load) as clients:
                    run_round(clients, load)
                    end(clients)

        yield churn
        return
    with connected(port, load) as clients:

        def repeat(rounds: int) -> None:
            for _ in range(rounds):
                run_round(clients, load)

        yield repeat


def counted(profile: Path) -> int:
    """The instructions of a profile that callgrind has written."""
    found = re.search(r"^(?:totals|summary): (\d+)", profile.read_text(errors="replace"), re.MULTILINE)
    if found is None:
        raise LoadError(f"callgrind has written no total to {profile}")
    return int(found[1])


def listed(profile: Path, functions: int, messages: int) -> str:
    """The functions with the most instructions, a message, without and with those that they call."""
    lines = [f"{'instructions a message':>24}"]
    for inclusive in ("no", "yes"):
        result = subprocess.run(
            ["callgrind_annotate", f"--inclusive={inclusive}", "--threshold=100", "--auto=no", str(profile)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        found = re.findall(r"^ *([\d,]+) \( *[\d.]+%\) +(?:\S*?:)?(.+)$", result.stdout, re.MULTILINE)
        lines.append("of the function itself:" if inclusive == "no" else "with those that it calls:")
        for count, name in found[: functions + 1]:
            lines.append(f"{int(count.replace(',', '')) / messages:>24,.1f}  {name.split(' [')[0][:90]}")
    return "\n".join(lines)


def measure(spec: Spec, load: Load, messages: int, functions: int) -> float:
    """The instructions that a message costs the server."""
    rounds = max(LEAST_ROUNDS, messages // (load.connections * load.messages))
    prefix = BUILD / f"callgrind.{spec.name}"
    for old in BUILD.glob(f"{prefix.name}.*"):
        old.unlink()
    children = f"--trace-children={'yes' if spec.has_worker else 'no'}"
    under = dataclasses.replace(
        spec, command=(*VALGRIND, children, f"--callgrind-out-file={prefix}.out", *spec.command)
    )
    variables = {"TRANSFER_CERTIFICATE": str(load.certificate)} if load.certificate else {}
    with (
        _servers.running(under, SERVER_CPU, variables=variables, patience=PATIENCE_SECONDS) as server,
        rounds_of(server.port, load) as run_rounds,
    ):
        run_rounds(WARMUP_ROUNDS)
        control(server.pid, "instrumentation on")
        run_rounds(LEAST_ROUNDS)
        time.sleep(0.2)  # what follows the last answer of a round counts for none
        control(server.pid, "zero")
        run_rounds(rounds)
        time.sleep(0.2)
        control(server.pid, "dump counted")
    profile, *_ = sorted(BUILD.glob(f"{prefix.name}.out.*"))
    total = rounds * load.connections * load.messages
    if functions:
        print(f"\n{spec.name}\n{listed(profile, functions, total)}\n", flush=True)
    return counted(profile) / total


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print a table for each configuration."""
    if shutil.which("valgrind") is None:
        raise ValueError("counting instructions needs valgrind (apt install valgrind)")
    programs = build()
    interpreter = Interpreter.probe(arguments.python)
    configs = arguments.configs.split(",")
    if arguments.tls:
        known = _over.known_servers(arguments.python)
    elif arguments.asgi:
        known = _asgi.known_servers(configs, arguments.python)
    elif arguments.http:
        known = _http.known_servers(programs.http_reference, arguments.python)
    else:
        known = _servers.known_servers(programs, arguments.python, udp=arguments.udp)
    extra = (_servers.parse_extra(text, udp=arguments.udp) for text in arguments.server)
    known |= {spec.name: spec for spec in extra}
    names = [name for name in (arguments.servers or ",".join(known)).split(",") if name in known]
    if not names:
        raise ValueError(f"none of these servers: there are {', '.join(known)}")
    print(_servers.machine_line(interpreter, os.cpu_count() or 0), end="\n\n", flush=True)
    for text in configs:
        load = load_of(text, arguments)
        if arguments.asgi:
            known |= _asgi.known_servers([text], arguments.python)
        rows = []
        for name in names:
            reason = interpreter.why_missing(known[name])
            figure = reason or f"{measure(known[name], load, arguments.messages, arguments.functions):,.0f}"
            rows.append(f"| {name} | {figure} |")
        unit = "connection" if arguments.churn else "datagram" if arguments.udp else "message"
        print(f"### {text}\n\n| server | instructions a {unit} |\n|---|--:|", *rows, sep="\n", end="\n\n", flush=True)


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--servers",
        metavar="NAME,...",
        help=f"which, of run.py --list (default: {DEFAULT_SERVERS}; with --http and --asgi all)",
    )
    add("--server", action="append", default=[], metavar="'NAME=COMMAND {port}'", help="another server")
    add("--python", default=sys.executable, metavar="PATH", help="the Python that runs the servers (default: this one)")
    add(
        "--configs",
        metavar="CONNECTIONS:SIZE:DEPTH,...",
        help=f"default: {DEFAULT_CONFIGS}, or {_http.DEFAULT_CONFIGS}",
    )
    add("--http", action="store_true", help="HTTP plaintext; --configs CONNECTIONS:DEPTH,...")
    add("--asgi", metavar="ROW,...", help="ASGI apps, the rows of run.py: plain, json, fields, pipelined, many")
    add("--tls", action="store_true", help="echo over TLS")
    add("--churn", action="store_true", help="connect, echo one message, close, in each round")
    add("--udp", action="store_true", help="echo datagrams")
    add("--messages", type=int, default=6400, help="how many are counted (default: %(default)s)")
    add("--functions", type=int, default=0, help="functions of each server that are listed (default: none)")
    arguments = parser.parse_args()
    if arguments.servers is None and not (arguments.http or arguments.asgi):
        arguments.servers = DEFAULT_SERVERS
    arguments.configs = (
        arguments.asgi or arguments.configs or (_http.DEFAULT_CONFIGS if arguments.http else DEFAULT_CONFIGS)
    )
    try:
        run(arguments)
    except (BuildError, ServerError, LoadError, ValueError) as error:
        sys.exit(f"instructions.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
