"""The pages for those who come from other servers have each option of theirs, and name options that we have."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import click
import granian.cli
import hypercorn.__main__
import pytest
from support.processes import ROOT

from gain_trio import ServerConfig
from gain_trio._command._cli import _parsers
from gain_trio.asgi import AsgiConfig

pytestmark = pytest.mark.one_backend


def of_click(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def of_hypercorn() -> set[str]:
    """Its parser is made inside of a function, so that its source is read."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(hypercorn.__main__))) if isinstance(node, ast.Call)]
    return {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    } | {"-h", "--help"}


SERVERS: dict[str, Callable[[], set[str]]] = {
    "uvicorn": lambda: of_click(importlib.import_module("uvicorn.main").main) | {"--help"},
    "hypercorn": of_hypercorn,
    "granian": lambda: of_click(granian.cli.cli) | {"--help"},
}


def rows(server: str) -> list[tuple[str, str]]:
    """The first two cells of each row of the first table."""
    text = Path(ROOT, "docs", f"migrating-from-{server}.md").read_text()
    table = text.partition("\n|---|---|---|\n")[2].partition("\n\n")[0]
    return [(cells[1], cells[2]) for cells in (line.split("|") for line in table.splitlines())]


@pytest.mark.parametrize("server", SERVERS)
def test_each_of_their_options_has_a_row(server: str) -> None:
    theirs = {name for name in SERVERS[server]() if name.startswith("-")}
    named = {name for cell, _ in rows(server) for name in re.findall(r"`(-[^`]+)`", cell)}
    assert named == theirs


@pytest.mark.parametrize("server", SERVERS)
def test_what_they_become_exists(server: str) -> None:
    ours = {name for action in asgi_parser()._actions for name in action.option_strings} | {"--version"}
    fields = set(attrs.fields_dict(ServerConfig)) | set(attrs.fields_dict(AsgiConfig))
    for _, cell in rows(server):
        for option in re.findall(r"`(?:gain-trio )?(--[a-z-]+)[^`]*`", cell):
            assert option in ours
        for field in re.findall(r"`([a-z_]+)=`", cell):
            assert field in fields


def asgi_parser() -> argparse.ArgumentParser:
    _parser, commands = _parsers()
    return commands.choices["asgi"]
