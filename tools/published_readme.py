"""The README as a package index shows it: its links lead somewhere.

Links in README.md are relative, so that they work in a checkout.  A package index resolves none of them.  When the project
has an address, REPOSITORY is it, and links become absolute; before that they become text, and a picture its description.
setup.py calls :func:`published`.
"""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = ""
"""The address of the repository, such as ``https://example.org/gain_trio``; empty as long as there is none."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:)([^)\s]+)\)")


def published(text: str, repository: str = REPOSITORY) -> str:
    """The text with absolute links, or without relative ones."""

    def replace(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        if not repository:
            return label
        kind = "raw" if picture else "tree" if target.endswith("/") else "blob"
        return f"{picture}[{label}]({repository}/{kind}/main/{target})"

    return _LINK.sub(replace, text)


def project_urls(repository: str = REPOSITORY) -> dict[str, str]:
    """What the page of the project links beside its text."""
    if not repository:
        return {}
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/main/docs/index.md",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def read(root: Path) -> str:
    """The README of a source tree, published."""
    return published((root / "README.md").read_text(encoding="utf-8"))
