"""Look at the built documentation in a browser: ``python tools/check_pages.py [--screenshots FOLDER] [PAGE...]``.

Headless Chromium loads each page of build/docs at 1,400 and at 400 pixels.  A page that is wider than its window is a fault,
and so is a table of words that has to be scrolled, or has a column that is narrower than a word.  Tables of numbers may
scroll.
With ``--screenshots`` a picture of each is kept, for a person to look at.  Needs ``apt install chromium``.
"""

from __future__ import annotations

import argparse
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

WIDTHS = (1400, 400)
HEIGHT = 3000
SECONDS = 120
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
NARROWEST = 60
"""Pixels of a cell."""
NUMBERS = 4
"""Columns from which on a table is one of numbers, which may scroll."""

HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const jobs = JOBS, found = [];
function faults(view, page, width) {
  const root = view.document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    found.push(`${page} at ${width}: the page is ${root.scrollWidth} pixels wide`);
  for (const table of view.document.querySelectorAll("article table.docutils")) {
    const name = table.innerText.trim().split("\\n")[0];
    const around = table.parentElement;
    const scrolls = ["auto", "scroll"].includes(view.getComputedStyle(around).overflowX);
    const columns = table.querySelectorAll("tr:first-child > *").length;
    if (table.offsetWidth > around.clientWidth + 1 && (columns < NUMBERS || !scrolls))
      found.push(`${page} at ${width}: the table ${name} is wider than its column`);
    for (const cell of table.querySelectorAll("td"))
      if (columns < NUMBERS && cell.offsetWidth < NARROWEST)
        found.push(`${page} at ${width}: the table ${name} has a cell of ${cell.offsetWidth} pixels`);
  }
}
async function main() {
  for (const [page, width] of jobs) {
    const frame = document.createElement("iframe");
    frame.width = width; frame.height = 900; frame.src = page;
    const loaded = new Promise(done => frame.onload = done);
    document.body.append(frame);
    await loaded;
    faults(frame.contentWindow, page, width);
    frame.remove();
  }
  const result = document.createElement("pre");
  result.id = "result"; result.textContent = JSON.stringify({looked: jobs.length, found});
  document.body.append(result);
}
main();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the pages, and the harness."""

    harness = b""

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/harness.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(self.harness)))
        self.end_headers()
        self.wfile.write(self.harness)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def browse(chromium: str, *arguments: str) -> str:
    """Run the browser; returns what it prints."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=SECONDS).stdout  # noqa: S603 - our own arguments


def check(chromium: str, address: str, jobs: list[tuple[str, int]]) -> list[str]:
    """The faults of all pages at all widths."""
    script = (
        HARNESS.replace("JOBS", json.dumps(jobs)).replace("NARROWEST", str(NARROWEST)).replace("NUMBERS", str(NUMBERS))
    )
    Handler.harness = script.encode()
    printed = browse(chromium, "--dump-dom", "--virtual-time-budget=60000", f"{address}/harness.html")
    match = re.search(r'<pre id="result">(.*?)</pre>', printed, re.DOTALL)
    if match is None:
        raise SystemExit("check_pages.py: the browser did not come to the end of the pages")
    result = json.loads(html.unescape(match[1]))
    assert result["looked"] == len(jobs)
    found: list[str] = result["found"]
    return found


def main() -> int:
    """Check, and perhaps take pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("build/docs"))
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as servers.html; all of them by default")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("check_pages.py: there is no chromium; apt install chromium", file=sys.stderr)
        return 2
    every = sorted(path.relative_to(options.docs).as_posix() for path in options.docs.rglob("*.html"))
    pages = options.pages or [page for page in every if not page.startswith("_")]
    if not pages:
        print(f"check_pages.py: there are no pages in {options.docs}; make docs", file=sys.stderr)
        return 2
    jobs = [(page, width) for width in WIDTHS for page in pages]
    handler = functools.partial(Handler, directory=str(options.docs))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = check(chromium, address, jobs)
        if options.screenshots is not None:
            options.screenshots.mkdir(parents=True, exist_ok=True)
            for page, width in jobs:
                picture = options.screenshots / f"{page.replace('/', '-')}.{width}.png"
                browse(chromium, f"--screenshot={picture}", f"--window-size={width},{HEIGHT}", f"{address}/{page}")
        server.shutdown()
    for fault in found:
        print(fault)
    print(f"{len(pages)} pages at {' and '.join(map(str, WIDTHS))} pixels: {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
