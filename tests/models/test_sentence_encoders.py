"""Sentence encoders: the pooling that their own files name, and who uses it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_transfer.advice.costs import Costs, seconds_of_strategies
from hf_transfer.errors import UserError
from hf_transfer.frozen.taps import materials_of
from hf_transfer.modalities.text import TextModality
from hf_transfer.models.pretrained import Checkpoint, load_classifier
from hf_transfer.models.sentence_encoders import NamedPooling, named_pooling
from hf_transfer.models.taps import HEAD_INPUT, Tap, usual_taps, vectors_of, without_head
from hf_transfer.settings.run import TextConfig
from hf_transfer.targets.classes import Classes
from tests.hub.contents import cache_by_hand
from tests.tiny_models import logits
from tests.tiny_text_models import save_text_checkpoint, token_ids

TEXT = "text-classification"
TARGET = Classes(("a", "b"))
MEAN: Mapping[str, Any] = MappingProxyType(
    {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
)
FILE = "1_Pooling/config.json"
# By the names of older and newer versions of sentence-transformers.
NORMALIZE = "sentence_transformers.models.Normalize"
NEW_NORMALIZE = "sentence_transformers.sentence_transformer.modules.normalize.Normalize"
DENSE = "sentence_transformers.models.Dense"
DROPOUT = "sentence_transformers.models.Dropout"
OF_POOLING = f"The head reads the mean of all tokens, as {FILE} of the model says."
OF_LENGTH = "modules.json of the model also names Normalize: what the head reads is scaled to one length."


def save_sentence_encoder(
    folder: Path, pooling: Mapping[str, Any] | None = MEAN, behind: Sequence[str] = (NORMALIZE,)
) -> Path:
    """A tiny checkpoint with the files of sentence-transformers.

    Args:
        folder: for it.
        pooling: the settings of the module that pools; None: they are missing.
        behind: the types of the modules behind that one.
    """
    save_text_checkpoint(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    for place, kind in enumerate(behind, 2):
        modules.append({"idx": place, "name": str(place), "path": f"{place}_Module", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / FILE).write_text(json.dumps(dict(pooling)), encoding="utf-8")
    return folder


def named(folder: Path) -> NamedPooling | None:
    return named_pooling(lambda name: folder / name if (folder / name).is_file() else None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (MEAN, NamedPooling("mean", "mean", FILE)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, NamedPooling("cls", "cls", FILE)),
        ({"pooling_mode_lasttoken": True}, NamedPooling("last", "lasttoken", FILE)),
        ({"pooling_mode": "mean"}, NamedPooling("mean", "mean", FILE)),
        ({"pooling_mode_max_tokens": True}, NamedPooling(None, "max", FILE)),
        ({**MEAN, "pooling_mode_max_tokens": True}, NamedPooling(None, "mean+max", FILE)),
        ({**MEAN, "include_prompt": True}, NamedPooling("mean", "mean", FILE)),
        ({**MEAN, "include_prompt": False}, NamedPooling("mean", "mean", FILE, leaves_out_prompt=True)),
        ({"word_embedding_dimension": 24}, NamedPooling(None, "", FILE)),
        (None, NamedPooling(None, "", FILE)),
    ],
)
def test_the_pooling_is_read_from_the_files(
    settings: dict[str, Any] | None, expected: NamedPooling, tmp_path: Path
) -> None:
    assert named(save_sentence_encoder(tmp_path, settings, ())) == expected


def test_most_checkpoints_name_no_pooling(tmp_path: Path) -> None:
    assert named(save_text_checkpoint(tmp_path)) is None
    (tmp_path / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    assert named(tmp_path) is None


def test_layers_that_are_weighted_before_are_not_the_pooling(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path, behind=())
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    weighted = {"idx": 1, "path": "1_Weights", "type": "sentence_transformers.models.WeightedLayerPooling"}
    (folder / "modules.json").write_text(json.dumps([modules[0], weighted, *modules[1:]]), encoding="utf-8")
    assert named(folder) == NamedPooling("mean", "mean", FILE, ("WeightedLayerPooling",))


@pytest.mark.parametrize(
    ("behind", "shown"),
    [
        ([DENSE], "Dense, which is"),
        (["sentence_transformers.base.modules.dense.Dense", "org.LayerNorm"], "Dense and LayerNorm, which are"),
        ([DROPOUT], None),
    ],
)
def test_modules_that_are_not_loaded_are_named(behind: list[str], shown: str | None, tmp_path: Path) -> None:
    """A head on the output of a dense layer would read something else."""
    folder = save_sentence_encoder(tmp_path, behind=behind)
    of_pooling, *more = Checkpoint(str(folder), task=TEXT, pooling="own").notes
    assert of_pooling == OF_POOLING
    sentence = (
        f"modules.json of the model also names {shown} not loaded: the head reads what the pooling makes of the last "
        "hidden states."
    )
    assert more == ([sentence] if shown else [])


@pytest.mark.parametrize(("pooling", "is_named"), [("mean", True), ("cls", False)])
def test_a_mean_without_the_prompt_is_said_to_be_one_with_it(pooling: str, is_named: bool, tmp_path: Path) -> None:
    """What the first or the last token is does not depend on it."""
    folder = save_sentence_encoder(tmp_path, {"pooling_mode": pooling, "include_prompt": False})
    _, *more = Checkpoint(str(folder), task=TEXT, pooling="own").notes
    sentence = f"{FILE} leaves the tokens of a prompt out of the mean (include_prompt): here they are in it."
    assert more == ([sentence] if is_named else [])


@pytest.mark.parametrize("path", ["../outside", "/etc"])
def test_a_file_outside_the_checkpoint_is_not_read(path: str, tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "model")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text(json.dumps(dict(MEAN)), encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Pooling"}]), encoding="utf-8")
    assert named(folder) is None


def test_the_head_reads_what_the_checkpoint_was_trained_with(tmp_path: Path) -> None:
    """As with `--pooling mean`, and the report says why."""
    folder = save_sentence_encoder(tmp_path, behind=())
    checkpoint = Checkpoint(str(folder), task=TEXT, pooling="own")
    assert checkpoint.notes == (OF_POOLING,)
    models = [
        one.classifier(TARGET, seed=0, fresh_weights=False).eval()
        for one in (checkpoint, Checkpoint(str(folder), task=TEXT, pooling="mean"))
    ]
    assert torch.equal(*(logits(model, token_ids()) for model in models))


@pytest.mark.parametrize(
    ("behind", "is_scaled"),
    [
        ([NORMALIZE], True),
        ([NEW_NORMALIZE], True),
        ([DROPOUT, NORMALIZE], True),
        ([], False),
        # It would scale what the dense layer returns, which is not loaded.
        ([DENSE, NORMALIZE], False),
        (["org.LayerNorm", NORMALIZE], False),
    ],
)
def test_the_head_reads_vectors_of_one_length_where_the_files_name_that(
    behind: list[str], is_scaled: bool, tmp_path: Path
) -> None:
    """The vectors of sentence-transformers, times the square root of their width: entries have a size of about 1."""
    folder = save_sentence_encoder(tmp_path, behind=behind)
    checkpoint = Checkpoint(str(folder), task=TEXT, pooling="own", is_solved=True)
    assert (OF_LENGTH in checkpoint.notes) == is_scaled
    assert checkpoint.scaled_if_solved == ("mean" if is_scaled else None)
    plain, read = head_inputs(Checkpoint(str(folder), task=TEXT, pooling="mean")), head_inputs(checkpoint)
    expected = plain / plain.square().sum(1, keepdim=True).sqrt() * plain.shape[1] ** 0.5 if is_scaled else plain
    torch.testing.assert_close(read, expected, rtol=1e-5 if is_scaled else 0, atol=1e-6 if is_scaled else 0)


def head_inputs(checkpoint: Checkpoint) -> torch.Tensor:
    """What enters the head [texts, width]."""
    model = checkpoint.classifier(TARGET, seed=0, fresh_weights=False).eval()
    with without_head(model, "classifier"):
        return logits(model, token_ids(rows=5))


@pytest.mark.parametrize(("wanted", "is_scaled"), [("own", True), ("class", True), ("mean", False), ("cls", False)])
def test_a_result_is_a_start_that_reads_vectors_as_it_was_trained_with(
    wanted: Any, is_scaled: bool, tmp_path: Path
) -> None:
    """Also if more of it is trained; a pooling that the settings name is read as it is."""
    folder = save_sentence_encoder(tmp_path / "encoder")
    encoder = Checkpoint(str(folder), task=TEXT, pooling="own", is_solved=True)
    encoder.classifier(TARGET, seed=0, fresh_weights=False).save_pretrained(tmp_path / "result")
    start = Checkpoint(str(tmp_path / "result"), task=TEXT, pooling=wanted)
    for fresh in (False, True):
        assert start.classifier(TARGET, seed=0, fresh_weights=fresh).config.normalized is is_scaled
    assert start.finished_classifier().config.normalized is True
    assert start.scaled_if_solved is None


def test_vectors_of_one_length_are_stored_under_another_key(tmp_path: Path) -> None:
    """Of the same weights."""
    accelerator, identities = Accelerator(cpu=True), []
    for name, behind in (("plain", ()), ("scaled", (NORMALIZE,))):
        folder = save_sentence_encoder(tmp_path / name, behind=behind)
        checkpoint = Checkpoint(str(folder), task=TEXT, pooling="own", is_solved=True)
        model = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
        with without_head(model, "classifier"):
            identities.append(materials_of(model, [HEAD_INPUT], accelerator)[0])
    plain, scaled = identities
    assert plain["weights"] == scaled["weights"]
    assert plain["settings"] != scaled["settings"]


@pytest.mark.parametrize("settings", [None, {"pooling_mode_max_tokens": True}])
def test_a_pooling_that_is_not_available_is_said_and_changes_nothing(
    settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(str(save_sentence_encoder(tmp_path, settings)), task=TEXT, pooling="own")
    fault = "names no pooling" if settings is None else "names the pooling max, which is not available"
    assert checkpoint.notes == (
        f"{FILE} of the model {fault}: the head reads what transformers' classifier for it reads.",
    )
    model = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    assert type(model).__name__ == "BertForSequenceClassification"


def test_another_pooling_is_used_if_it_is_asked_for(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(save_sentence_encoder(tmp_path)), task=TEXT, pooling="cls")
    assert checkpoint.notes == ()
    model: Any = checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    assert model.config.pooling == "cls"


def test_the_sample_keeps_the_pooling_of_all_measurements() -> None:
    """The package that carries it has the files of a sentence encoder."""
    checkpoint = Checkpoint("sample:minilm", task=TEXT, pooling="own")
    assert checkpoint.file(FILE) is not None
    assert checkpoint.notes == ()
    model = checkpoint.classifier(TARGET, seed=0, fresh_weights=True)
    assert type(model).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("kept", ["neither", "file", "that there is none"])
def test_a_run_without_the_hub_says_that_the_pooling_is_not_known(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program has downloaded the model alone."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "b" * 40
    cache_by_hand(tmp_path / "hub", "org/encoder", save_text_checkpoint(tmp_path / "model"), commit)
    home = tmp_path / "hub" / "models--org--encoder"
    if kept == "file":
        (home / "snapshots" / commit / "modules.json").write_text("[]")
    elif kept == "that there is none":
        (home / ".no_exist" / commit).mkdir(parents=True)
        (home / ".no_exist" / commit / "modules.json").touch()
    sentence = (
        "Whether org/encoder names a pooling or a prompt is not known: modules.json is not in the "
        "cache, and the Hub does not answer. This run does as if it named none."
    )
    assert Checkpoint("org/encoder", task=TEXT, pooling="own").notes == ((sentence,) if kept == "neither" else ())
    assert Checkpoint("org/encoder", task=TEXT, pooling="mean").notes == ()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path)
    (folder / "modules.json").write_text("[{", encoding="utf-8")
    with pytest.raises(UserError, match="a complete transformers checkpoint in"):
        Checkpoint(str(folder), task=TEXT, pooling="own")


def model_of_run(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model with which a run would start."""
    config = TextConfig.of(model_name_or_path=str(folder), dataset_name="none", output_dir="none", **settings)
    return TextModality().checkpoint(config).classifier(TARGET, seed=0, fresh_weights=True)


