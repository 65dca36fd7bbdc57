"""Settings of images with texts: which models may be named, and what learns in which tower."""

from pathlib import Path
from typing import Any

import pytest

from hf_transfer.errors import UserError
from hf_transfer.modalities.table import recipe_of
from hf_transfer.settings.data import ImageSettings, TextSettings
from hf_transfer.settings.parsing import load_settings, parse
from hf_transfer.settings.run import MultimodalConfig

DUAL = {"model_name_or_path": "clip"}
TOWERS = {"image_model_name_or_path": "vit", "text_model_name_or_path": "bert"}


def settings(**chosen: Any) -> MultimodalConfig:
    return MultimodalConfig.of(**({"dataset_name": "d", "output_dir": "o"} | chosen))


def refused(chosen: dict[str, Any], *, expected: str, found: str, do: str) -> None:
    with pytest.raises(UserError) as error:
        settings(**chosen)
    assert str(error.value) == f"Expected: {expected}\nFound:    {found}\nDo this:  {do}"


@pytest.mark.parametrize("models", [DUAL, TOWERS, DUAL | {"evaluate_only": True}])
def test_a_dual_encoder_or_two_models_are_named(models: dict[str, Any]) -> None:
    named = settings(**models)
    assert (named.model.model_name_or_path is None) == (models is TOWERS)


@pytest.mark.parametrize("second", [["image"], ["text"], ["image", "text"]])
def test_a_dual_encoder_together_with_a_second_model_is_refused(second: list[str]) -> None:
    """One of them would be ignored."""
    refused(
        DUAL | {f"{name}_model_name_or_path": "other" for name in second},
        expected="one dual encoder, or two models, one for the images and one for the texts",
        found=f"--model_name_or_path clip together with --{second[0]}_model_name_or_path",
        do="leave --model_name_or_path out, or name a dual encoder there and nothing else",
    )


@pytest.mark.parametrize(("named", "missing"), [("image", "text"), ("text", "image")])
def test_one_of_two_models_is_not_enough(named: str, missing: str) -> None:
    refused(
        {f"{named}_model_name_or_path": "vit"},
        expected="--image_model_name_or_path and --text_model_name_or_path, or a dual encoder as --model_name_or_path",
        found=f"--{named}_model_name_or_path alone",
        do=f"add --{missing}_model_name_or_path",
    )


def test_some_model_must_be_named() -> None:
    refused(
        {},
        expected="--image_model_name_or_path and --text_model_name_or_path, or a dual encoder as --model_name_or_path",
        found="none of them",
        do="add --image_model_name_or_path and --text_model_name_or_path",
    )


def test_only_one_finished_model_is_evaluated() -> None:
    """Two models without a trained head predict nothing."""
    refused(
        TOWERS | {"evaluate_only": True},
        expected="with --evaluate_only a finished model as --model_name_or_path",
        found="two models to start from",
        do="name the folder OUT/model of a run there, and leave the two out",
    )


@pytest.mark.parametrize(
    ("models", "revision"),
    [(DUAL, "image_model_revision"), (DUAL, "text_model_revision"), (TOWERS, "model_revision")],
)
def test_the_revision_of_a_model_that_is_not_named_is_refused(models: dict[str, Any], revision: str) -> None:
    """It would be ignored."""
    model = revision.replace("revision", "name_or_path")
    refused(
        models | {revision: "v2"},
        expected=f"--{revision} with a --{model} on the Hub",
        found=f"--{model} not given, with which --{revision} has no effect",
        do=f"leave --{revision} out",
    )
    others = TOWERS if models is DUAL else DUAL
    assert settings(**(others | {revision: "v2"})).flat()[revision] == "v2"


@pytest.mark.parametrize("name", ["model_name_or_path", *TOWERS])
def test_an_empty_name_is_no_model(name: str) -> None:
    """An empty path would be the current folder."""
    with pytest.raises(UserError, match=f"Expected: --{name}: a name or a path"):
        settings(**(TOWERS | {name: " "}))


def test_each_tower_has_its_own_strategy_or_that_of_the_run() -> None:
    assert settings(**TOWERS, strategy="lora").strategy.names() == ["lora"]
    assert settings(**TOWERS, strategy="lora", text_strategy="partial").strategy.names() == ["lora", "partial"]


def test_a_setting_has_an_effect_if_one_of_the_towers_has_its_strategy() -> None:
    """The strategy of the run does not count where both towers have their own."""
    towers = TOWERS | {"image_strategy": "lora", "text_strategy": "full"}
    assert settings(**towers, adapter_rank=4).strategy.adapter_rank == 4
    refused(
        towers | {"trainable_layers": 3},
        expected="--trainable_layers with --strategy partial",
        found="--strategy lora and full, with which --trainable_layers has no effect",
        do="leave --trainable_layers out",
    )
    refused(
        towers | {"strategy": "partial", "trainable_layers": 3},
        expected="--strategy with a tower that has no strategy of its own",
        found="--image_strategy and --text_strategy, with which --strategy has no effect",
        do="leave --strategy out",
    )


def test_with_two_frozen_towers_the_head_is_still_trained() -> None:
    """It has several layers, and is not solved."""
    assert settings(**TOWERS, strategy="linear_probe", learning_rate=1e-3, num_train_epochs=3).trains_stepwise()


def test_adapters_of_pairs_are_always_merged() -> None:
    refused(
        TOWERS | {"strategy": "lora", "merge_adapter": False},
        expected="--merge_adapter true: a model of two towers is saved whole",
        found="false",
        do="leave it out",
    )


@pytest.mark.parametrize("name", ["image_strategy", "text_strategy", "fusion"])
def test_a_choice_that_does_not_exist_is_refused_with_a_list_of_those_that_do(name: str) -> None:
    with pytest.raises(UserError, match=rf"argument --{name}.*: invalid choice: 'magic' \(choose from '"):
        parse(MultimodalConfig, ["--dataset_name=d", "--output_dir=o", "--model_name_or_path=m", f"--{name}=magic"])


def test_they_have_the_settings_of_images_and_of_texts() -> None:
    """With their checks. By length, pairs without a text would fill whole batches, so batches are random."""
    named = settings(**TOWERS)
    assert type(named.image) is ImageSettings
    assert isinstance(named.text, TextSettings)
    assert (named.image.augmentation, named.text.train_sampling_strategy) == ("light", "random")
    for wrong in ({"cache_views": -1}, {"max_seq_length": 2}, {"num_train_epochs": 0}):
        with pytest.raises(UserError):
            settings(**TOWERS, **wrong)


def test_a_file_of_settings_names_its_recipe_and_is_read_back_equal(tmp_path: Path) -> None:
    """Settings that are None are not in the file."""
    named = settings(**TOWERS, strategy="full", image_strategy="lora", fusion="gated", modality_dropout=0.3)
    named.save(tmp_path / "config.yaml")
    assert recipe_of(tmp_path / "config.yaml") is MultimodalConfig
    assert load_settings(MultimodalConfig, tmp_path / "config.yaml") == named
