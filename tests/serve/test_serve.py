"""The server: right answers, and clear refusals of what is broken, too much, or from a stranger."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import ask, brightness, photo, resident, running

from firstlight.data.image_files import window
from firstlight.errors import InputError
from firstlight.run import Run
from firstlight.serve.app import bound, serve
from firstlight.serve.guard import Bucket, is_own
from firstlight.serve.network import Network
from firstlight.serve.openapi import MOST_BYTES, description

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")

NO_LIMIT = {"rate": 1e9, "burst": 10**9}


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return Run.open(trained)


@pytest.fixture(scope="module")
def port(run: Run) -> Iterator[int]:
    with running(Network(run, run.fit), Bucket(**NO_LIMIT)) as port:
        yield port


def predicted(port: int, data: bytes, query: str = "") -> Any:
    status, _, body = ask(port, f"/predict{query}", data)
    assert status == 200, body
    return json.loads(body)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_probabilities_equal_those_of_predict(port: int, run: Run, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(orientation, (1000, 700), 200))
    answer = predicted(port, path.read_bytes())
    given = {each["class"]: each["probability"] for each in answer["probabilities"]}
    (prediction,) = run.predict(path)
    assert given == prediction.probabilities and answer["label"] == prediction.label
    assert list(given) == list(prediction.probabilities)


def test_a_kept_image_is_most_similar_to_itself(port: int, run: Run) -> None:
    assert run.kept_images is not None and run.evaluation is not None
    status, headers, png = ask(port, "/kept/4.png")
    assert status == 200 and headers["Content-Type"] == "image/png"
    first = predicted(port, png, "?similar=3")["similar"]
    assert first[0]["picture"] == "/kept/4.png" and first[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert first[0]["similarity"] >= first[1]["similarity"] >= first[2]["similarity"]
    index = int(run.kept_images[1][4])
    assert first[0]["index"] == index
    assert first[0]["true"] == run.data.classes[int(run.evaluation.labels[index])]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_window_is_what_the_reader_takes(fit: str) -> None:
    with running(brightness(fit)) as port:
        answer = predicted(port, photo(6, (96, 160)), "?heat=bright")
    seen, heat = answer["seen"], answer["heat"]
    assert (heat["rows"], heat["columns"]) == (16, 16)
    weight = sum(heat["cells"])
    if fit == "crop":
        # The upper left corner of 96×160 is cut at the top: the square's rows 0…31 are above the window.
        assert seen == {"left": 0, "top": 0.2, "width": 1, "height": 0.6} and weight == 0
        return
    x = sum(value * (i % 16 + 0.5) / 16 for i, value in enumerate(heat["cells"])) / weight
    y = sum(value * (i // 16 + 0.5) / 16 for i, value in enumerate(heat["cells"])) / weight
    if fit == "stretch":
        found = seen["left"] + x * seen["width"], seen["top"] + y * seen["height"]
        assert found == pytest.approx((16 / 96, 16 / 160), abs=0.03)
    else:  # the white ground beside the picture is bright as well
        assert seen["left"] == pytest.approx(-1 / 3, abs=0.06) and seen["width"] == pytest.approx(
            5 / 3, abs=0.1
        )


def test_windows_of_wide_and_of_square_pictures() -> None:
    crop = window((200, 100), (32, 32), "crop")
    assert (crop.left, crop.top, crop.width, crop.height) == (0.25, 0, 0.5, 1)
    pad = window((200, 100), (32, 32), "pad")
    assert (pad.left, pad.top, pad.width, pad.height) == (0, -0.5, 1, 2)
    for fit in ("crop", "pad", "stretch"):
        same = window((64, 64), (32, 32), fit)
        assert (same.left, same.top, same.width, same.height) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.1.5"}, 403),
        ({"Host": "localhost@evil"}, 403),
        ({"Host": "localhost:99999999"}, 403),
        ({"Origin": "http://evil", "Content-Type": "text/plain"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Length": str(MOST_BYTES + 1)}, 413),
    ],
)
def test_a_stranger_is_refused_before_the_body_is_read(
    port: int, headers: dict[str, str], status: int
) -> None:
    """The body is announced and never sent, so an answer shows that nobody waited for it."""
    words = {"Host": f"127.0.0.1:{port}", "Content-Type": "image/png", "Content-Length": "1000000", **headers}
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = "".join(f"{key}: {value}\r\n" for key, value in words.items())
        connection.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode())
        assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_has_these_names(host: str) -> None:
    assert is_own(host, "127.0.0.1")
    assert is_own("192.168.1.5:8000", "0.0.0.0") and not is_own("evil.example", "0.0.0.0")


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "//etc/passwd",
     "/kept/..%2f..%2fetc/passwd", "/kept/-1.png", "/kept/99999999.png", "/page.css/../../page.py",
     "/..%5c..%5cetc%5cpasswd", "/%00", "/%c0%ae%c0%ae/etc/passwd", "/serve.html", "/docs"],
)  # fmt: skip
def test_no_file_of_the_server_is_read(port: int, path: str) -> None:
    status, _, body = ask(port, path)
    assert status in (400, 404) and b"root:" not in body


def test_broken_and_huge_pictures_are_answered_and_the_server_stays_up(port: int) -> None:
    for data, words in ((b"", "empty"), (b"hello, world", "no image file"), (photo()[:300], "")):
        status, _, body = ask(port, "/predict?name=a%0ab.jpg", data)
        assert status == 422 and words in json.loads(body)["error"] and "\n" not in json.loads(body)["error"]
    stream = io.BytesIO()
    Image.new("RGB", (10_000, 10_000), "white").save(stream, "JPEG")
    assert predicted(port, stream.getvalue(), "?heat=&preview=1")["preview"].startswith("data:image/jpeg")
    stream = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(stream, "PNG")
    status, _, body = ask(port, "/predict", stream.getvalue())
    assert status == 422 and "megapixels" in json.loads(body)["error"]
    for query in ("similar=x", "similar=99", "similar=-1", "similar=%C2%B2"):
        assert ask(port, f"/predict?{query}", photo())[0] == 400
    status, _, body = ask(port, "/predict?heat=no%1bne", photo())
    assert status == 422 and b"\\u001b" not in body
    assert predicted(port, photo())["label"]


def test_fifty_requests_at_once_are_answered_or_told_to_come_again(port: int) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: ask(port, "/predict?heat=", photo(6)), range(50)))
    assert {status for status, _, _ in answers} <= {200, 503}
    assert len({body for status, _, body in answers if status == 200}) == 1
    assert all(headers["Retry-After"] for status, headers, _ in answers if status == 503)
    assert predicted(port, photo())["label"]


def test_the_sixteen_that_send_slowly_leave_503_for_the_others(port: int) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/png\r\n"
    slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(16)]
    try:
        for each in slow:
            each.sendall(f"{head}Content-Length: 9\r\n\r\n1".encode())
        answers = [ask(port, "/predict", photo()) for _ in range(2)]
        assert answers[-1][0] == 503 and answers[-1][1]["Retry-After"] == "1"
    finally:
        for each in slow:
            each.sendall(b"23456789")
            assert each.recv(20).startswith(b"HTTP/1.1 422")
            each.close()
    assert ask(port, "/predict", photo())[0] == 200


def test_one_client_cannot_ask_without_end() -> None:
    now = [0.0]
    bucket = Bucket(rate=2, burst=3, clock=lambda: now[0])
    assert [bucket.seconds_to_wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.seconds_to_wait("b") == 0
    now[0] = 0.5
    assert bucket.seconds_to_wait("a") == 0 and bucket.seconds_to_wait("a") > 0
    with running(brightness("crop"), Bucket(rate=0.01, burst=1)) as port:
        assert ask(port, "/predict", photo())[0] == 200
        status, headers, _ = ask(port, "/predict", photo())
        assert status == 429 and int(headers["Retry-After"]) > 90
        assert ask(port, "/")[0] == 200


def test_every_answer_carries_a_strict_policy(port: int) -> None:
    for path in ("/", "/page.css", "/nothing", "/openapi.json"):
        policy = ask(port, path)[1]["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy


def test_answers_hold_what_the_description_promises(port: int, run: Run) -> None:
    api = json.loads(ask(port, "/openapi.json")[2])
    assert api == description(run.data.classes) and api["openapi"].startswith("3.1")
    assert set(api["paths"]) == {"/predict", "/kept/{place}.png"}
    answer = api["components"]["schemas"]["Answer"]
    given = predicted(port, photo(), "?heat=&similar=2&preview=1")
    assert set(given) == set(answer["properties"])
    assert set(predicted(port, photo())) == set(answer["required"])
    for key in ("heat", "seen"):
        assert set(given[key]) == set(answer["properties"][key]["required"])
    assert set(given["similar"][0]) == set(answer["properties"]["similar"]["items"]["required"])


def test_a_taken_port_is_one_line() -> None:
    with bound("127.0.0.1", 0) as listener, pytest.raises(InputError) as refusal:
        bound("127.0.0.1", listener.getsockname()[1])
    assert refusal.value.message.startswith("cannot listen on port")
    assert "\n" not in refusal.value.message and "while" not in refusal.value.message


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"firstlight\[serve\]"):
        serve(run, run.fit, port=0)


def test_the_shell_says_the_address_ends_cleanly_and_logs_no_control_character(trained: Path) -> None:
    command = [sys.executable, "-m", "firstlight", "serve", str(trained), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        assert ask(port, "/%1b%5b2J%0aforged")[0] == 404
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out.endswith("stopped\n")
    assert "Traceback" not in err and "\x1b" not in err
    (said,) = err.splitlines()
    assert "\\x1b[2J\\nforged 404" in said


def test_the_verb_can_be_called_after_its_room_was_imported() -> None:
    import firstlight
    import firstlight.serve.app as app

    assert callable(firstlight.serve) and app.serve is not None
    with pytest.raises(InputError):
        firstlight.serve("/no/such/run")


@pytest.mark.soak
def test_memory_is_flat_over_2000_requests() -> None:
    with running(brightness("crop"), Bucket(**NO_LIMIT)) as port:
        for _ in range(200):
            predicted(port, photo(6, (640, 480)), "?heat=&preview=1")
        before = resident()
        for _ in range(2000):
            predicted(port, photo(6, (640, 480)), "?heat=&preview=1")
        after = resident()
    print(f"resident memory: {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after 2,000 requests")
    assert after - before < 20 * 2**20
