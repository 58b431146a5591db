"""Floor 6: the command ``gain-trio``."""

from ._cli import main

__all__ = [
    "main",
]
