"""A demo in this process, of a model whose names are attacks, and how programs talk to it."""

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import app
from about import Settings, read_card
from classifier import Classifier
from service import Service
from tests.space.ports import free_port
from tests.tiny_models import save_checkpoint

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "${alert(1)}", "{{constructor}}", "</li>"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
CARD = "# A card\n\n<script>alert(1)</script> <img src=https://evil.example/x onerror=alert(1)> ![x](https://evil.example/y)"


@dataclass(frozen=True)
class Demo:
    """A demo in this process, of a model with hostile names."""

    url: str
    model: Path
    service: Service
    uploads: Path

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """As it is written: nothing in the path is made shorter or safer on the way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
        status, _, said = self.request(
            "POST",
            "/gradio_api/upload",
            body % (name.encode(), content),
            Content_Type="multipart/form-data; boundary=x",
        )
        return status, json.loads(said)[0] if status == 200 else said.decode()

    def ask(self, *data: Any) -> tuple[int, str]:
        """Ask the API, and wait for its answer."""
        status, said = self.begin(*data)
        return (status, said) if status != 200 else self.wait(said)

    def begin(self, *data: Any) -> tuple[int, str]:
        body = json.dumps({"data": data}).encode()
        status, _, said = self.request("POST", "/gradio_api/call/classify", body, Content_Type="application/json")
        return status, json.loads(said)["event_id"] if status == 200 else said.decode()

    def wait(self, event: str) -> tuple[int, str]:
        status, _, said = self.request("GET", f"/gradio_api/call/classify/{event}")
        return status, said.decode()


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def png(picture: Image.Image = PICTURE) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def hostile_demo(root: Path) -> Iterator[Demo]:
    """Serve one from a thread of this process."""
    names = dict(enumerate(HOSTILE))
    model = save_checkpoint(root / "model", id2label=names, label2id={name: number for number, name in names.items()})
    (model / "token").write_text("hf_secret")
    (model / "README.md").write_text(CARD)
    (root / "uploads").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(root / "uploads"))
        patch.setenv("GRADIO_SERVER_PORT", str(free_port()))
        settings = Settings(model=str(model), title=HOSTILE[0], base_model=HOSTILE[1])
        service = Service(Classifier(model), settings, root, uploads=root / "uploads")
        blocks = app.build(service, settings, read_card(model))
        yield Demo(app.launch(blocks, wait=False), model, service, root / "uploads")
        blocks.close()
