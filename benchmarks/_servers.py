"""The servers that can be measured: which there are, which are installed, and running one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _build import BUILD, HERE, Programs

SERVERS = HERE / "servers"
START_SECONDS = 15.0
STOP_SECONDS = 2.0

PACKAGES = (
    "gain_trio",
    "trio",
    "anyio",
    "uvloop",
    "rloop",
    "uvicorn",
    "httptools",
    "websockets",
    "granian",
    "hypercorn",
    "starlette",
)

# name, file in servers/, its second argument, what must be importable
PYTHON_SERVERS = (
    ("gain_trio", "gain_trio_pull.py", None, ("gain_trio",)),
    ("gain_trio-callbacks", "gain_trio_callbacks.py", None, ("gain_trio",)),
    ("gain_trio_sockets", "gain_trio_sockets.py", None, ("gain_trio", "trio")),
    ("gain_trio-deadlines", "gain_trio_deadlines.py", None, ("gain_trio", "trio")),
    ("gain_trio-protocol", "gain_trio_protocol.py", None, ("gain_trio",)),
    ("uvloop", "asyncio_protocol.py", "uvloop", ("uvloop",)),
    ("rloop", "asyncio_protocol.py", "rloop", ("rloop",)),
    ("asyncio", "asyncio_protocol.py", "asyncio", ()),
    ("uvloop-streams", "asyncio_streams.py", "uvloop", ("uvloop",)),
    ("asyncio-streams", "asyncio_streams.py", "asyncio", ()),
    ("trio", "trio_streams.py", None, ("trio",)),
    ("trio-accelerated", "trio_streams.py", "accelerated", ("gain_trio", "trio")),
    ("trio-on-ring", "trio_streams.py", "ring", ("gain_trio", "trio")),
    ("trio-accelerated-on-ring", "trio_streams.py", "accelerated-ring", ("gain_trio", "trio")),
    ("anyio-uvloop", "anyio_streams.py", "uvloop", ("anyio", "uvloop")),
    ("anyio-trio", "anyio_streams.py", "trio", ("anyio", "trio")),
    ("anyio-trio-accelerated", "anyio_streams.py", "trio-accelerated", ("gain_trio", "anyio", "trio")),
    ("anyio-trio-accelerated-on-ring", "anyio_streams.py", "trio-accelerated-ring", ("gain_trio", "anyio", "trio")),
)

DATAGRAM_SERVERS = (
    ("gain_trio", "gain_trio_datagrams.py", None, ("gain_trio",)),
    ("gain_trio-handler", "gain_trio_datagram_handler.py", None, ("gain_trio",)),
    ("uvloop", "asyncio_datagrams.py", "uvloop", ("uvloop",)),
    ("asyncio", "asyncio_datagrams.py", "asyncio", ()),
    ("trio", "trio_datagrams.py", None, ("trio",)),
    ("trio-accelerated", "trio_datagrams.py", "accelerated", ("gain_trio", "trio")),
    ("trio-accelerated-on-ring", "trio_datagrams.py", "accelerated-ring", ("gain_trio", "trio")),
)

# The same of the servers of large transfers; all take the address and the file that they send.
TRANSFER_SERVERS = (
    ("gain_trio", "transfer_gain_trio.py", None, ("gain_trio",)),
    ("gain_trio-sockets", "transfer_gain_trio.py", "sockets", ("gain_trio", "trio")),
    ("uvloop", "transfer_protocol.py", "uvloop", ("uvloop",)),
    ("uvloop-streams", "transfer_streams.py", "uvloop", ("uvloop",)),
    ("asyncio", "transfer_protocol.py", "asyncio", ()),
    ("trio", "transfer_trio.py", None, ("trio",)),
)

PROBE = """
import importlib, importlib.metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        found[name] = {"missing": f"{type(error).__name__}: {error}"}
        continue
    try:
        found[name] = {"version": importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        found[name] = {"version": "of unknown version"}
python = f"{platform.python_implementation()} {platform.python_version()}"
print(json.dumps({"python": python, "packages": found}))
"""


class ServerError(Exception):
    """A server does not start, or ends by itself."""


@dataclass(frozen=True)
class Spec:
    name: str
    command: tuple[str, ...]  # "{port}" stands for the port
    needs: tuple[str, ...] = ()
    udp: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)  # of its environment, beside those of this process
    has_worker: bool = False  # its process serves nothing, but starts one that does, and that one is measured


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs the servers, and what it has."""

    path: str
    version: str
    packages: dict[str, dict[str, str]]

    @classmethod
    def probe(cls, path: str) -> Interpreter:
        # From the directory of the servers, so that exactly what they can import is found.
        result = subprocess.run(
            [path, "-c", PROBE, *PACKAGES],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=SERVERS,
        )
        if result.returncode != 0:
            raise ServerError(f"{path} does not run: {result.stderr.strip()}")
        found: dict[str, Any] = json.loads(result.stdout)
        return cls(path, found["python"], found["packages"])

    def why_missing(self, spec: Spec) -> str | None:
        for name in spec.needs:
            if "missing" in self.packages[name]:
                return f"{name} cannot be imported ({self.packages[name]['missing']})"
        return None

    def versions(self) -> str:
        present = [f"{name} {facts['version']}" for name, facts in self.packages.items() if "version" in facts]
        return ", ".join([self.version, *present])


def known_servers(programs: Programs, python: str, *, udp: bool) -> dict[str, Spec]:
    reference = programs.datagram_reference if udp else programs.reference
    specs = {"c": Spec("c", (str(reference), "{port}"), udp=udp)}
    for name, file, argument, needs in DATAGRAM_SERVERS if udp else PYTHON_SERVERS:
        command = (python, str(SERVERS / file), "{port}", *([argument] if argument else []))
        specs[name] = Spec(name, command, needs, udp)
    return specs


def transfer_servers(python: str, file: Path) -> dict[str, Spec]:
    return {
        name: Spec(name, (python, str(SERVERS / script), "{port}", str(file), *([argument] if argument else [])), needs)
        for name, script, argument, needs in TRANSFER_SERVERS
    }


def parse_extra(text: str, *, udp: bool) -> Spec:
    name, equals, command = text.partition("=")
    if not (name and equals and "{port}" in command):
        raise ValueError(f"--server takes 'name=command {{port}}', not {text!r}")
    return Spec(name, tuple(shlex.split(command)), udp=udp)


def machine_line(interpreter: Interpreter, cores: int) -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"Linux {platform.release()}, {model}, {cores} cores; {interpreter.versions()}"


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Processes started inside run on that CPU only: a child inherits it, so there is no gap."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process started with start_new_session, and whatever it has started itself."""
    if process.returncode is not None:
        return  # collected already: by now the number may be another process's
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    # Looked at but not collected (WNOWAIT): so long the number of the group stays ours.
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < deadline and os.waitid(os.P_PID, process.pid, how) is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(kind: socket.SocketKind) -> int:
    """A port below the ephemeral ones, so that no outgoing connection takes it meanwhile."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket(type=kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port from 20000 to 32000")


def answers(port: int, *, udp: bool) -> bool:
    """Whether a server is there: by accepting a connection, or by echoing a datagram."""
    with socket.socket(type=socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(("127.0.0.1", port))
            if udp:
                probe.send(b"?")
                return probe.recv(1) == b"?"
        except OSError:
            return False
        return True


def cpu_seconds(pid: int) -> float:
    """What the process has used, all threads, as the scheduler accounts for it."""
    return _scheduled(pid, 0)


def run_delay(pid: int) -> float:
    """The seconds in which threads of the process were ready to run, but their CPU was another's."""
    return _scheduled(pid, 1)


def _scheduled(pid: int, column: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[column]) for task in tasks) / 1e9


