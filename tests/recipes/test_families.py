"""Every family of pretrained models with every kind of strategy, and its results where hf_transfer is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hf_transfer
from hf_transfer.errors import UserError
from hf_transfer.hub.space import assemble_space
from tests.blocked_imports import BLOCK_HF_TRANSFER
from tests.data.conftest import text_rows, write_table
from tests.models.families import FAMILIES, Family

# One of each kind: on stored features, at several depths, with frozen layers, and with adapters.
SETTINGS: dict[str, dict[str, Any]] = {
    "linear_probe": {"strategy": "linear_probe"},
    "deep_probe": {"strategy": "deep_probe"},
    "partial": {"strategy": "partial", "trainable_layers": 2},
    "lora": {"strategy": "lora"},
    "lora merged": {"strategy": "lora", "merge_adapter": True},
}
# Where a finished model is used: transformers alone, which runs the modelling file if there is one.
ELSEWHERE = (
    BLOCK_HF_TRANSFER
    + """
import json, sys
from transformers import pipeline
answers = {}
for name, task, samples in json.loads(sys.argv[1]):
    classify = pipeline(task, name, trust_remote_code=True, device="cpu")
    options = {"truncation": True} if task == "text-classification" else {}
    answers[name] = [{row["label"]: row["score"] for row in rows} for rows in classify(samples, top_k=None, **options)]
print(json.dumps(answers))
"""
)
TEXTS = ["word5 word12 word13", "word6 word20", "word5 word44 word40 word31"]


def make_data(folder: Path) -> dict[str, Path]:
    """Pictures and texts of two classes that differ, by recipe."""
    generator = np.random.default_rng(0)
    for number, label in enumerate(("cat", "dog")):
        (folder / "pictures" / label).mkdir(parents=True)
        for position in range(20):
            noise = generator.integers(0, 100, (20, 24, 3))
            noise[..., number] += 120
            Image.fromarray(noise.astype(np.uint8)).save(folder / "pictures" / label / f"{position}.png")
    return {"vision": folder / "pictures", "text": write_table(folder / "texts.csv", text_rows(40))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """See `make_data`."""
    return make_data(tmp_path_factory.mktemp("data"))


def trained(family: Family, folder: Path, data: dict[str, Path], **settings: Any) -> Path:
    """The finished model of a short run that starts from the checkpoint in `folder / base`."""
    base, out = folder / "base", folder / "out"
    if not base.exists():
        family.checkpoint(base)
    epochs = {} if "probe" in settings["strategy"] else {"num_train_epochs": 1}
    hf_transfer.train(
        str(data[family.recipe]), model=str(base), output_dir=str(out), modality=family.recipe, report_to=["none"],
        cache_dir=str(folder / "cache"), **epochs, **settings,
    )  # fmt: skip
    return out / "model"


@pytest.mark.slow
def test_a_finished_model_of_each_family_gives_the_same_answers_where_we_are_not_installed(
    data: dict[str, Path], tmp_path: Path
) -> None:
    """One process for all of them, in which only transformers is used."""
    jobs, ours = [], {}
    for name, family in FAMILIES.items():
        model = str(trained(family, tmp_path / name, data, strategy="full"))
        samples = TEXTS if family.recipe == "text" else sorted(map(str, data["vision"].rglob("1*.png")))[:3]
        jobs.append((model, family.task, samples))
        ours[model] = hf_transfer.load(model)(samples)
        assert json.loads((Path(model) / "config.json").read_text())["architectures"] == [family.result], name
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps(jobs)], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers.keys() == ours.keys()
    for model, expected in ours.items():
        for there, here in zip(answers[model], expected, strict=True):
            assert there == pytest.approx(here, abs=1e-5), model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov3_vit", "t5"])
def test_the_demo_of_a_head_of_ours_may_run_the_file_that_is_saved_with_it(
    name: str, data: dict[str, Path], tmp_path: Path
) -> None:
    model = trained(FAMILIES[name], tmp_path, data, strategy="linear_probe")
    space = assemble_space(model.parent, tmp_path / "space")
    assert json.loads((space / "settings.json").read_text(encoding="utf-8"))["trust_remote_code"] is True
    (code,) = (space / "model").glob("*.py")
    code.write_text(code.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    (model / code.name).write_bytes(code.read_bytes())
    with pytest.raises(UserError, match="no code beside the model in"):
        assemble_space(model.parent, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_strategy_trains_but_those_that_need_a_classifier_of_transformers(
    name: str, data: dict[str, Path], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    refused = []
    for kind, settings in SETTINGS.items():
        try:
            model = trained(family, tmp_path / kind, data, **settings)
        except UserError:
            refused.append(kind)
        else:
            assert hf_transfer.load(model)
    assert tuple(refused) == family.refused
