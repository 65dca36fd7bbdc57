"""The demo over HTTP: its API, and attacks."""

import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from classifier import Sample
from explanation import Answer
from tests.conftest import REPOSITORY
from tests.space import conftest
from tests.space.conftest import served
from tests.space.hostile import HOSTILE, PICTURE, Demo, hostile_demo, png
from tests.space.programs import file
from tests.space.test_classifier import bomb
from tests.tiny_models import save_checkpoint

# The imports of a demo of pictures; transformers imports its parts on first use.
LIBRARIES = "import gradio, torch; from transformers import AutoImageProcessor, AutoModelForImageClassification"


def test_the_api_returns_the_scores_of_the_model(demo: Demo) -> None:
    """As values, with hostile labels as they are."""
    status, path = demo.upload("a.png", png())
    assert status == 200
    status, response = demo.ask(file(path), False)
    assert status == 200
    assert response.startswith("event: complete")
    (answer,) = json.loads(response.split("data: ", 1)[1])
    (scores,) = demo.service.classifier.scores([Sample(PICTURE)])
    assert answer["scores"] == pytest.approx(dict(zip(HOSTILE, scores, strict=True)), abs=1e-6)
    assert answer["label"] == HOSTILE[int(np.argmax(scores))]
    assert "heat" not in answer
    _, response = demo.ask(file(path), True)
    (answer,) = json.loads(response.split("data: ", 1)[1])
    assert np.asarray(answer["heat"]).shape == (2, 2)


def test_the_api_is_documented(demo: Demo) -> None:
    """One endpoint, its arguments, what it returns; the events of the page are not public."""
    status, _, response = demo.request("GET", "/gradio_api/info")
    assert status == 200
    endpoints = json.loads(response)["named_endpoints"]
    assert list(endpoints) == ["/classify"]
    assert [one["parameter_name"] for one in endpoints["/classify"]["parameters"]] == ["picture", "explain"]
    assert "probability of every label" in endpoints["/classify"]["description"]


def test_the_shell_example_of_the_page_works(demo: Demo, tmp_path: Path) -> None:
    """As shown."""
    from html import unescape

    _, _, config = demo.request("GET", "/config")
    shown = next(one["props"]["value"] for one in json.loads(config)["components"]
                 if "help api" in str(one["props"].get("value", "")))  # fmt: skip
    code = unescape(re.findall(r"<pre[^>]*>(.*?)</pre>", shown, re.DOTALL)[-1])
    code = code.replace("http://127.0.0.1:7860", demo.url.rstrip("/"))
    (tmp_path / "picture.jpg").write_bytes(png())
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert "event: complete" in done.stdout, (code, done)


def forbidden_paths(demo: Demo) -> list[str]:
    source = REPOSITORY / "space" / "app.py"
    targets = [
        Path("/etc/passwd"), source, demo.model / "token", demo.model / "config.json", demo.model / "model.safetensors",
        Path.home() / ".cache/huggingface/token", REPOSITORY / "pyproject.toml",
    ]  # fmt: skip
    relative = [
        "app.py",
        "./app.py",
        "space/app.py",
        "pyproject.toml",
        os.path.relpath("/etc/passwd"),
        "../../../etc/passwd",
    ]
    names = [
        *map(str, targets),
        *relative,
        *(os.path.relpath(target) for target in targets),
        f"{demo.uploads}/../model/token",
    ]
    encoded = [
        *names,
        *(quote(name, safe="") for name in names),
        *(quote(quote(name, safe=""), safe="") for name in names),
    ]
    encoded += [name.replace("..", "%2e%2e").replace("/", "%2f") for name in names]
    return encoded