@pytest.mark.parametrize(
    ("settings", "is_scaled"),
    [
        ({"strategy": "linear_probe"}, True),
        ({"strategy": "deep_probe"}, True),
        ({"strategy": "linear_probe", "pooling": "mean"}, False),
        ({"strategy": "lp_ft"}, False),
        ({"strategy": "full"}, False),
        ({"strategy": "lora", "merge_adapter": True}, False),
        ({"strategy": "scratch"}, False),
        ({"strategy": "auto"}, False),
    ],
)
def test_only_what_a_solved_head_reads_is_scaled(settings: dict[str, Any], is_scaled: bool, tmp_path: Path) -> None:
    """Fine-tuning is worse with it, and auto runs each strategy by itself."""
    assert model_of_run(save_sentence_encoder(tmp_path), **settings).config.normalized is is_scaled


def test_only_what_can_be_saved_with_another_pooling_has_it(tmp_path: Path) -> None:
    """An adapter alone belongs to a class of transformers."""
    folder = save_sentence_encoder(tmp_path)
    pooled, plain = "PooledForSequenceClassification", "BertForSequenceClassification"

    def class_name(**settings: Any) -> str:
        return type(model_of_run(folder, **settings)).__name__

    assert class_name(strategy="full") == pooled
    assert class_name(strategy="linear_probe") == pooled
    assert class_name(strategy="lora", merge_adapter=True) == pooled
    assert class_name(strategy="lora") == plain
    assert class_name(strategy="deep_probe") == pooled


