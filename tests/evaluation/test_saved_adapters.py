"""An adapter in `OUT/model` is loaded with its base: from another folder, and at the commit it was trained on."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch import nn

from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.evaluation import saved_model
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.targets.classes import Classes

TASK = "image-classification"
TARGET = Classes(("no", "yes"))


def adapted(checkpoint: Checkpoint) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    inputs = {"pixel_values": torch.randn(2, 3, model.config.image_size, model.config.image_size)}
    return LowRankAdaptation().prepare(model, trace_groups(model, inputs), inputs, 0)[0].eval(), inputs


def test_the_base_of_a_relative_path_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for a Hub id, and anybody can own a model of that name."""
    shutil.copytree(backbone_folder("sample:vit-glyphs"), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint("./base")
    model, inputs = adapted(checkpoint)
    saved_model.save_model(model, tmp_path / "model", base=checkpoint.path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = saved_model.load_finished(Checkpoint(str(tmp_path / "model"), task=TASK), TARGET)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_the_base_is_loaded_in_the_revision_it_was_trained_on(tmp_path: Path) -> None:
    """Of a base on the Hub; by us, and by peft, which reads it in the same place."""
    checkpoint = Checkpoint("sample:vit-glyphs")
    model, _ = adapted(checkpoint)
    assert isinstance(model, PeftModel)
    saved_model.save_model(model, tmp_path / "model", base="owner/base", revision="v2")
    assert json.loads((tmp_path / "model" / "adapter_config.json").read_text())["revision"] == "v2"
    loaded: list[tuple[object, ...]] = []

    def recorded(*names: object) -> Checkpoint:
        loaded.append(names[:2])
        return checkpoint if names[0] == "owner/base" else Checkpoint(str(names[0]))

    with patch.object(saved_model, "Checkpoint", recorded):
        saved_model.load_finished(Checkpoint(str(tmp_path / "model"), task=TASK), TARGET)
    assert ("owner/base", "v2") in loaded
