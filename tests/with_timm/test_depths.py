"""Models of timm that return no hidden state for each part are read behind the last module of each part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import pipeline

import hf_transfer as ht
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.modeling_deep_probe import tap_vectors
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.taps import taps_of, usual_taps
from tests.conftest import Recipe
from tests.with_timm.tiny_timm import save_timm

INPUTS = {"pixel_values": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def backbone(tmp_path: Path) -> Any:
    """A ResNet of timm without its last layer."""
    model: Any = Checkpoint(str(save_timm(tmp_path / "timm", "resnet18"))).finished_classifier()
    model.timm_model.fc = nn.Identity()
    return model.eval()


def test_a_tap_is_the_mean_over_all_places_of_what_enters_the_next_layer(backbone: Any, tmp_path: Path) -> None:
    """Although the next layer works in place."""
    groups = trace_groups(Checkpoint(str(tmp_path / "timm")).finished_classifier(), INPUTS)
    assert [group.name for group in groups[:2]] == ["timm_model.conv1", "timm_model.layer1.0"]
    taps = taps_of(backbone, groups, INPUTS, [("mean", 1), ("head", 0), ("mean", 4)])
    assert [tap.state for tap in taps] == ["timm_model.maxpool", 0, "timm_model.layer2"]
    model = backbone.timm_model
    with torch.no_grad():
        stem, head, middle = tap_vectors(backbone, [tap.saved for tap in taps], INPUTS)
        hidden = model.maxpool(model.act1(model.bn1(model.conv1(INPUTS["pixel_values"]))))
        expected = model.layer2(model.layer1(hidden)).mean((2, 3))
        logits = backbone(**INPUTS).logits
    torch.testing.assert_close(stem, hidden.mean((2, 3)))
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(head, logits)


def test_the_last_part_is_not_read_twice_where_the_head_reads_it(backbone: Any, tmp_path: Path) -> None:
    groups = trace_groups(Checkpoint(str(tmp_path / "timm")).finished_classifier(), INPUTS)
    taps = usual_taps(backbone, groups, INPUTS).taps
    assert [tap.name for tap in taps] == ["head", "mean_2", "mean_3", "mean_4", "mean_5"]


def test_a_deep_probe_is_saved_with_its_preprocessing_and_loads_without_us(vision: Recipe, tmp_path: Path) -> None:
    checkpoint = save_timm(tmp_path / "timm", "mobilenetv3_small_050", input_size=(3, 64, 64))
    ended = vision(model_name_or_path=checkpoint, strategy="deep_probe", taps="mean_3")
    assert ended.code == 0, ended.err
    noise = np.random.default_rng(0).integers(0, 256, (91, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    scores_here = ht.load(tmp_path / "out")([tmp_path / "picture.png"], top=99)[0]
    classify = pipeline("image-classification", str(tmp_path / "out" / "model"), trust_remote_code=True)
    answers = classify(str(tmp_path / "picture.png"), top_k=len(scores_here))
    assert {one["label"]: one["score"] for one in answers} == pytest.approx(scores_here, rel=1e-3, abs=1e-12)