class Server:
    """A server process; see running()."""

    def __init__(self, spec: Spec, cpu: int, path: str | None, variables: dict[str, str]) -> None:
        self.spec = spec
        self.port = 0 if path else free_port(socket.SOCK_DGRAM if spec.udp else socket.SOCK_STREAM)
        self.address = path or str(self.port)
        self.log = BUILD / f"{spec.name}.log"
        command = [part.replace("{port}", self.address) for part in spec.command]
        with self.log.open("wb") as log, pinned(cpu):
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | dict(spec.variables) | variables,
                )
            except OSError as error:
                raise ServerError(f"{spec.name}: {error}") from error
        self.pid = self._process.pid

    def end(self) -> None:
        end_group(self._process)

    def wait_until_listening(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"{self.spec.name} ended at once: {self._last_words()}")
            if self._is_there():
                time.sleep(0.1)
                if self.spec.has_worker:
                    self.pid = self._worker_pid()
                return
            time.sleep(0.02)
        raise ServerError(f"{self.spec.name} was not listening after {seconds:.0f} s")

    def _worker_pid(self) -> int:
        """The child that has used most CPU time: beside the worker there may be one that keeps track of resources."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        children = [int(number) for task in tasks for number in task.read_text().split()]
        if not children:
            raise ServerError(f"{self.spec.name} has started no worker")
        return max(children, key=cpu_seconds)

    def _is_there(self) -> bool:
        if self.port:
            return answers(self.port, udp=self.spec.udp)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(self.address) == 0

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.returncode}, nothing said"

    def resident_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ServerError(f"{self.spec.name} has ended: {self._last_words()}")


@contextlib.contextmanager
def running(
    spec: Spec,
    cpu: int,
    *,
    path: str | None = None,
    variables: dict[str, str] | None = None,
    patience: float = START_SECONDS,
) -> Iterator[Server]:
    """The server listens inside the block and ends with it, and so does its process group.

    Args:
      path: of the Unix socket to listen at; TCP without.
      variables: of its environment, beside those of this process.
      patience: seconds until it must listen.
    """
    server = Server(spec, cpu, path, variables or {})
    try:
        server.wait_until_listening(patience)
        yield server
    finally:
        server.end()
