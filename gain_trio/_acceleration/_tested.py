"""The fingerprints of what each piece was tested with; written by tools/check_trio_release.py."""

from __future__ import annotations

from typing import Final

TESTED: Final[dict[str, dict[str, dict[str, str]]]] = {
    "sockets": {"3.11": {"8cb24227e9b31813": "0.35.0"}},
    "streams": {"3.11": {"b4b0ba445cb68789": "0.35.0"}},
    "step": {"3.11": {"7e00bd5e8f777603": "0.35.0"}},
    "checkpoints": {"3.11": {"50876b522536e46e": "0.35.0"}},
    "scopes": {"3.11": {"97750367661d08b3": "0.35.0"}},
    "spawning": {"3.11": {"2e049a017bc9e6f9": "0.35.0"}},
    "tick": {"3.11": {"626343fab32cd86a": "0.35.0"}},
}
