"""A head on several depths of a frozen backbone: solved, chosen by evidence, resumed, saved and loaded again."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_transfer.frozen import probe
from hf_transfer.frozen.taps import tap_features
from hf_transfer.models.taps import AllTaps, without_unread_taps
from hf_transfer.strategies.deep_probe import DeepProbe
from hf_transfer.strategies.freezing import LinearProbe
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.progress import Fit
from tests.frozen.solved_heads import HEADS, options_of, passes_of
from tests.tapped_models import OF_TEXTS, OUR_IMAGES, OUR_TEXTS, Tapped, tapped
from tests.tiny_models import logits
from tests.training.toy_task import Rows, TextRows, as_label_sets, as_numbers, loaders_of, settings, tiny, train

NAMES = (
    "vit",
    "swin",
    "convnext",
    "resnet_basic",
    "efficientnet",
    "bert",
    "mpnet",
    "gpt2",
    "albert",
    *OUR_IMAGES,
    *OUR_TEXTS,
)


def rows_of(name: str, size: int, seed: int = 0) -> Rows:
    """Samples of which half have a wrong label, so that the depths differ."""
    rows = TextRows(size, seed=seed) if name in OF_TEXTS else Rows(size, seed=seed)
    rows.labels[::2] = rows.labels[::2].roll(1)
    if name in ("efficientnet", "dinov3_convnext"):
        # Its layers make less than one place of 16 pixels.
        rows.inputs["pixel_values"] = interpolate(rows.pixels, scale_factor=2)
    return rows


def solved(name: str, *taps: str, one: Tapped | None = None, views: int = 0, **more: Any) -> Fit:
    """A run of the strategy on a tiny model."""
    one, strategy = one or tapped(name), DeepProbe(taps=taps)
    strategy.check(one.model, one.groups)
    model, groups = strategy.prepare(one.model, one.groups, one.inputs, 0)
    return train(model, groups, strategy, settings(**more), rows_of(name, 60), rows_of(name, 40, 1), views=views)


def stored_features(name: str, model: AllTaps, places: Sequence[int], **more: Any) -> Tensor:
    """The features of validation that a run has left on disk, without a pass."""
    config = settings(**more)
    with start_accelerator(config) as accelerator:
        passes = passes_of(loaders_of(accelerator, rows_of(name, 60), rows_of(name, 40, 1), 4), accelerator, config)
        with tap_features(model.backbone, model.choice.taps, model.widths, 0, passes) as features:
            assert features.validation is not None
            columns = features.validation.chunk(0)
    vectors = [columns[place] for place in places]
    if len(vectors) == 1:
        return vectors[0]
    return torch.cat([vector / vector.norm(dim=1, keepdim=True) for vector in vectors], 1)


@pytest.mark.parametrize("name", NAMES)
def test_reloaded_logits_are_the_stored_features_times_the_solved_weights(name: str, tmp_path: Path) -> None:
    """Of several depths, with the weights that are in the file; nothing of hf_transfer is loaded."""
    blocks = len(tapped(name).blocks)
    taps = ("mean_1", f"mean_{blocks}", "head")
    cache: dict[str, Any] = {"cache_frozen": "on", "cache_dir": str(tmp_path / "cache")}
    fitted = solved(name, *taps, **cache)
    finished: Any = fitted.model
    finished.save_pretrained(tmp_path / "model")
    auto = AutoModelForSequenceClassification if name in OF_TEXTS else AutoModelForImageClassification
    again = auto.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
    one = tapped(name)
    model, _ = DeepProbe(taps=taps).prepare(one.model, one.groups, one.inputs, 0)
    assert isinstance(model, AllTaps)
    features = stored_features(name, model, model.choice.combinations[0], **cache)
    weights = load_file(tmp_path / "model/model.safetensors")
    expected = features @ weights["classifier.weight"].T + weights.get("classifier.bias", torch.zeros(5))
    torch.testing.assert_close(logits(again, rows_of(name, 40, 1).inputs), expected, rtol=1e-5, atol=1e-5)
    assert fitted.trainable == sum(parameter.numel() for parameter in finished.classifier.parameters())


@pytest.mark.parametrize("name", ["vit", "resnet_basic", "bert", "gpt2"])
def test_the_head_alone_is_the_linear_probe_to_the_bit(name: str) -> None:
    """Also in the metrics; GPT-2 has no bias."""
    deep = solved(name, "head")
    model, groups, _ = tiny(name)
    plain = train(model, groups, LinearProbe(), settings(), rows_of(name, 60), rows_of(name, 40, 1))
    head = plain.model.get_submodule(HEADS[name])
    solved_layer = deep.model.get_submodule("classifier")
    assert isinstance(solved_layer, nn.Linear)
    for value, other in zip(head.parameters(), solved_layer.parameters(), strict=True):
        assert torch.equal(value, other)
    rows = [{key: value for key, value in one.history[0].items() if "second" not in key} for one in (deep, plain)]
    assert rows[0] == rows[1]
    assert deep.trainable == plain.trainable


def scores(fitted: Fit) -> tuple[dict[str, float], str]:
    """The score of each combination of taps in the report, and the one that was chosen."""
    (sentence,) = (note for note in fitted.notes if note.startswith("Taps by "))
    match = re.fullmatch(r"Taps by (.+) on 100 held-out samples: (.+)\. The head reads (.+)\.", sentence)
    assert match is not None
    pairs = (part.rpartition(" ") for part in match[2].split(", "))
    return {name: float(score) for name, _, score in pairs}, match[3]


def without_a_signal_in_the_head(name: str) -> Tapped:
    """The last norm of the backbone forgets its input."""
    one = tapped(name)
    nn.init.zeros_(one.model.get_parameter("vit.layernorm.weight"))
    return one


def test_the_taps_with_the_best_held_out_score_are_chosen() -> None:
    """Both training and validation count. Where the head sees nothing, it is not read."""
    by_name, chosen = scores(solved("vit"))
    assert by_name.keys() == {"head", "mean_1", "mean_2", "mean_3", "head + mean_1 + mean_2 + mean_3"}
    assert by_name[chosen] == max(by_name.values())
    by_name, chosen = scores(solved("vit", one=without_a_signal_in_the_head("vit")))
    assert by_name["head"] < 0.3
    assert by_name[chosen] == max(by_name.values()) > by_name["head"]


def test_a_large_validation_split_chooses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 samples, if that were many."""
    monkeypatch.setattr(probe, "FEW_HELD_OUT", 40)
    assert any("on 40 held-out samples" in note for note in solved("vit").notes)


