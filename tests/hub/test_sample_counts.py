"""One number of samples everywhere: a masked sample counts in no report, card, Space or command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import page
from about import read_card, read_settings
from classifier import Classifier
from hf_transfer import command_line
from hf_transfer.evaluation.results import Results
from hf_transfer.hub.space import assemble_space
from tests.conftest import Recipe

COUNTS = {"train": 8, "validation": 4, "test": 60}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of two classes; one of 120 test pictures is damaged."""
    draw = np.random.default_rng(5)
    for split, count in COUNTS.items():
        for name in ("blue", "green"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "pictures/test/green/7.png").write_bytes(b"damaged")
    return tmp_path / "pictures"


def test_a_masked_test_sample_is_not_counted_anywhere(
    pictures: Path, vision: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"dataset_name": pictures, "on_bad_sample": "skip", "max_train_samples_per_class": None}
    run, out = vision(**settings), tmp_path / "out"
    assert run.code == 0, run.err
    on_data = "16 train, 8 validation, 119 of 120 test images of 2 classes."
    assert on_data in run.out
    assert "Unreadable images, masked" in run.out

    content = json.loads((out / "results.json").read_text())
    assert (content["samples"]["test"], content["masked"]["test"]) == (119, 1)
    assert sum(row["samples"] for row in content["classes"]) == 119
    results = Results.read(out)
    assert (results.test.samples, results.test.masked, results.samples["test"]) == (119, 1, 119)
    right = results.test.metrics["accuracy"] * 119
    assert right == pytest.approx(round(right), abs=1e-9)

    report = (out / "report.md").read_text(encoding="utf-8")
    assert ", 119 of 120 samples), macro F1" in report
    assert "| test | 119 of 120 | " in report
    assert f"- {on_data}" in report

    card = str(ModelCard((out / "model/README.md").read_text(encoding="utf-8")).text)
    assert ", 119 of 120 images)." in card
    assert card.count("| test | 119 of 120 |") == 2
    assert "Unreadable images that were left out: 1 in test." in card

    monkeypatch.delenv("MODEL_ID", raising=False)
    space = assemble_space(out, tmp_path / "space", examples=0)
    shown = page.masthead(read_settings(space), read_card(space / "model"), Classifier(space / "model"))
    assert ", 119 of 120 samples" in shown
    assert ", 119 of 120 images)." in read_card(space / "model").text

    # Neither a speed, nor a time, nor a part of a path.
    alone = r"(?<!119 of )(?<![\w.-])120\b(?! samples/s| files in| s\b|/)"
    assert re.findall(alone, "119 of 120, 0.120 /tmp/pytest-120/a 120 samples/s, test from 120 files in test") == []
    assert len(re.findall(alone, "120 samples, | 120 | (120 images)")) == 3
    for text in (report, card, shown, run.out):
        assert not re.search(alone, text), text
    command_line.main(["doctor", "--config", str(out / "config.yaml")])
    assert on_data in capsys.readouterr().out
