"""Check that type checkers report a forgotten ``await`` of this package's calls.

    python tools/check_forgotten_awaits.py

The script runs mypy and pyright on a program that forgets all of them, and fails if a checker misses one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONNECTION_CALLS = (
    "receive()",
    "receive_into(bytearray(1))",
    "receive_some()",
    "receive_exactly(1)",
    'receive_until(b"x", max_bytes=1)',
    "receive_line(max_bytes=1)",
    'send(b"x")',
    'send_all(b"x")',
    'send_file("path")',
    "flush()",
    "send_eof()",
    "aclose()",
    "detach()",
    "wait_send_all_might_not_block()",
)
ENDPOINT_CALLS = ("receive()", 'send(b"x", ("127.0.0.1", 9))', "aclose()")
LISTENER_CALLS = ("accept()", "aclose()")

HEAD = """\
from gain_trio import Connection, DatagramEndpoint, Listener, connect, open_listeners

async def main(connection: Connection, endpoint: DatagramEndpoint, listener: Listener) -> None:
"""


def program() -> str:
    """The program's text, with one forgotten ``await`` a line."""
    lines = [f"connection.{call}" for call in CONNECTION_CALLS]
    lines += [f"endpoint.{call}" for call in ENDPOINT_CALLS]
    lines += [f"listener.{call}" for call in LISTENER_CALLS]
    lines += ['connect("tcp://127.0.0.1:9")', 'open_listeners("tcp://127.0.0.1:0")']
    return HEAD + "".join(f"    {line}\n" for line in lines)


def reported_lines(command: list[str], rule: str) -> set[int]:
    """The numbers of the lines that a checker's output names with this rule."""
    checked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    found = re.findall(rf":(\d+):(?:\d+:? -)? error: .*{rule}", checked.stdout)
    if not found:
        print(checked.stdout, checked.stderr, sep="\n", file=sys.stderr)
    return {int(number) for number in found}


def main() -> int:
    """Check the checkers, and return the exit status."""
    text = program()
    first = HEAD.count("\n") + 1
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "forgetful.py"
        path.write_text(text)
        checkers = {
            "mypy": reported_lines(["mypy", "--config-file=", str(path)], r"\[unused-coroutine\]"),
            "pyright": reported_lines(["pyright", str(path)], r"\(reportUnusedCoroutine\)"),
        }
    for number, line in enumerate(text.splitlines()[first - 1 :], first):
        for checker, lines in checkers.items():
            if number not in lines:
                failed += 1
                print(f"{checker} does not report a forgotten await: {line.strip()}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