@pytest.mark.parametrize("relabel", [as_label_sets, as_numbers])
def test_labels_and_numbers_are_solved_with_their_own_solvers(relabel: Any) -> None:
    """Held-out predictions for thresholds and intervals are those of the chosen taps."""
    one = tapped("vit")
    strategy = DeepProbe()
    model, groups = strategy.prepare(one.model, one.groups, one.inputs, 0)
    rows, validation = Rows(60), Rows(40, seed=1)
    target = relabel(rows)
    relabel(validation)
    config = settings()
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4, target=target)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        fitted = probe.solve_head(model, "classifier", passes, options)
    assert fitted.held_out is not None
    assert len(fitted.held_out) == 100
    outputs = logits(without_unread_taps(model), validation.inputs)
    torch.testing.assert_close(fitted.held_out.outputs[:40].float(), outputs, rtol=1e-4, atol=1e-4)
    assert groups[-1].modules == ("classifier",)


def test_another_choice_of_taps_needs_no_pass(tmp_path: Path) -> None:
    """What is stored once serves all taps that are usually tried."""
    cache: dict[str, Any] = {"cache_frozen": "on", "cache_dir": str(tmp_path)}
    first = solved("bert", **cache)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = solved("bert", **cache)
    solved("bert", "first_3", **cache)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written
    states = (first.model.state_dict(), again.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_that_is_resumed_keeps_its_taps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is not solved again, and the weights are the same to the bit."""
    out: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache"), "save_steps": 1}
    first = solved("bert", **out)
    monkeypatch.setattr(probe, "solve_head", lambda *_: pytest.fail("it was solved again"))
    again = solved("bert", **out)
    configurations: list[Any] = [one.model.config for one in (first, again)]
    assert configurations[0].taps == configurations[1].taps
    states = (first.model.state_dict(), again.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert again.notes == first.notes


def test_the_head_sees_all_views() -> None:
    """Twice as many samples count."""
    rows = [solved("vit", "mean_2", views=views).history[0] for views in (0, 1)]
    assert [round(row["samples_per_second"] * row["seconds"]) for row in rows] == [60, 120]
