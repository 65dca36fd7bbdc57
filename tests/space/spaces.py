"""The folder of a Space, as hf_transfer writes it."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def write_space(folder: Path, **settings: Any) -> Path:
    """The demo's files and its settings, in a folder with the model and the pictures of the examples."""
    for path in (REPOSITORY / "space").iterdir():
        if path.suffix in (".py", ".css", ".html", ".js"):
            shutil.copyfile(path, folder / path.name)
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder
