"""A finished run on pictures, and the files of its Space."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.evaluation.examples import results_of
from tests.hub.test_card import SETTINGS
from tests.tiny_models import save_checkpoint

NAMES: dict[str, Any] = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
DEMO = {
    "app.py", "about.py", "batch.py", "classes.html", "classifier.py", "explanation.py", "guard.py", "heat.py",
    "labels.html", "levels.py", "numbers.html", "page.html", "page.js", "page.py", "pictures.py", "scale.py",
    "service.py", "style.css", "target.py", "requirements.txt",
}  # fmt: skip
EXAMPLES = {f"examples/{number}.png" for number in range(1, 7)}
# A copied model comes in addition.
FILES = DEMO | EXAMPLES | {"README.md", "settings.json"}
CAMERA = "The owner's camera"


def finished_run(root: Path, picture_folder: Callable[..., Path]) -> Path:
    """On pictures of this machine, some of which have an EXIF orientation."""
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        picture_folder(name=f"pets/{split}", cat=count, dog=count)
    exif = Image.Exif()
    exif[0x010F], exif[274] = CAMERA, 6
    for path in (root / "pets/test/cat").iterdir():
        with Image.open(path) as picture:
            picture.resize((1600, 800)).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    out = root / "my_first-run"
    save_checkpoint(out / "model", **NAMES)
    data = {"dataset_name": str(root / "pets")}
    results_of(commits={}, **data).write(out)
    (out / "config.yaml").write_text(yaml.safe_dump(SETTINGS | data))
    return out
