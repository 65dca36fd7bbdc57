"""What `deep_probe` refuses, and what it makes of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_transfer.errors import UserError
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.taps import AllTaps
from hf_transfer.models.towers import trace
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import MultimodalConfig, TextConfig, VisionConfig
from hf_transfer.strategies.choice import Prepared, choose_strategy, load_model, prepare_model
from hf_transfer.strategies.deep_probe import PairProbe
from hf_transfer.targets.classes import Classes
from tests.models.families import FAMILIES
from tests.settings.command_lines import REQUIRED
from tests.tapped_models import tapped
from tests.tiny_models import pixels, save_checkpoint
from tests.tiny_pairs import pair_inputs, tiny_pair
from tests.tiny_text_models import save_text_checkpoint, token_ids

TARGET = Classes(("a", "b", "c"))
TEXT = "text-classification"


def prepare(checkpoint: Checkpoint, *taps: str, model: str = "vit", strategy: str = "deep_probe") -> Prepared:
    """Load a model and prepare it, as a run does."""
    inputs = token_ids() if checkpoint.task == TEXT else pixels(model)
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", strategy=strategy, taps=[*taps])
    chosen = choose_strategy(config.strategy)
    new = load_model(checkpoint, chosen, TARGET, inputs, seed=0)
    return prepare_model(new, chosen, inputs, seed=0, epochs=1)


def refusal(checkpoint: Checkpoint, *taps: str, **more: Any) -> list[str]:
    """The lines of the error."""
    with pytest.raises(UserError) as error:
        prepare(checkpoint, *taps, **more)
    return str(error.value).splitlines()


@pytest.fixture
def weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("the weights were read"))


def test_only_the_layer_in_place_of_the_head_learns(tmp_path: Path) -> None:
    prepared = prepare(Checkpoint(str(save_checkpoint(tmp_path, "vit"))))
    assert isinstance(prepared.model, AllTaps)
    names = {name for group in prepared.groups for name in group.parameters}
    unused = {name for name, _ in prepared.model.named_parameters()} - names
    assert unused <= {"backbone.vit.embeddings.mask_token"}
    assert prepared.groups[-1].parameters == ("classifier.weight", "classifier.bias")
    assert [group.name for group in prepared.frozen[""]] == [
        "embeddings", *(f"backbone.vit.layers.{number}" for number in range(3)), "final",
    ]  # fmt: skip
    assert prepared.notes[0] == (
        "5 of 6 groups are frozen; the head reads what is best of head, mean_1, mean_2, mean_3."
    )


def test_taps_that_are_named_are_read(tmp_path: Path) -> None:
    prepared = prepare(Checkpoint(str(save_checkpoint(tmp_path, "vit"))), "mean_3", "head")
    assert prepared.notes[0] == "5 of 6 groups are frozen; the head reads head + mean_3."
    with torch.no_grad():
        assert prepared.model(**pixels("vit")).logits.shape == (2, 3)


@pytest.mark.usefixtures("weights_are_not_read")
def test_a_block_that_the_model_does_not_have_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    assert refusal(Checkpoint(str(save_checkpoint(tmp_path, "vit"))), "mean_4")[:2] == [
        "Expected: for --taps blocks from 1 to 3, those of this model",
        "Found:    mean_4",
    ]


@pytest.mark.usefixtures("weights_are_not_read")
def test_a_head_of_several_layers_is_refused(tmp_path: Path) -> None:
    lines = refusal(
        Checkpoint(str(save_checkpoint(tmp_path, "deit", architectures=["DeiTForImageClassificationWithTeacher"]))),
        model="deit",
    )
    assert lines[0] == "Expected: for --strategy deep_probe a model that ends in one Linear layer"
    assert "cls_classifier, distillation_classifier" in lines[1]


@pytest.mark.usefixtures("weights_are_not_read")
def test_the_first_token_of_a_model_that_reads_from_left_to_right_is_refused(tmp_path: Path) -> None:
    lines = refusal(Checkpoint(str(save_text_checkpoint(tmp_path, "gpt2")), task=TEXT), "first_3")
    assert lines[0] == "Expected: for --taps first_N a model whose first token sees the whole text (BERT, RoBERTa, ...)"


def test_a_result_with_another_pooling_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """Its head reads the mean behind the last block, which is not tried twice."""
    base = Checkpoint(str(save_text_checkpoint(tmp_path / "bert")), task=TEXT, pooling="mean")
    base.classifier(TARGET, seed=0, fresh_weights=False).save_pretrained(tmp_path / "pooled")
    prepared = prepare(Checkpoint(str(tmp_path / "pooled"), task=TEXT))
    assert prepared.notes[0] == (
        "5 of 6 groups are frozen; the head reads what is best of head, mean_1, mean_2, first_3."
    )


@pytest.mark.usefixtures("weights_are_not_read")
def test_the_first_token_of_an_encoder_that_reads_from_left_to_right_is_refused(tmp_path: Path) -> None:
    """The text tower of CLIP."""
    checkpoint = Checkpoint(str(FAMILIES["clip_text"].checkpoint(tmp_path)), task=TEXT)
    lines = refusal(checkpoint, "first_3")
    assert lines[0] == "Expected: for --taps first_N a model whose first token sees the whole text (BERT, RoBERTa, ...)"
    assert "a clip_text_model model, in which a token sees only earlier tokens" in lines[1]


@pytest.mark.usefixtures("weights_are_not_read")
def test_places_of_a_tower_are_refused_for_a_model_of_one(tmp_path: Path) -> None:
    lines = refusal(Checkpoint(str(save_checkpoint(tmp_path, "vit"))), "image_mean_2", "head")
    assert lines == [
        "Expected: for --taps places of a model of one tower", "Found:    image_mean_2", "Do this:  leave out image_",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        (("text_head",), "Expected: for --taps of images with texts image_head, image_mean_N, text_head, text_mean_N"),
        (("image_head", "text_head", "mean_2"), "Expected: for --taps of images with texts image_head, image_mean_N"),
        (("image_mean_9", "text_head"), "Expected: for --taps blocks from 1 to 3, those of the image tower"),
    ],
)
def test_places_of_both_towers_are_to_be_named(taps: tuple[str, ...], expected: str) -> None:
    model = tiny_pair("vit")
    with pytest.raises(UserError) as error:
        PairProbe(taps=taps).check(model, trace(model, pair_inputs("vit")))
    assert str(error.value).splitlines()[0].startswith(expected)


@pytest.mark.parametrize("strategy", ["deep_probe", "full"])
def test_no_training_starts_from_a_finished_deep_probe(strategy: str, tmp_path: Path) -> None:
    one = tapped("vit")
    one.all_taps().with_read_taps().save_pretrained(tmp_path)
    lines = refusal(Checkpoint(str(tmp_path)), strategy=strategy)
    assert lines[0] == "Expected: a whole model to start from"
    assert lines[2] == "Do this:  name the model that it was trained from"


@pytest.mark.parametrize(
    ("config", "flags", "expected", "found"),
    [
        (
            MultimodalConfig, ["--strategy=deep_probe", "--image_strategy=lora"],
            "--strategy deep_probe for both towers together", "--image_strategy lora beside it",
        ),
        (
            MultimodalConfig, ["--strategy=deep_probe", "--modality_dropout=0.5"],
            "--modality_dropout with a strategy that trains step by step", "--strategy deep_probe, whose head is",
        ),
        (
            MultimodalConfig, ["--strategy=deep_probe", "--fusion=gated"],
            "--fusion with a head of several layers", "--strategy deep_probe, whose head is one layer",
        ),
        (
            MultimodalConfig, ["--strategy=deep_probe", "--feature_layers=2"],
            "--feature_layers with a head of one layer", "images with texts",
        ),
        (
            MultimodalConfig, ["--strategy=linear_probe", "--taps=image_head"],
            "--taps with a head of one layer", "images with texts, whose head",
        ),
        (
            MultimodalConfig, ["--text_strategy=deep_probe"],
            "settings as --help lists them", "argument --text_strategy/--text-strategy: invalid choice",
        ),
        (
            TextConfig, ["--strategy=deep_probe", "--pooling=mean"],
            "--pooling with a strategy other than deep_probe", "--strategy deep_probe, which chooses what the head",
        ),
        (VisionConfig, ["--strategy=full", "--taps=mean_2"], "--taps with --strategy deep_probe", "--strategy full"),
        (
            VisionConfig, ["--strategy=deep_probe", "--feature_layers=2"],
            "--feature_layers with --strategy linear_probe or lp_ft", "--strategy deep_probe",
        ),
        (VisionConfig, ["--strategy=deep_probe", "--adapter_rank=4"], "--adapter_rank with", "--strategy deep_probe"),
        (
            VisionConfig, ["--strategy=deep_probe", "--num_train_epochs=3"],
            "--num_train_epochs with a strategy that trains step by step", "--strategy deep_probe, whose head",
        ),
        *(
            (
                VisionConfig, ["--strategy=deep_probe", "--taps", *taps],
                "--taps: head, mean_N or first_N with N from 1, each once", str(taps),
            )
            for taps in (["mean_0"], ["mean"], ["head_1"], ["mean_-1"], ["head", "head"], ["max_2"], ["sound_head"])
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(config: Any, flags: list[str], expected: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        parse(config, [*REQUIRED, *flags])
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"Expected: {expected}")
    assert lines[1].startswith(f"Found:    {found}")
