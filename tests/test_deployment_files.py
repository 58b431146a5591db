"""The files of examples/deployment, checked by the tools that read them, where these are installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.examples import EXAMPLES

from gain_trio._command._cli import _parsers
from gain_trio._command._serve_options import config_of

pytestmark = pytest.mark.one_backend

FILES = EXAMPLES / "deployment"
PROBES = ("readinessProbe", "livenessProbe")
DOCKERFILE = (FILES / "Dockerfile").read_text()
SERVICE = (FILES / "gain-trio.service").read_text()


def instruction(name: str) -> list[str]:
    """The array of an instruction of the Dockerfile."""
    found: list[str] = json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    return found


def setting(name: str) -> str:
    """A setting of the unit."""
    [value] = re.findall(rf"^{name}=(.*)$", SERVICE, re.MULTILINE)
    return str(value)


def kubernetes() -> dict[str, Any]:
    """The deployment, read."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the packages that build the documentation")
    found: dict[str, Any] = yaml.safe_load((FILES / "kubernetes.yaml").read_text())
    return found


def graceful_timeout(arguments: list[str]) -> float:
    """What the command makes of the arguments; argparse ends the process for one that it does not know."""
    return config_of(_parsers()[0].parse_args(arguments)).graceful_timeout


def test_the_unit_starts_the_command_and_waits_for_its_end() -> None:
    program, *arguments = shlex.split(setting("ExecStart"))
    assert Path(program).name == "gain-trio"
    assert float(setting("TimeoutStopSec")) > graceful_timeout(arguments) + 5
    assert setting("KillMode") == "mixed"
    assert (setting("Type"), setting("NotifyAccess")) == ("notify", "main")
    assert "fd://systemd" in arguments


def test_the_image_starts_the_command() -> None:
    program, *arguments = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    assert program == "gain-trio"
    assert graceful_timeout(arguments) == 30


def test_the_pod_starts_the_command_and_waits_for_its_end() -> None:
    pod = kubernetes()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    _program, *entry = instruction("ENTRYPOINT")
    [_sleep, pause] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > graceful_timeout([*entry, *container["args"]]) + float(pause) + 5
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [f"tcp://0.0.0.0:{ports[name]}" for name in ("server", "metrics")] == [entry[1], entry[-1]]
    assert container["securityContext"]["runAsNonRoot"]
    [user] = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert user == str(container["securityContext"]["runAsUser"]), "runAsNonRoot: a name could be root's"
    probes = {container[name]["httpGet"]["path"]: container[name]["httpGet"]["port"] for name in PROBES}
    assert probes == {"/ready": "metrics", "/healthz": "metrics"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("broken", [False, True])
def test_systemd_accepts_the_units(tmp_path: Path, broken: bool) -> None:
    """With what this machine lacks, a folder and a program, replaced; and with a setting that there is not, it complains."""
    service = SERVICE.replace("/opt/app/venv/bin/gain-trio", sys.executable).replace("/opt/app", "/")
    (tmp_path / "gain-trio.service").write_text(service.replace("KillMode=", "KilMode=") if broken else service)
    shutil.copy(FILES / "gain-trio.socket", tmp_path)
    units = [str(tmp_path / name) for name in ("gain-trio.service", "gain-trio.socket")]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )
    complaints = [line for line in checked.stderr.splitlines() if "gain-trio" in line]
    assert bool(complaints) is broken, checked.stderr
