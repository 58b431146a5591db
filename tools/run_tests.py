"""pytest, and once more what failed: ``python tools/run_tests.py [pytest's arguments]``.

With ``GAIN_TRIO_RETRY=1``, as in CI, tests that fail are run a second time by themselves, and the second time decides.  On
a machine that others use, a race that shows once in a hundred runs must not hide whether a change is good; but it is one
to be found, so the log says ``RETRIED``.  A crash, a sanitizer's report or a usage error is not tried again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS_FAILED = 1  # pytest's exit status for just that


def main(arguments: list[str]) -> int:
    """Run pytest; its exit status, or the second one's."""
    with tempfile.TemporaryDirectory() as cache:  # of this run's own: others may run at the same time
        command = [str(Path(sys.executable).with_name("pytest")), "-o", f"cache_dir={cache}", *arguments]
        status = subprocess.run(command, check=False).returncode
        if status == TESTS_FAILED and os.environ.get("GAIN_TRIO_RETRY") == "1":
            print("RETRIED: what failed is run once more by itself", flush=True)
            again = [*command, "--last-failed", "--last-failed-no-failures=none"]
            status = subprocess.run(again, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