def test_no_file_of_this_machine_can_be_had(demo: Demo) -> None:
    """By absolute, relative, encoded and twice encoded paths, on each of gradio's routes to files."""
    asked = 0
    for name in forbidden_paths(demo):
        for way in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/file/",
            "/static/",
            "/assets/",
            "/gradio_api/component_server/",
        ):
            status, _, response = demo.request("GET", way + name)
            assert status in (403, 404, 405), (way + name, status)
            assert b"hf_secret" not in response
            assert b"root:" not in response
            asked += 1
    assert asked > 300
    status, path = demo.upload("mine.png", png())
    assert status == 200
    assert demo.request("GET", f"/gradio_api/file={path}")[0] == 200


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """A web server that must get no request, and the requests that it gets."""
    asked: list[bytes] = []
    with socket.socket() as waiting:
        waiting.bind(("127.0.0.1", 0))
        waiting.listen()
        waiting.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    connection, _ = waiting.accept()
                except TimeoutError:
                    continue
                asked.append(connection.recv(1000))
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{waiting.getsockname()[1]}/x.png", asked
        ended.set()
        thread.join()


def test_nothing_is_fetched_for_visitors(demo: Demo, listener: tuple[str, list[bytes]]) -> None:
    """By an address in the path, in a sample, or in place of a file."""
    address, asked = listener
    for way in ("/gradio_api/file=", "/file=", "/gradio_api/proxy=", "/gradio_api/file/"):
        assert demo.request("GET", way + address)[0] in (403, 404)
    for name in (address, "https://example.org/x.png", "http://169.254.169.254/latest/meta-data"):
        status, response = demo.ask(file(name), False)
        assert "event: error" in response, (name, status, response)
        assert "this demo fetches nothing" in response
    assert asked == []


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "app.py", "../model/token"])
def test_no_file_of_this_machine_can_be_classified(demo: Demo, path: str) -> None:
    """As if it were an upload."""
    for name in (path, str(demo.model / "token")):
        _, response = demo.ask(file(name), False)
        assert "event: error" in response
        assert "root:" not in response
        assert "secret" not in response


def test_eleven_megabytes_are_too_many(demo: Demo) -> None:
    """By the limit of gradio, and by that of the guard for a whole body."""
    assert demo.upload("large.png", b"\0" * 11_000_000)[0] == 413
    status, _, _ = demo.request("POST", "/gradio_api/upload", b"", Content_Length="100000001")
    assert status == 413


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.png", bomb(12_000), "declares 12000 x 12000 pixels"),
        ("bomb.png", bomb(60_000), "far more pixels"),
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "It is empty or damaged"),
        ("a.html", b"<html><script>alert(1)</script></html>", "It is empty or damaged"),
        ("broken.png", png()[:99], "It is empty or damaged"),
        ("empty.png", b"", "It is empty or damaged"),
    ],
)
def test_a_file_that_is_no_picture_is_an_error_with_its_reason_and_never_shown_as_a_page(
    demo: Demo, name: str, content: bytes, words: str
) -> None:
    """A browser downloads it."""
    status, path = demo.upload(name, content)
    assert status == 200
    _, response = demo.ask(file(path), False)
    assert "event: error" in response
    assert words in response
    assert "Traceback" not in response
    status, headers, _ = demo.request("GET", f"/gradio_api/file={path}")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    if not name.endswith(".png"):
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream"


