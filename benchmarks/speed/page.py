"""What the page costs: seconds to write it, its size, and the time to its first paint in headless Chromium.

    python -m benchmarks.speed.page RUN [--rounds 3] [--record]

RUN is a finished run folder; its page and figures are drawn anew, each time in a process of its own.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.measure import in_own_process, parser, record, seconds_in_turn


def write_page(run: Path) -> None:
    from firstlight.run import Run

    Run.open(run).report()


def first_paint(page: Path, chromium: str) -> float:
    """Return the milliseconds from opening the page to its first contentful paint."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("#gallery li")
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return float(paint)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium here: on Debian, apt-get install chromium")
    page, write = arguments.run / "report.html", {"page": lambda: in_own_process(write_page, arguments.run)}
    seconds = statistics.median(seconds_in_turn(write, arguments.rounds, warm_up=0)["page"])
    paint = statistics.median(first_paint(page, chromium) for _ in range(arguments.rounds))
    from firstlight.machine.machine import choose

    record(
        __file__,
        choose("cpu", "fp32"),
        keep=arguments.record,
        write_seconds=round(seconds, 1),
        megabytes=round(page.stat().st_size / 1e6, 2),
        first_paint_ms=round(paint),
        note=f"the page of {arguments.run.name}",
    )


if __name__ == "__main__":
    main()
