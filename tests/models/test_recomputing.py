"""A model that cannot recompute activations is refused once, whatever strategy asks for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_transfer.advice.auto import decided
from hf_transfer.advice.evidence import gather_evidence
from hf_transfer.errors import UserError
from hf_transfer.run import open_run
from hf_transfer.settings.run import VisionConfig
from tests.tiny_models import save_checkpoint

REFUSAL = "Expected: a model that supports --gradient_checkpointing\nFound:    PoolFormerForImageClassification, which"


@pytest.fixture
def settings(picture_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., VisionConfig]:
    """Settings of a run with a model of an architecture and pictures, one of which cannot be read unless all can."""

    def make(architecture: str, strategy: str, *, all_can: bool = False) -> VisionConfig:
        data = picture_folder(cat=14, dog=14)
        if not all_can:
            next(data.rglob("*.png")).write_bytes(b"no picture")
        return VisionConfig.of(
            model_name_or_path=str(save_checkpoint(tmp_path / architecture, architecture)), dataset_name=str(data),
            output_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), strategy=strategy,
            gradient_checkpointing=True,
        )  # fmt: skip

    return make


def test_a_run_refuses_it_before_its_data_are_checked(settings: Callable[..., VisionConfig]) -> None:
    with open_run(settings("poolformer", "full")) as run, pytest.raises(UserError) as refused:
        run.load_data()
    assert str(refused.value).startswith(REFUSAL)


def test_auto_refuses_it_before_anything_is_tried(settings: Callable[..., VisionConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        decided(settings("poolformer", "auto"))
    assert str(refused.value).startswith(REFUSAL)
    assert not (tmp_path / "out").exists()


def test_with_a_model_that_can_the_data_are_checked_next(settings: Callable[..., VisionConfig]) -> None:
    with pytest.raises(UserError, match="picture") as refused:
        decided(settings("vit", "auto"))
    assert "gradient_checkpointing" not in str(refused.value)


def test_evidence_of_a_model_that_recomputes_is_that_of_one_that_does_not(
    settings: Callable[..., VisionConfig],
) -> None:
    config = settings("vit", "auto", all_can=True)
    known = gather_evidence(config)
    assert known.probes == gather_evidence(config.replaced(gradient_checkpointing=False)).probes
    assert known.costs.step > known.costs.forward