def test_a_sentence_encoder_is_still_read_at_several_depths(tmp_path: Path) -> None:
    """Rankings and advice look at all of them, unless the settings name the pooling."""
    folder = str(save_sentence_encoder(tmp_path))
    assert Checkpoint(folder, task=TEXT, pooling="own").is_read_at_depths
    assert not Checkpoint(folder, task=TEXT, pooling="mean").is_read_at_depths


def read_at_depths(folder: Path, pooling: Any) -> tuple[list[list[Tap]], dict[str, torch.Tensor]]:
    """What is tried together for a solved head, and the vectors of each place by its name."""
    inputs = token_ids()
    checkpoint = Checkpoint(str(folder), task=TEXT, pooling=pooling, is_solved=True)
    model, groups = load_classifier(checkpoint, TARGET, inputs, seed=0, fresh_weights=False)
    model.eval()
    with without_head(model, groups[-1].modules[0]), torch.no_grad():
        choice = usual_taps(model, groups, inputs)
        vectors = vectors_of(model, choice.taps, inputs)
    tried = [[choice.taps[place] for place in places] for places in choice.combinations]
    return tried, {tap.name: vector for tap, vector in zip(choice.taps, vectors, strict=True)}


def test_advised_places_are_those_that_a_deep_probe_reads(tmp_path: Path) -> None:
    """The head reads the mean behind the last block; other blocks are those of transformers' classifier."""
    folder = save_sentence_encoder(tmp_path, behind=())
    advised, vectors = read_at_depths(folder, "own")
    _, of_class = read_at_depths(folder, "class")
    assert {tap.name for tap in advised[-1]} == {"head", "mean_1", "mean_2"}
    for name in ("mean_1", "mean_2", "first_3"):
        torch.testing.assert_close(vectors[name], of_class[name])
    torch.testing.assert_close(vectors["head"], of_class["mean_3"])


def test_of_vectors_of_one_length_a_deep_probe_also_reads_the_mean_as_it_is(tmp_path: Path) -> None:
    tried, vectors = read_at_depths(save_sentence_encoder(tmp_path), "own")
    assert [tap.name for tap in tried[0]] == ["head"]
    assert {tap.name for tap in tried[-1]} == {"mean_1", "mean_2", "mean_3"}
    root_mean_square = vectors["mean_3"].square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(vectors["head"], vectors["mean_3"] / root_mean_square)


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_advice_tells_whether_a_deep_probe_can_be_trained(pooling: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(save_sentence_encoder(tmp_path)), task=TEXT, pooling=pooling)
    model, groups = load_classifier(checkpoint, TARGET, token_ids(), seed=0, fresh_weights=False)
    config = TextConfig.of(model_name_or_path="none", dataset_name="none", output_dir="none")
    costs = Costs(1.0, 3.0, 1.0, 100, 10, 3, 0, 1, stores=True)
    seconds, unsuitable = seconds_of_strategies(config, costs, model, groups, deeper=checkpoint.is_read_at_depths)
    assert ("deep_probe" in seconds) == (pooling == "own")
    assert ("deep_probe" in unsuitable) == (pooling == "mean")
