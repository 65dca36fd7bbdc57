"""Settings of images and texts together: which models may be named, and what learns of which tower."""

from pathlib import Path
from typing import Any

import pytest

from hf_transfer.config import ImageSettings, TextSettings, UserError
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.parsing import load, parse, recipe_of

DUAL = {"model_name_or_path": "clip"}
TOWERS = {"image_model_name_or_path": "vit", "text_model_name_or_path": "bert"}


def settings(**chosen: Any) -> MultimodalConfig:
    return MultimodalConfig(**({"dataset_name": "d", "output_dir": "o"} | chosen))


def refused(chosen: dict[str, Any], *, expected: str, found: str, do: str) -> None:
    with pytest.raises(UserError) as error:
        settings(**chosen)
    assert str(error.value) == f"Expected: {expected}\nFound:    {found}\nDo this:  {do}"


@pytest.mark.parametrize("models", [DUAL, TOWERS, DUAL | {"evaluate_only": True}])
def test_a_dual_encoder_or_two_models_are_named(models: dict[str, Any]) -> None:
    named = settings(**models)
    assert (named.model_name_or_path is None) == (models is TOWERS)


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


def test_what_is_only_judged_is_one_finished_model() -> None:
    """Two models without a trained head can say nothing."""
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
    """It would be passed over in silence."""
    refused(
        models | {revision: "v2"},
        expected=f"--{revision} with --{revision.replace('revision', 'name_or_path')}",
        found=f"--{revision} v2 without it",
        do="name the revision of a model that is used, or leave it out",
    )
    others = TOWERS if models is DUAL else DUAL
    assert getattr(settings(**(others | {revision: "v2"})), revision) == "v2"


@pytest.mark.parametrize("name", ["model_name_or_path", *TOWERS])
def test_an_empty_name_is_no_model(name: str) -> None:
    """An empty path would be the current folder."""
    with pytest.raises(UserError, match=f"Expected: --{name}: a name or a path"):
        settings(**(TOWERS | {name: " "}))


def test_each_tower_has_its_own_strategy_or_that_of_the_run() -> None:
    assert settings(**TOWERS, strategy="lora").strategies() == ["lora"]
    assert settings(**TOWERS, strategy="lora", text_strategy="partial").strategies() == ["lora", "partial"]


def test_a_setting_serves_if_one_of_the_towers_has_its_strategy() -> None:
    """The run's own strategy does not count where both towers have theirs."""
    towers = TOWERS | {"image_strategy": "lora", "text_strategy": "full"}
    assert settings(**towers, adapter_rank=4).adapter_rank == 4
    refused(
        towers | {"strategy": "partial", "trainable_layers": 3},
        expected="--trainable_layers with --strategy partial",
        found="--strategy lora and full, on which it has no effect",
        do="leave it out, or choose such a strategy",
    )


@pytest.mark.parametrize("name", ["image_strategy", "text_strategy", "fusion"])
def test_a_choice_that_does_not_exist_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"argument --{name}.*: invalid choice: 'magic' \(choose from '"):
        parse(MultimodalConfig, ["--dataset_name=d", "--output_dir=o", "--model_name_or_path=m", f"--{name}=magic"])


def test_they_are_settings_of_images_and_of_texts() -> None:
    """Also their checks; pairs without a text would make up whole batches by length, so batches are random."""
    named = settings(**TOWERS)
    assert isinstance(named, ImageSettings)
    assert isinstance(named, TextSettings)
    assert (named.augmentation, named.train_sampling_strategy) == ("light", "random")
    for wrong in ({"cache_views": -1}, {"max_seq_length": 2}, {"num_train_epochs": 0}):
        with pytest.raises(UserError):
            settings(**TOWERS, **wrong)


def test_a_file_of_settings_is_known_by_its_recipe_and_read_back(tmp_path: Path) -> None:
    """Two towers have no name in common, and a file of them none that is null."""
    named = settings(**TOWERS, image_strategy="lora", fusion="gated", modality_dropout=0.3)
    named.save(tmp_path / "config.yaml")
    assert recipe_of(tmp_path / "config.yaml") is MultimodalConfig
    assert load(MultimodalConfig, tmp_path / "config.yaml") == named
