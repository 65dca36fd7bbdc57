"""A demo in this process, of a model with hostile names."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import app
from about import Settings, read_card
from classifier import Classifier
from service import Service
from tests.ports import held_port
from tests.space.programs import Programs
from tests.tiny_models import save_checkpoint

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "${alert(1)}", "{{constructor}}", "</li>"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
CARD = "# A card\n\n<script>alert(1)</script> <img src=https://evil.example/x onerror=alert(1)> ![x](https://evil.example/y)"


@dataclass(frozen=True)
class Demo(Programs):
    """The demo of a model with hostile names.

    Attributes:
        model: the model's folder.
        service: handles the requests.
        uploads: the folder of uploads.
    """

    model: Path
    service: Service
    uploads: Path


def png(picture: Image.Image = PICTURE) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def hostile_demo(root: Path) -> Iterator[Demo]:
    """Serve it from a thread of this process."""
    names = dict(enumerate(HOSTILE))
    model = save_checkpoint(root / "model", id2label=names, label2id={name: number for number, name in names.items()})
    (model / "token").write_text("hf_secret")
    (model / "README.md").write_text(CARD)
    (root / "uploads").mkdir()
    with pytest.MonkeyPatch.context() as patch, held_port() as port:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(root / "uploads"))
        patch.setenv("GRADIO_SERVER_PORT", str(port))
        settings = Settings(model=str(model), title=HOSTILE[0], base_model=HOSTILE[1])
        service = Service(Classifier(model), settings, root, uploads=root / "uploads")
        blocks = app.build(service, settings, read_card(model))
        yield Demo(app.launch(blocks, wait=False), model, service, root / "uploads")
        blocks.close()
