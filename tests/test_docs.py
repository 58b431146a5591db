"""The documentation says what there is: every public name, every name of what is ported from, code that is code."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.no_run

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))

GAIN = """
ListenAndServe NewServer Start StartAsMainProcess Shutdown AsyncShutdown ActiveConnections IsRunning EventHandler
DefaultEventHandler OnStart OnAccept OnRead OnWrite OnClose Conn Reader Read WriteTo Next Peek Discard InboundBuffered
Writer Write ReadFrom OutboundBuffered Socket Fd SetReadBuffer SetWriteBuffer SetLinger SetKeepAlivePeriod SetNoDelay
Context SetContext LocalAddr RemoteAddr Close Config NewConfig Option ConfigOption Architecture AsyncHandler
GoroutinePool CPUAffinity ProcessPriority Workers CBPFilter LoadBalancing SocketRecvBufferSize SocketSendBufferSize
TCPKeepAlive LoggerLevel PrettyLogger MaxSQEntries MaxCQEvents WithArchitecture WithAsyncHandler WithGoroutinePool
WithCPUAffinity WithProcessPriority WithWorkers WithCBPF WithLoadBalancing WithSocketRecvBufferSize
WithSocketSendBufferSize WithTCPKeepAlive WithLoggerLevel WithPrettyLogger WithMaxSQEntries WithMaxCQEvents Reactor
SocketSharding ServerArchitecture RoundRobin LeastConnections SourceIPHash NewLogger ErrUnsupportedProtocol
ErrUnsupportedTCPProtocol ErrUnsupportedUDPProtocol ErrNoIPv4AddressOnInterface ErrNotSupported ErrSkippable
ErrIsEmpty ErrConnectionAlreadyClosed ErrConnectionClosed ErrOpNotAvailableInMode ErrConnectionQueueIsNil
ErrUnknownConnectionState ErrInvalidTimeDuration ErrInvalidState ErrAddressNotFound ErrServerAlreadyRunning
ErrGettingSQE ErrorOpNotAvailableInMode ErrorUnknownConnectionState ErrorAddressNotFound TCP TCP4 TCP6 UDP UDP4 UDP6
UNIX
"""
"""The exported names of Gain v0.4.0-alpha, but for its inner packages, which are named as packages."""

TRANSPORT = """
write writelines write_eof can_write_eof close abort is_closing pause_reading resume_reading is_reading get_extra_info
set_write_buffer_limits get_write_buffer_limits get_write_buffer_size get_protocol set_protocol connection_made data_received
eof_received connection_lost pause_writing resume_writing get_buffer buffer_updated
"""


def code_in(page: str) -> str:
    """All that stands between backticks, but for blocks."""
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return " ".join(re.findall(r"`([^`]+)`", text))


def documented() -> dict[str, list[str]]:
    """The names that the reference documents, by module."""
    names: dict[str, list[str]] = {}
    for page in sorted((DOCS / "reference").glob("*.rst")):
        text = page.read_text()
        [module] = re.findall(r"^\.\. (?:current)?module:: ([\w.]+)$", text, re.MULTILINE)
        names.setdefault(module, []).extend(re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE))
    return names


def test_the_reference_has_every_public_name_and_no_other() -> None:
    names = documented()
    assert set(names) == {
        "gain_trio",
        *(f"gain_trio.{name}" for name in ("asgi", "asyncio_bridge", "callbacks", "logs", "sockets", "testing")),
    }
    for module, own in names.items():
        assert sorted(own) == sorted(importlib.import_module(module).__all__)


def test_every_page_of_the_reference_is_in_its_table_of_contents() -> None:
    pages = {page.stem for page in (DOCS / "reference").glob("*.rst")}
    assert set(re.findall(r"^   reference/(\w+)$", (DOCS / "reference.rst").read_text(), re.MULTILINE)) == pages


def test_porting_from_gain_has_every_name_of_gains() -> None:
    named = set(re.findall(r"\w+", code_in("porting-from-gain.md")))
    assert not set(GAIN.split()) - named


def test_porting_from_asyncio_has_every_method() -> None:
    named = set(re.findall(r"\w+", code_in("porting-from-asyncio.md")))
    assert not set(TRANSPORT.split()) - named


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_python_in_a_page_is_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        source = textwrap.dedent(block)
        if re.search(r"^(async with|await) ", source, re.MULTILINE):  # a piece of a function
            source = "async def function():\n" + textwrap.indent(source, "    ")
        ast.parse(source)


def test_every_page_is_in_the_table_of_contents() -> None:
    tables = re.findall(r"```\{toctree\}(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    pages = {path.stem for path in [*PAGES, *DOCS.glob("*.rst")]} - {"index"}
    assert sorted(re.findall(r"^\w[\w-]*$", "".join(tables), re.MULTILINE)) == sorted(pages)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_files_that_the_design_names_exist() -> None:
    named = re.findall(r"`((?:_ffi|gain_trio|tests)/[\w/.]+)`", (DOCS / "design.md").read_text())
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w.-]+)\)", (ROOT / "README.md").read_text()))
    assert {path.name for path in PAGES} - {"index.md"} <= linked


def test_the_picture_is_that_of_the_recorded_results() -> None:
    figures, results = ROOT / "benchmarks" / "figures.py", ROOT / "benchmarks" / "results" / "echo.json"
    drawn = subprocess.run([sys.executable, figures, results], capture_output=True, encoding="utf-8", check=True)
    assert drawn.stdout == (DOCS / "echo.svg").read_text(encoding="utf-8"), f"remake it: {figures} {results}"


def test_the_first_program_is_that_of_the_readme() -> None:
    block = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    [readme, *_] = block.findall((ROOT / "README.md").read_text())
    [index, *_] = block.findall((DOCS / "index.md").read_text())
    assert index == readme
