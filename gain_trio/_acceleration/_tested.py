"""The fingerprints of what each piece was tested with; written by tools/check_trio_release.py."""

from __future__ import annotations

from typing import Final

TESTED: Final[dict[str, dict[str, dict[str, str]]]] = {}
