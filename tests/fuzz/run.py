"""Fuzz with atheris (libFuzzer for Python), each target for a while.

    python tests/fuzz/run.py [--seconds 60] [--keep] [TARGET ...]

The script starts from the corpus in ``tests/fuzz/corpus``.  It writes new inputs that reach new code to ``build/fuzz``, and
with ``--keep`` adds the small ones of them to the corpus.  If an input breaks an invariant, the script writes it to
``build/fuzz`` and ends with status 1; the developer puts it into the corpus, where a test runs it from then on, and mends
the parser.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FOUND = HERE.parent.parent / "build" / "fuzz"
INSTRUMENTED = [
    "gain_trio._http",
    "gain_trio._server._metrics",
    "gain_trio._transports._connections._framing",
    "gain_trio._transports._connections._proxy_protocol",
    "gain_trio._transports._addresses._shown",
    "prometheus_client",
]
"""Modules whose branches count."""
LARGEST_KEPT = 512
"""Bytes of an input that is kept."""
MOST_KEPT = 40
"""Inputs of each target that are kept."""
LARGEST = 4096
"""Bytes of an input that is tried."""


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz a target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from targets import TARGETS

    atheris.Setup([__file__, *arguments], TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: int, *, keep: bool) -> int:
    """Fuzz a target in a process of its own, and return its status."""
    found, kept = FOUND / name, CORPUS / name
    found.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-timeout=10", "-rss_limit_mb=1024"]
    options += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={FOUND}/{name}-"]
    print(f"--- {name}", flush=True)
    command = [sys.executable, __file__, "--fuzz", name, "--", *options, str(found), str(kept)]
    status = subprocess.run(command, check=False).returncode
    if keep and not status:
        _keep(name, found, kept)
    return status


def _keep(name: str, found: Path, kept: Path) -> None:
    """Add the smallest new inputs to the corpus, up to its limit; each of them reaches code that no earlier one does."""
    contents = sorted((path.read_bytes() for path in found.iterdir()), key=len)
    room = MOST_KEPT - len(list(kept.iterdir()))
    for content in [content for content in contents if len(content) <= LARGEST_KEPT][: max(room, 0)]:
        (kept / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    print(f"{len(list(kept.iterdir()))} inputs are kept for {name}")


def main() -> int:
    """Fuzz the targets that are named, or all of them."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers that read a stranger's bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which (all)")
    parser.add_argument("--seconds", type=int, default=60, help="how long each (60)")
    parser.add_argument("--keep", action="store_true", help="keep in the corpus what reaches more than it does")
    options = parser.parse_args()
    names = sorted(path.name for path in CORPUS.iterdir())
    for name in options.targets:
        if name not in names:
            parser.error(f"there is no target {name!r}: there are {', '.join(names)}")
    failed = [name for name in options.targets or names if run(name, options.seconds, keep=options.keep)]
    if failed:
        print(f"an invariant does not hold: {', '.join(failed)}; the inputs are in {FOUND}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2], sys.argv[4:])
    sys.exit(main())
