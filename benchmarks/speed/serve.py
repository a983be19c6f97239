"""Latency of one picture at `firstlight serve`: median and 99th percentile, and the server's memory.

    python -m benchmarks.speed.serve RUN [--requests 2000] [--record]

The server is a process of its own; one client sends the same JPEG photo of 12 megapixels again and again,
for probabilities alone, then for all that the page shows. A client that is told to wait (429) waits.
"""

from __future__ import annotations

import http.client
import io
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import parser, record


def photo(width: int = 4000, height: int = 3000) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 60).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def latencies(port: int, query: str, body: bytes, count: int) -> list[float]:
    """Return the milliseconds of `count` answers, one connection after another."""
    milliseconds: list[float] = []
    while len(milliseconds) < count:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        start = time.perf_counter()
        connection.request("POST", f"/predict{query}", body, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        response.read()
        took = 1000 * (time.perf_counter() - start)
        connection.close()
        if response.status == 429:
            time.sleep(float(response.headers["Retry-After"]))
        elif response.status == 200:
            milliseconds.append(took)
        else:
            sys.exit(f"the server answered {response.status}")
    return milliseconds


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--requests", type=int, default=2000)
    arguments = options.parse_args()
    command = [sys.executable, "-m", "firstlight", "serve", str(arguments.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    figures: dict[str, float] = {}
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("http://127.0.0.1:")[1].split("/")[0])
        body = photo()
        latencies(port, "?heat=&similar=6&preview=1", body, 20)
        before = resident_megabytes(server.pid)
        for name, query in (("predict", ""), ("page", "?heat=&similar=6&preview=1")):
            taken = latencies(port, query, body, arguments.requests)
            figures[f"{name}_median_ms"] = round(statistics.median(taken), 1)
            figures[f"{name}_p99_ms"] = round(statistics.quantiles(taken, n=100)[98], 1)
        figures["megabytes_before"] = round(before)
        figures["megabytes_after"] = round(resident_megabytes(server.pid))
    finally:
        server.terminate()
        server.wait()
    from firstlight.machine.machine import choose

    note = f"{arguments.requests} requests each, a JPEG photo of 12 megapixels"
    record(__file__, choose("cpu", "fp32"), keep=arguments.record, **figures, note=note)


if __name__ == "__main__":
    main()
