"""The Python of the documentation, run: every block of every page, in the order of the page."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi_serving import hello
from support.certificates import certificate
from support.documented import Stage, blocks, run_documented_test
from support.processes import ROOT
from support.servers import echo_until_broken

import gain_trio

pytestmark = [pytest.mark.connections, pytest.mark.one_backend, pytest.mark.usefixtures("no_descriptor_leak")]

PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if blocks(page)]


@contextlib.asynccontextmanager
async def open_pool(_address: str) -> AsyncIterator[str]:
    """Stands for a library's."""
    yield "a pool"


async def refresh_cache(_pool: str) -> None:
    """Stands for a program's task."""
    await trio.sleep_forever()


async def app(_scope: Any, _receive: Any, _send: Any) -> None:
    """Stands for an ASGI app, which gets no request."""


GIVEN: dict[str, dict[str, Any]] = {
    "servers.md": {
        "echo": echo_until_broken,
        "open_pool": open_pool,
        "refresh_cache": refresh_cache,
        "address": "tcp://127.0.0.1:0",
    },
    "existing-programs.md": {"app": app},
    "tls-unix-proxies.md": {
        "client": types.SimpleNamespace(remote_address=("192.0.2.1", 5000), local_address=("192.0.2.2", 443))
    },
    "migrating-from-hypercorn.md": {"app": hello},
    "migrating-from-uvicorn.md": {"app": hello},
    "processes.md": {"handler": echo_until_broken, "address": "tcp://127.0.0.1:0"},
}
"""What pieces of programs take for granted, by page."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name == "processes.md" else []) for page in PAGES],
    ids=lambda page: page.name,
)
async def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = types.ModuleType("my_package")
    own.MyProtocol = asyncio.Protocol  # type: ignore[attr-defined]  # of a page about moving one
    monkeypatch.setitem(sys.modules, "my_package", own)
    monkeypatch.chdir(tmp_path)
    if page.name == "tutorial.md":
        (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate().cert_chain_pems))
        (tmp_path / "key.pem").write_bytes(certificate().private_key_pem.bytes())
    await Stage(page, tmp_path, GIVEN.get(page.name, {})).run_page()


@pytest.mark.parametrize("name", ["testing.md", "tutorial.md"])
def test_the_tests_of_a_page_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate().cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(certificate().private_key_pem.bytes())
    tests = gain_trio.run(Stage(page, tmp_path, {}).run_page)
    assert len(tests) == page.read_text().count("\nasync def test_")
    for test in tests:
        run_documented_test(test)


async def test_a_block_that_fails_is_a_failure(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nasync def main():\n    nothing()\n\n\ngain_trio.run(main)\n```\n")
    with pytest.raises(BaseException) as caught:
        await Stage(page, tmp_path, {}).run_page()
    assert caught.group_contains(NameError)
