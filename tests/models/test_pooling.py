"""Text classifiers with another pooling than that of their checkpoint: loading, saving, use without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, BartConfig, BertConfig, PretrainedConfig, PreTrainedModel

from hf_transfer.errors import UserError
from hf_transfer.models import modeling_pooled
from hf_transfer.models.encoders import Pooling
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.modeling_pooled import PooledConfig, PooledForSequenceClassification
from hf_transfer.models.pooling import (
    backbone_config,
    check_pooling,
    pooled_classifier,
    pooling_of,
    read_config,
)
from hf_transfer.models.pretrained import Checkpoint
from tests.tiny_models import logits, state
from tests.tiny_text_models import (
    CLASSES,
    TEXT_ARCHITECTURES,
    save_text_checkpoint,
    tiny_text_model,
    tiny_tokenizer,
    token_ids,
)

NAMES = ["ant", "bee", "cat", "dog", "ünïcode"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
TEXTS = ["word1 word2 word3 word9", "word7", "word4 word4"]


def from_folder(folder: Path, pooling: Pooling = "mean", **more: Any) -> tuple[PreTrainedModel, frozenset[str]]:
    with torch.random.fork_rng():
        return pooled_classifier(str(folder), pooling=pooling, labels=LABELS, **more)


def finished_model(folder: Path) -> PreTrainedModel:
    return Checkpoint(str(folder), task="text-classification").finished_classifier()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that was a classifier of other classes."""
    moods: dict[str, Any] = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "num_labels": 2}
    return save_text_checkpoint(tmp_path_factory.mktemp("models") / "bert", **moods)


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "of one length"])
def finished(checkpoint: Path, request: pytest.FixtureRequest) -> Path:
    """A folder as a run leaves it, whose head reads vectors as they are, or scaled to one length."""
    model, _ = from_folder(checkpoint, normalized=request.param)
    folder = checkpoint.parent / f"finished-{request.param}"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_backbone_is_that_of_the_checkpoint_and_only_the_head_is_missing(
    checkpoint: Path, pooling: Pooling
) -> None:
    """The backbone has the outputs of `AutoModel`, with the same implementation of attention."""
    model, missing = from_folder(checkpoint, pooling)
    model.eval()
    plain = AutoModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    ours = state(model.get_submodule("backbone"))
    assert ours.keys() == state(plain).keys()
    assert all(torch.equal(ours[name], value) for name, value in state(plain).items())
    with torch.no_grad():
        expected = plain(**token_ids()).last_hidden_state
        assert torch.equal(model.get_submodule("backbone")(**token_ids()).last_hidden_state, expected)
    assert missing == {"classifier.weight", "classifier.bias"}
    backbone: Any = model.get_submodule("backbone")
    assert model.config.text_config is backbone.config
    assert backbone.config._attn_implementation == "sdpa"
    assert (model.config.pooling, model.config.id2label) == (pooling, LABELS["id2label"])
    assert model.get_parameter("classifier.weight").shape == (CLASSES, 24)
    assert model.name_or_path == str(checkpoint)


