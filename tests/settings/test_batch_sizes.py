"""The default batch of training depends on how many samples there are."""

import pytest

from hf_transfer.settings.run import TextConfig, VisionConfig
from hf_transfer.settings.training import TrainingSettings


@pytest.mark.parametrize(
    ("samples", "of_images", "of_texts"),
    [(1, 4, 4), (64, 4, 4), (80, 4, 4), (127, 4, 4), (128, 8, 8), (256, 16, 16), (511, 16, 16), (512, 32, 16),
     (1_000_000, 32, 16)],
)  # fmt: skip
def test_few_samples_have_small_batches_and_many_the_usual_ones(samples: int, of_images: int, of_texts: int) -> None:
    images = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o").training
    texts = TextConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o").training
    assert images.train_batch_size(samples) == of_images
    assert texts.train_batch_size(samples) == of_texts


@pytest.mark.parametrize("samples", [128, 300, 2_000])
def test_an_epoch_has_sixteen_steps_also_with_accumulation(samples: int) -> None:
    training = TrainingSettings(gradient_accumulation_steps=2)
    assert samples // (training.train_batch_size(samples) * 2) >= 16


def test_a_given_batch_stays_as_it_is() -> None:
    assert TrainingSettings(per_device_train_batch_size=64).train_batch_size(10) == 64
