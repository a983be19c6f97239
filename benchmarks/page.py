"""What the page costs: seconds to write it, its size, and the time to its first paint in headless Chromium.

    python benchmarks/page.py RUN [--rounds 3] [--record]

RUN is a finished run folder; its page and figures are drawn anew, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

WRITE = "import sys; from firstlight.run import Run; Run.open(sys.argv[1]).report()"


def first_paint(page: Path, chromium: str) -> float:
    """Return the milliseconds from opening the page to its first contentful paint."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("#gallery li")
        found = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="append a row to results.csv")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium here: on Debian, apt-get install chromium")
    page = arguments.run / "report.html"
    seconds, paints = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", WRITE, str(arguments.run)], check=True)
        seconds.append(time.perf_counter() - start)
        paints.append(first_paint(page, chromium))
    megabytes = page.stat().st_size / 1e6
    writing, paint = statistics.median(seconds), statistics.median(paints)
    print(
        f"{page}: written with all figures in {writing:.1f} s, Python's start included; {megabytes:.2f} MB;"
    )
    print(f"first contentful paint after {paint:.0f} ms (medians of {arguments.rounds})")
    if arguments.record:
        from firstlight.machine.machine import torch
        from rows import add_row

        from firstlight.machine.processor import hardware_name

        add_row(
            {
                "script": "benchmarks/page.py",
                "date": datetime.now(UTC).date().isoformat(),
                "hardware": hardware_name(torch.device("cpu")),
                "torch": torch.__version__,
                "write_seconds": round(writing, 1),
                "megabytes": round(megabytes, 2),
                "first_paint_ms": round(paint),
                "note": f"the page of {arguments.run.name}",
            }
        )


if __name__ == "__main__":
    main()