def test_the_queue_has_a_limit(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 requests 34 are accepted and answered, 2 of them computed at a time; the others are refused."""
    go, running, most = threading.Event(), [], []

    def slowly(sample: Sample, explain: bool) -> Answer:
        running.append(1)
        most.append(len(running))
        assert go.wait(240)
        running.pop()
        return Answer([0.2] * 5)

    monkeypatch.setattr(demo.service, "_answer", slowly)
    _, path = demo.upload("a.png", png())
    try:
        # Wait until both have left the queue and are computed.
        first = [demo.begin(file(path), False) for _ in range(2)]
        for _ in range(4800):
            if len(running) == 2:
                break
            threading.Event().wait(0.05)
        with ThreadPoolExecutor(38) as crowd:
            others = list(crowd.map(lambda _: demo.begin(file(path), False), range(38)))
    finally:
        go.set()
    assert [status for status, _ in first] == [200, 200]
    refused = [response for status, response in others if status != 200]
    assert sorted(status for status, _ in others) == [200] * 32 + [503] * 6
    assert all("Queue is full" in response for response in refused)
    for status, event in [*first, *others]:
        if status == 200:
            assert "event: complete" in demo.wait(event)[1]
    assert max(most) == 2


def test_every_answer_tells_browsers_to_fetch_nothing_elsewhere(demo: Demo) -> None:
    """Whatever a card brings into the page."""
    for path in ("/", "/config", "/nothing", "/gradio_api/file=http://x/"):
        _, headers, _ = demo.request("GET", path)
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert not [word for rule in policy.values() for word in rule.split() if "." in word or "http" in word]


def test_an_internal_error_reveals_nothing_about_the_machine(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is only in the log."""

    def fails(*_: object) -> Answer:
        raise RuntimeError(f"secret path {REPOSITORY}")

    monkeypatch.setattr(demo.service, "_answer", fails)
    _, path = demo.upload("a.png", png())
    _, response = demo.ask(file(path), False)
    assert "event: error" in response
    assert "secret" not in response


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/monitoring", 403), ("GET", "/monitoring/summary", 403), ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404), ("GET", "/gradio_api/deep_link", 403),
        ("POST", "/gradio_api/process_recording", 403), ("POST", "/gradio_api/component_server", 403),
        ("POST", "/gradio_api/vibe-edit", 403),
    ],
)  # fmt: skip
def test_other_routes_of_gradio_are_closed(demo: Demo, method: str, path: str, status: int) -> None:
    """Monitoring, recordings, editing of code."""
    answered, _, _ = demo.request(method, path, b"{}" if method == "POST" else None, Content_Type="application/json")
    assert answered == status


@pytest.mark.slow
def test_the_demo_runs_in_the_repository(tmp_path: Path) -> None:
    """`MODEL_ID=... python space/app.py`."""
    model = save_checkpoint(tmp_path / "my-model")
    with served(REPOSITORY / "space/app.py", tmp_path / "log", MODEL_ID=str(model)) as demo:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(demo.url).port or 0, timeout=240)
        connection.request("GET", "/config")
        assert "my-model" in connection.getresponse().read().decode()


@pytest.mark.slow
def test_it_is_ready_as_soon_as_its_libraries_are(tmp_path: Path) -> None:
    """Seconds depend on the machine (`make bench-space` shows them); the ratio to the imports that the demo needs does
    not, except for the load of other processes: hence the best of three.
    """
    model = save_checkpoint(tmp_path / "my-model")

    def share() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
        more = resource.getrusage(resource.RUSAGE_CHILDREN)
        with served(REPOSITORY / "space/app.py", tmp_path / "log", MODEL_ID=str(model)) as demo:
            return demo.seconds_of_processor / (more.ru_utime + more.ru_stime - used.ru_utime - used.ru_stime)

    assert any(share() < 1.25 for _ in range(3))


def test_the_demo_starts_on_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gradio requests its own page, waits three seconds, and would then share it through another server."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with hostile_demo(tmp_path) as demo:
        assert demo.request("GET", "/config")[0] == 200


@pytest.mark.slow
def test_a_model_that_cannot_be_served_ends_the_demo_with_a_message(tmp_path: Path) -> None:
    """No traceback."""
    (tmp_path / "empty").mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["MODEL_ID"] = str(tmp_path / "empty")
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=REPOSITORY / "space", env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_demo_that_hangs_is_reported_with_its_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(conftest, "LONGEST_SECONDS", 2)
    with (
        pytest.raises(AssertionError, match=r'app\.py", line 2'),
        served(tmp_path / "app.py", tmp_path / "log"),
    ):
        pytest.fail("it has never answered")
