"""Objects that are named as ``package.module:name``, by an operator or a program: what is wrong with a name."""

from __future__ import annotations

import difflib
import re
from typing import Final

_FILE: Final = re.compile(r"(?:\./)*(.*?)(?:\.py)?")
"""The name of a file, such as ``./app.py``."""


def check_module_name(module: str, attribute: str) -> None:
    """Refuse the name of a file, or a relative name, in place of a module's.

    Raises:
      ValueError: ``module`` is one; says what to write.
    """
    if "/" in module or module.endswith(".py") or module.startswith("."):
        found = _FILE.fullmatch(module)
        assert found is not None
        cure = found[1].strip("/.").replace("/", ".") or "package.module"
        raise ValueError(f"{module!r} is a file, and what is served is named by its module: write {cure}:{attribute}")


def is_missing(error: ImportError, module: str) -> bool:
    """Whether there is no such module, rather than one that it imports."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")


def has_no(module: str, found: object, attribute: str, part: str) -> str:
    """The message that what was found has no such attribute, with one that resembles it."""
    near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=1)
    cure = f": did you mean {near[0]!r}?" if near else ""
    return f"the module {module!r} has no {attribute!r}{cure}"
