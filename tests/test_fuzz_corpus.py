"""The corpus of the fuzzer, and every input that has ever broken a parser: they hold their invariants."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.targets import TARGETS

pytestmark = pytest.mark.no_run

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    paths = sorted((CORPUS / target).iterdir())
    assert len(paths) >= 5
    for path in paths:
        try:
            TARGETS[target](path.read_bytes())
        except AssertionError as error:
            pytest.fail(f"{path}: {error}")


def test_every_corpus_has_a_target() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)
