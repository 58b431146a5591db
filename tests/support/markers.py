"""Which modules can have tests that ``pytest -m`` chooses."""

from __future__ import annotations

import itertools
import re


def may_be_chosen(expression: str, text: str) -> bool:
    """Whether a module with this text can have a test that ``-m expression`` chooses.

    A test of it has each marker in ``pytestmark``, may have each that is elsewhere in the text, and has no other.
    """
    names = set(re.findall(r"\w+", expression)) - {"and", "or", "not"}
    every = re.search(r"^pytestmark = (?:\[.*?\]$|[^\[\n]*$)", text, re.DOTALL | re.MULTILINE)
    choices = [
        (True,)
        if every and re.search(rf"mark\.{name}\b", every[0])
        else (False, True)
        if f"mark.{name}" in text
        else (False,)
        for name in names
    ]
    return any(
        eval(expression, {"__builtins__": {}}, dict(zip(names, values, strict=True)))
        for values in itertools.product(*choices)
    )
