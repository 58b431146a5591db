"""Which modules can have tests that ``pytest -m`` chooses."""

from __future__ import annotations

import itertools
import re


def may_be_chosen(expression: str, text: str) -> bool:
    """Whether a module with this text can have a test that ``-m expression`` chooses: it has each marker or has it not."""
    names = set(re.findall(r"\w+", expression)) - {"and", "or", "not"}
    choices = [(False, True) if f"mark.{name}" in text else (False,) for name in names]
    return any(
        eval(expression, {"__builtins__": {}}, dict(zip(names, values, strict=True)))
        for values in itertools.product(*choices)
    )
