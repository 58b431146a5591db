"""The fingerprints of what each piece was tested with; written by tools/check_trio_release.py."""

from __future__ import annotations

from typing import Final

TESTED: Final[dict[str, dict[str, dict[str, str]]]] = {
    "sockets": {
        "3.11": {"8cb24227e9b31813": "0.35.0"},
        "3.13": {"a8419766caacef13": "0.35.0"},
        "3.12": {"ed71a37582dfbadc": "0.30.0"},
    },
    "streams": {
        "3.11": {"b4b0ba445cb68789": "0.35.0"},
        "3.13": {"bff4fc41e6c2719f": "0.35.0"},
        "3.12": {"4851902d48f5679a": "0.30.0"},
    },
    "step": {
        "3.11": {"7e00bd5e8f777603": "0.35.0"},
        "3.13": {"6f481e2038a57339": "0.35.0"},
        "3.12": {"60dcc1b034933ef6": "0.30.0"},
    },
    "checkpoints": {
        "3.11": {"50876b522536e46e": "0.35.0"},
        "3.13": {"15493dc7bf20411f": "0.35.0"},
        "3.12": {"dc4264df1f793cf2": "0.30.0"},
    },
    "scopes": {
        "3.11": {"97750367661d08b3": "0.35.0"},
        "3.13": {"03a584f552cf8a1e": "0.35.0"},
        "3.12": {"07b6509b6cf41b38": "0.30.0"},
    },
    "spawning": {
        "3.11": {"62a1dbc50962caf4": "0.35.0"},
        "3.13": {"52b3f35f0089b04e": "0.35.0"},
        "3.12": {"f32ecb92bdcd2b16": "0.30.0"},
    },
    "tick": {
        "3.11": {"626343fab32cd86a": "0.35.0"},
        "3.13": {"88b5727ffdb9ba1e": "0.35.0"},
        "3.12": {"fb3933bddf991acb": "0.30.0"},
    },
}
