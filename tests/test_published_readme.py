"""The README as a package index shows it."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.one_backend

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://example.org/gain_trio"


@pytest.fixture
def tool() -> Any:
    """The module of tools/."""
    spec = importlib.util.spec_from_file_location("published_readme", ROOT / "tools" / "published_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", text)


@pytest.mark.parametrize("repository", ["", ADDRESS])
def test_no_link_is_relative(tool: Any, repository: str) -> None:
    assert any(not link.startswith("https:") for link in links(README))
    assert all(link.startswith("https:") for link in links(tool.published(README, repository)))


def test_links_lead_to_the_files(tool: Any) -> None:
    published = tool.published("![a](docs/a.svg) [b](docs/b.md#c) [d](examples/) [e](https://example.com)", ADDRESS)
    assert links(published) == [
        f"{ADDRESS}/raw/main/docs/a.svg",
        f"{ADDRESS}/blob/main/docs/b.md#c",
        f"{ADDRESS}/tree/main/examples/",
        "https://example.com",
    ]


def test_without_an_address_the_text_stays(tool: Any) -> None:
    assert tool.published("see [Servers](docs/servers.md)", "") == "see Servers"
    assert tool.project_urls("") == {}
    assert tool.project_urls(ADDRESS)["Source"] == ADDRESS