def test_missing_weights_have_the_names_of_the_pooled_model(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_text_checkpoint(tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    absent = "bert.encoder.layer.1.output.dense.weight"
    wrong = "bert.embeddings.position_embeddings.weight"
    kept = {name: value for name, value in weights.items() if name != absent}
    save_file(kept | {wrong: weights[wrong][:8].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    model, missing = from_folder(folder)
    assert missing == {
        "classifier.weight",
        "classifier.bias",
        "backbone.encoder.layer.1.output.dense.weight",
        "backbone.embeddings.position_embeddings.weight",
    }
    assert missing < set(dict(model.named_parameters()))


def test_half_precision_weights_are_loaded_in_single_precision(tmp_path: Path) -> None:
    """Also if only the architecture of such a checkpoint is used."""
    tiny_text_model("bert").bfloat16().save_pretrained(tmp_path / "half")
    for fresh in (False, True):
        model, _ = from_folder(tmp_path / "half", fresh_weights=fresh)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "pooled")
    assert {parameter.dtype for parameter in finished_model(tmp_path / "pooled").parameters()} == {torch.float32}


def test_fresh_weights_need_only_the_architecture_and_an_outline_takes_no_memory(checkpoint: Path) -> None:
    pretrained, _ = from_folder(checkpoint)
    fresh, missing = from_folder(checkpoint, fresh_weights=True)
    shapes = {name: value.shape for name, value in pretrained.named_parameters()}
    assert {name: value.shape for name, value in fresh.named_parameters()} == shapes
    assert missing == frozenset()
    matrices = [name for name, value in fresh.named_parameters() if value.ndim > 1]
    assert not any(torch.equal(fresh.get_parameter(name), pretrained.get_parameter(name)) for name in matrices)
    with torch.device("meta"):
        outline, _ = from_folder(checkpoint, fresh_weights=True)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    ids = {"input_ids": token_ids()["input_ids"].to("meta")}
    assert trace_groups(outline, ids) == trace_groups(pretrained, token_ids())


@pytest.mark.parametrize(("name", "setting"), [("bert", "hidden_dropout_prob"), ("distilbert", "seq_classif_dropout")])
def test_the_head_has_the_dropout_of_the_backbones_own_classifier(tmp_path: Path, name: str, setting: str) -> None:
    settings: dict[str, Any] = {setting: 0.35}
    save_text_checkpoint(tmp_path, name, **settings)
    model, _ = from_folder(tmp_path, fresh_weights=True)
    assert model.get_submodule("dropout").extra_repr().startswith("p=0.35")


def test_the_saved_folder_has_the_modelling_file_the_auto_map_and_no_pickle(finished: Path, checkpoint: Path) -> None:
    """And neither the classes of an earlier task nor the path of the checkpoint."""
    files = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "modeling_pooled.py", "tokenizer.json"} <= files
    assert not {path.suffix for path in finished.iterdir()} & {".bin", ".pt", ".pth", ".pkl"}
    assert (finished / "modeling_pooled.py").read_bytes() == Path(modeling_pooled.__file__).read_bytes()
    settings = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert settings["auto_map"] == {
        "AutoConfig": "modeling_pooled.PooledConfig",
        "AutoModelForSequenceClassification": "modeling_pooled.PooledForSequenceClassification",
    }
    assert settings["architectures"] == ["PooledForSequenceClassification"]
    assert list(settings["label2id"]) == NAMES
    assert settings["text_config"]["model_type"] == "bert"
    assert str(checkpoint.parent) not in (finished / "config.json").read_text(encoding="utf-8")
    assert settings["text_config"]["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


WITHOUT_THIS_PACKAGE = """
import json, sys
sys.modules["hf_transfer"] = None
import torch
from transformers import AutoModelForSequenceClassification, pipeline
folder, texts = sys.argv[1], sys.argv[2:]
classify = pipeline("text-classification", folder, trust_remote_code=True)
answers = classify(texts, top_k=None, batch_size=3)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(**classify.tokenizer(texts, padding=True, return_tensors="pt")).logits
ours = [name for name, module in sys.modules.items() if name.startswith("hf_transfer") and module is not None]
labels = [model.config.num_labels, model.config.id2label]
model.save_pretrained(folder + "-again")
print(json.dumps({"answers": answers, "logits": logits.tolist(), "labels": labels, "ours": ours}))
"""


@pytest.mark.slow
def test_transformers_loads_the_folder_where_this_package_is_not_installed(finished: Path, tmp_path: Path) -> None:
    """In a new process: the pipeline, and the model itself, which can be saved and loaded again."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PACKAGE, str(finished), *TEXTS],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is not supported" not in done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["ours"] == []
    assert printed["labels"] == [CLASSES, {str(number): name for number, name in enumerate(NAMES)}]
    model = finished_model(finished).eval()
    expected = logits(model, dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")))
    torch.testing.assert_close(torch.tensor(printed["logits"]), expected)
    scores = [{answer["label"]: answer["score"] for answer in answers} for answers in printed["answers"]]
    probabilities = torch.tensor([[score[name] for name in NAMES] for score in scores])
    torch.testing.assert_close(probabilities, expected.softmax(-1))
    again = finished_model(finished.with_name(f"{finished.name}-again")).eval()
    assert torch.equal(again.get_parameter("classifier.weight"), model.get_parameter("classifier.weight"))


def test_the_modelling_file_beside_the_weights_is_never_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the user asked; a folder may come from anybody."""
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modeling_pooled.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    config = read_config(str(tmp_path))
    assert pooling_of(config) == "mean"
    assert type(finished_model(tmp_path)) is PooledForSequenceClassification
    from_folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=backbone_config(config))
    assert tokenizer("word1")["input_ids"] == tiny_tokenizer()("word1")["input_ids"]
    assert not (tmp_path / "modules").exists()


def test_nothing_is_registered_by_an_import() -> None:
    with pytest.raises(ValueError, match="Unrecognized model identifier"):
        AutoConfig.for_model(PooledConfig.model_type)


def test_the_configuration_of_any_other_checkpoint_is_its_own(checkpoint: Path) -> None:
    config = read_config(str(checkpoint))
    assert type(config) is BertConfig
    assert pooling_of(config) is None
    assert backbone_config(config) is config
    assert backbone_config(PooledConfig(text_config=config)).max_position_embeddings == 40


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_training_can_start_from_our_model_type_with_either_pooling_and_other_classes(
    finished: Path, pooling: Pooling, classes: int
) -> None:
    names = NAMES[:classes]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model, missing = pooled_classifier(str(finished), pooling=pooling, labels=labels)
    assert missing == (set() if classes == CLASSES else {"classifier.weight", "classifier.bias"})
    assert (model.config.pooling, model.config.num_labels) == (pooling, classes)
    saved = state(finished_model(finished))
    backbone = [name for name in saved if name.startswith("backbone.")]
    assert all(torch.equal(state(model)[name], saved[name]) for name in backbone)
    fresh, _ = pooled_classifier(str(finished), pooling=pooling, labels=labels, fresh_weights=True)
    assert fresh.config.pooling == pooling
    assert {name: value.shape for name, value in state(fresh).items()} == {n: v.shape for n, v in state(model).items()}


@pytest.mark.parametrize("inside", [False, True])
def test_the_first_token_of_a_model_that_reads_from_left_to_right_is_refused(inside: bool) -> None:
    config: PretrainedConfig = TEXT_ARCHITECTURES["gpt2"].config()
    check_pooling("some/gpt2", config, "mean")
    if inside:
        config = PooledConfig(text_config=config)
    with pytest.raises(UserError) as caught:
        check_pooling("some/gpt2", config, "cls")
    assert str(caught.value) == (
        "Expected: for --pooling cls a model whose first token sees the whole text (BERT, RoBERTa, ...)\n"
        "Found:    some/gpt2, a gpt2 model, in which a token sees only earlier tokens\n"
        "Do this:  use --pooling mean, or --pooling own, which takes the last token"
    )


def test_the_first_token_of_an_encoder_configured_as_a_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="a bert model, in which a token sees only earlier tokens"):
        check_pooling("some/bert", BertConfig(is_decoder=True), "cls")
    for name in TEXT_ARCHITECTURES.keys() - {"gpt2"}:
        check_pooling(name, TEXT_ARCHITECTURES[name].config(), "cls")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_model_with_an_encoder_and_a_decoder_is_refused(pooling: Pooling) -> None:
    with pytest.raises(UserError) as caught:
        check_pooling("some/bart", BartConfig(), pooling)
    assert str(caught.value) == (
        f"Expected: for --pooling {pooling} a model with one stack of layers (BERT, RoBERTa, GPT-2, ...)\n"
        "Found:    some/bart, a bart model with an encoder and a decoder\n"
        "Do this:  use --pooling own"
    )
