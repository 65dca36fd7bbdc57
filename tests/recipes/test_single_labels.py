"""Samples with one label each, learned as several labels and as classes."""

from pathlib import Path

import pytest

import hf_transfer as ht


@pytest.mark.slow
def test_labels_of_which_each_sample_has_one_rank_as_classes_do(tmp_path: Path) -> None:
    """The most probable label is right about as often as the most probable class: on 269 handwritten digits."""
    shares = {}
    for problem_type in ("single_label_classification", "multi_label_classification"):
        run = ht.train(
            "sample:digits", "sample:resnet-glyphs", problem_type=problem_type, strategy="linear_probe",
            augmentation="none", max_train_samples_per_class=30, output_dir=tmp_path / problem_type,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        test = run.predictions["test"]
        truth = test.targets if test.targets.ndim == 1 else test.targets.argmax(1)
        shares[problem_type] = float((test.outputs.argmax(1).numpy() == truth).mean())
    single, several = shares.values()
    assert min(shares.values()) > 0.9
    assert abs(single - several) < 0.03
