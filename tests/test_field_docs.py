"""Each option has its docstring in ``help()``."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
from typing import Any

import attrs
import pytest

import gain_trio
from gain_trio import asgi, callbacks
from gain_trio._kernel import documented_fields

pytestmark = pytest.mark.one_backend

CLASSES = [gain_trio.ServerConfig, gain_trio.Marks, gain_trio.RingOptions, asgi.AsgiConfig, callbacks.Config]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_help_shows_the_docstring_of_each_option(cls: type[Any]) -> None:
    shown = " ".join(pydoc.plain(pydoc.render_doc(cls)).replace("|", " ").split())
    for field in attrs.fields(cls):
        text = inspect.getdoc(getattr(cls, field.name))
        assert text, f"{field.name} has no docstring below it"
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_options_are_what_they_were(cls: type[Any]) -> None:
    one = cls()
    assert copy.copy(one) == one == pickle.loads(pickle.dumps(one)) == attrs.evolve(one)
    assert not hasattr(one, "__dict__")


def test_a_class_without_source_has_no_docstrings() -> None:
    names: dict[str, Any] = {"attrs": attrs, "__name__": "nowhere"}
    exec("@attrs.frozen\nclass Options:\n    size: int = 1\n    '''Bytes.'''\n", names)
    cls = documented_fields(names["Options"])
    assert not inspect.getdoc(cls.size)
    assert cls().size == 1
