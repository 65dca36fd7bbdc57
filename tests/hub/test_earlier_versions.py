"""Runs of version 0.1 are published, and shown as a demo."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from about import read_settings
from hf_transfer.evaluation.results import Results
from hf_transfer.hub.runs import push_run
from hf_transfer.hub.space import assemble_space, publish_space, serve_demo
from tests.conftest import REPOSITORY
from tests.hub.stand_in import StandIn
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

VERSION_0_1 = REPOSITORY / "tests/evaluation/version_0_1"
NAMES: dict[str, Any] = {"id2label": {0: "blue", 1: "green"}, "label2id": {"blue": 0, "green": 1}}


def earlier_run(out: Path, settings: str) -> Path:
    """The files that version 0.1 wrote: no preprocessing.json beside the model."""
    save = save_checkpoint if settings == "vision" else save_text_checkpoint
    save(out / "model", num_labels=2, **NAMES)
    shutil.copyfile(VERSION_0_1 / "vision.json", out / "results.json")
    if settings != "vision":
        content = json.loads((out / "results.json").read_text()) | {"recipe": "text"}
        (out / "results.json").write_text(json.dumps(content))
    shutil.copyfile(VERSION_0_1 / f"{settings}.yaml", out / "config.yaml")
    return out


def test_a_run_of_version_0_1_is_published_and_shown(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of samples that were evaluated, where version 0.1 counted a masked one."""
    out = earlier_run(tmp_path / "out", "vision")
    push_run(out, "alice/pets", private=True)
    card = hub.model("alice/pets").texts()["README.md"].decode()
    assert ", 119 of 120 images)." in card
    assert "| test | 119 of 120 |" in card
    publish_space(out, "alice/pets", private=True, examples=0)
    settings = json.loads(hub.repositories["spaces", "alice/pets"].texts()["settings.json"])
    assert settings["score"]["samples"] == "119 of 120"
    assert settings["score"]["value"] == Results.read(out).test.metrics["accuracy"]

    class Ended:
        def __init__(self, *_: object, cwd: Path, **__: object) -> None:
            assert json.loads((cwd / "settings.json").read_text())["score"]["samples"] == "119 of 120"

        def wait(self) -> int:
            return 0

        def kill(self) -> None:
            """It has ended."""

    monkeypatch.setattr(subprocess, "Popen", Ended)
    assert serve_demo(out, port=7999, examples=0) == 0


def test_the_space_of_a_text_model_of_version_0_1_has_length_and_columns_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 saved them nowhere else."""
    monkeypatch.delenv("MODEL_ID", raising=False)
    out = earlier_run(tmp_path / "out", "pairs")
    settings = read_settings(assemble_space(out, tmp_path / "space", examples=0))
    assert (settings.texts, settings.max_length) == (("one", "other"), 9)
