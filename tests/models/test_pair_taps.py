"""Two towers that are read at several depths, and the classifier on these taps that is saved."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_transfer.models.modeling_pair_probe import PairProbeConfig, PairProbeModel
from hf_transfer.models.pair_taps import usual_pair_taps
from hf_transfer.models.taps import vectors_of
from hf_transfer.models.towers import PairTowers, trace
from tests.tapped_models import mean_by_hand, outputs_of
from tests.tiny_models import perturb
from tests.tiny_pairs import PAIRS, all_taps, pair_inputs, tiny_pair

WITHOUT_US = """
import json, sys
sys.modules["hf_transfer"] = None
from safetensors.torch import load_file
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
print("LOGITS", json.dumps(model(**load_file(sys.argv[2])).logits.tolist()))
"""


def one_without_each_part(name: str) -> dict[str, Tensor]:
    """Three samples: with both, without an image, and without a text."""
    inputs = pair_inputs(name, seed=3, rows=3)
    inputs["image_present"][1] = inputs["text_present"][2] = False
    return inputs


@pytest.mark.parametrize("name", PAIRS)
def test_the_usual_taps_are_those_of_each_tower_and_which_part_is_present(name: str) -> None:
    """Every combination reads something of both towers, and what is present; first what enters the usual head."""
    choice = all_taps(name).choice
    names = [tap.name for tap in choice.taps]
    assert names[-2:] == ["image_present", "text_present"]
    assert {"image_head", "text_head", "image_mean_1", "text_mean_1"} <= {*names}
    for places in choice.combinations:
        assert {choice.taps[place].tower for place in places[:-2]} == {"image", "text"}
        assert places[-2:] == (len(names) - 2, len(names) - 1)
        assert list(places) == sorted(places)
        for tower in ("image", "text"):
            read = [choice.taps[place] for place in places[:-2] if choice.taps[place].tower == tower]
            # Of two or three blocks, only the last is late enough to be read alone.
            assert len(read) > 1 or read[0].block in (0, 2 if name == "clip" else 3), (name, read)
    assert [names[place] for place in choice.combinations[0]] == [
        "image_head", "text_head", "image_present", "text_present",
    ]  # fmt: skip
    assert len({*choice.combinations}) == len(choice.combinations)


@pytest.mark.parametrize("name", PAIRS)
def test_the_vectors_of_taps_are_means_behind_blocks_and_zero_where_a_part_is_missing(name: str) -> None:
    model = tiny_pair(name)
    groups, inputs = trace(model, pair_inputs(name)), one_without_each_part(name)
    towers = PairTowers(model)
    choice = usual_pair_taps(towers, groups, pair_inputs(name))
    with torch.no_grad():
        vectors = dict(zip([tap.name for tap in choice.taps], vectors_of(towers, choice.taps, inputs), strict=True))
    for tower, missing in (("image", 1), ("text", 2)):
        blocks = [group.name for group in groups if group.is_block and group.tower == tower]
        outputs, _ = outputs_of(model, blocks, inputs)
        mask = {"attention_mask": inputs["attention_mask"]} if tower == "text" else {}
        for number, output in enumerate(outputs, 1):
            if f"{tower}_mean_{number}" in vectors:
                expected = mean_by_hand(output, mask)
                expected[missing] = 0.0
                torch.testing.assert_close(vectors[f"{tower}_mean_{number}"], expected, rtol=1e-5, atol=1e-6)
        assert vectors[f"{tower}_present"].flatten().tolist() == [float(row != missing) for row in range(3)]
        assert not vectors[f"{tower}_head"][missing].any()
        assert vectors[f"{tower}_head"][0].any()


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_saved_has_the_logits_of_the_run_where_hf_transfer_is_not_installed(name: str, tmp_path: Path) -> None:
    """Also of samples without an image or a text; it reads the chosen taps alone."""
    tapped, inputs = all_taps(name), one_without_each_part(name)
    places = tapped.choice.combinations[-1]
    width = sum(tapped.widths[place] for place in places)
    weight = torch.randn(tapped.classifier.out_features, width, generator=torch.Generator().manual_seed(6))
    tapped.read_only(places, weight, torch.arange(float(len(weight))))
    with torch.no_grad():
        expected = tapped(**inputs).logits
    tapped.with_read_taps().save_pretrained(tmp_path / "model")
    save_file(inputs, tmp_path / "inputs.safetensors")
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path / "model"), str(tmp_path / "inputs.safetensors")],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    logits = torch.tensor(json.loads(ended.stdout.split("LOGITS", 1)[1]))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    again: Any = PairProbeModel.from_pretrained(tmp_path / "model")
    assert again.classifier.weight.shape == weight.shape
    assert [kind for _, kind, _ in again.config.taps[-2:]] == ["present", "present"]


def test_inputs_that_all_samples_lack_need_not_be_given() -> None:
    tapped, inputs = all_taps("vit"), pair_inputs("vit", rows=3)
    model = tapped.with_read_taps().eval()
    with torch.no_grad():
        for part, names in (("image", ["pixel_values"]), ("text", ["input_ids", "attention_mask"])):
            hidden = {**inputs, f"{part}_present": torch.zeros(3, dtype=torch.bool)}
            without = {key: value for key, value in hidden.items() if key not in names}
            torch.testing.assert_close(model(**without).logits, model(**hidden).logits)
        with pytest.raises(ValueError, match="pixel_values or input_ids must be given"):
            model(image_present=inputs["image_present"])


def test_the_inputs_of_a_missing_part_have_no_effect() -> None:
    model, inputs = all_taps("vit").with_read_taps().eval(), one_without_each_part("vit")
    with torch.no_grad():
        before = model(**inputs).logits
        inputs["pixel_values"][1] = torch.nan
        inputs["input_ids"][2] = 7
        assert torch.equal(model(**inputs).logits, before)


def test_the_towers_keep_their_weights() -> None:
    """A finished model is perturbed without its towers: these are shared, not copied."""
    tapped = all_taps("vit")
    finished = tapped.with_read_taps()
    assert isinstance(finished, PairProbeModel)
    perturb(finished.classifier, 3)
    for one, other in zip(finished.image_tower.parameters(), tapped.backbone.image_tower.parameters(), strict=True):  # type: ignore[union-attr]
        assert one is other


def test_a_configuration_with_taps_of_no_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="taps are a tower, one of"):
        PairProbeConfig(taps=[["sound", "head", 0]], widths=[3])
    assert PairProbeConfig().taps == [["image", "head", 0], ["text", "head", 0]]
