"""How Sphinx builds the documentation: ``make docs``, with warnings as errors.

Sphinx has three advantages here: the docstrings are written in its language, it checks every reference in them, and
an extension can list the documented names: a public name that is missing in the reference is a warning, and so an error.
MyST reads the pages, which are Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))

import inventories

import gain_trio
import gain_trio.asgi
import gain_trio.asyncio_bridge
import gain_trio.callbacks
import gain_trio.logs
import gain_trio.sockets
import gain_trio.testing

project = "gain_trio"
author = "The gain_trio developers"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = gain_trio.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
intersphinx_mapping = inventories.write(Path(__file__).parent.parent / "build" / "inventories")
html_theme = "furo"
html_title = f"gain_trio {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# Every reference to a name of ours must lead somewhere.  One to another package is a link if inventories.py has it.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"gain_trio\.(\w+\.)?_.*"),  # private types in signatures: the text describes them
    (r"py:.*", r"(?!gain_trio\b).*\..*"),  # of other packages
    (r"py:.*", r"[A-Z]\w*(Error|Warning)"),  # of Python
    (r"py:(class|data|obj)", r"(Buffer|Self|TracebackType|None)"),
    (r"py:(class|obj)", r"(Handler|DatagramHandler|File|HasFileno|Result|optional)"),  # aliases, spelled out beside
    (r"py:class", r"(Architecture|AtMaxConnections|BalancerName|ContextSource|Lifespan)"),  # the same, of options
    (r"py:class", r"gain_trio\.callbacks\._conn\.(Reader|Writer)"),
    (r"py:exc", r"(what|and|Everything|as) .*"),  # the first words of a sentence under Raises
]


def read_google_style(  # noqa: PLR0917  # Sphinx's signature
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],
) -> None:
    """Args, Raises and Returns of a docstring.

    What Napoleon does when it is an extension, but for one thing: it takes the beginning of an attribute's text for its
    type, if a colon follows.  Here that is a sentence.
    """
    kind = "method" if what in {"attribute", "property", "data"} else what
    lines[:] = GoogleDocstring(lines, Config(napoleon_use_rtype=False), app, kind, name, obj, options).lines()


def check_that_all_is_documented(_app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn of a public name without an entry in the reference."""
    domain = environment.get_domain("py")
    assert isinstance(domain, PythonDomain)
    homes = (
        gain_trio,
        gain_trio.asgi,
        gain_trio.asyncio_bridge,
        gain_trio.callbacks,
        gain_trio.logs,
        gain_trio.sockets,
        gain_trio.testing,
    )
    for name in (f"{home.__name__}.{name}" for home in homes for name in home.__all__):
        if name not in domain.objects:
            logging.getLogger(__name__).warning("%s is public, and has no entry in the reference", name)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", read_google_style)
    app.connect("env-check-consistency", check_that_all_is_documented)
