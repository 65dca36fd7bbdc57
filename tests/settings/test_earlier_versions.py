"""Settings that version 0.1 wrote; `version_0_1/` holds files that its runs left in their folders."""

from pathlib import Path

import pytest

from hf_transfer.modalities.table import recipe_of
from hf_transfer.settings.parsing import load_settings, parse
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig, VisionConfig

FILES = Path(__file__).parent / "version_0_1"
# Recipe, settings that a run was given, and of these the ones that had no effect.
RUNS: list[tuple[type[RunConfig], dict[str, object], list[str]]] = [
    (
        VisionConfig,
        {
            "model_name_or_path": "google/vit-base-patch16-224", "model_revision": "v2", "dataset_name": "me/pets",
            "output_dir": "runs/vision", "strategy": "linear_probe", "class_weights": "balanced",
            "metric_for_best_model": "f1_macro", "cache_views": 2, "feature_layers": [1, 2], "seed": 3,
        },
        [
            "num_train_epochs", "learning_rate", "layer_lr_decay", "label_smoothing_factor", "ema_decay", "soup_size",
            "per_device_train_batch_size", "mixup_alpha",
        ],
    ),
    (
        TextConfig,
        {
            "model_name_or_path": "google-bert/bert-base-uncased", "dataset_name": "me/reviews",
            "output_dir": "runs/text", "strategy": "full", "text_pair_column_name": "question", "max_seq_length": 64,
            "rdrop_alpha": 0.5, "bf16": True, "report_to": ["tensorboard", "wandb"],
            "metric_for_best_model": "accuracy", "per_device_train_batch_size": 16,
        },
        [],
    ),
    (
        MultimodalConfig,
        {
            "image_model_name_or_path": "google/vit-base-patch16-224",
            "text_model_name_or_path": "google-bert/bert-base-uncased", "dataset_name": "me/memes",
            "output_dir": "runs/multimodal", "image_strategy": "lora", "text_strategy": "partial",
            "trainable_layers": 2, "adapter_rank": 4, "fusion": "gated", "modality_dropout": 0.4,
            "horizontal_flip": False, "metric_for_best_model": "accuracy", "per_device_train_batch_size": 32,
        },
        ["strategy"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "given", "ignored"), RUNS, ids=[config.recipe for config, _, _ in RUNS])
def test_a_file_of_version_0_1_is_read(
    config: type[RunConfig], given: dict[str, object], ignored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepted settings without effect, and saved them; they are named and ignored."""
    file = FILES / f"{config.recipe}.yaml"
    assert recipe_of(file) is config
    # The default of that version, as the other batch size is in the rows above.
    assert load_settings(config, file) == config.of(**given, per_device_eval_batch_size=64)
    note = f"Ignored, as they have no effect on this run: {', '.join(ignored)} in {file}.\n"
    assert capsys.readouterr().out == (note if ignored else "")


def test_flags_win_over_a_file_of_version_0_1(tmp_path: Path) -> None:
    """`--config OUT/config.yaml --output_dir NEW` repeats the run."""
    flags = ["--config", str(FILES / "vision.yaml"), "--output_dir", str(tmp_path), "--strategy=full"]
    config = parse(VisionConfig, flags)
    assert (config.output.output_dir, config.strategy.strategy) == (str(tmp_path), "full")
    assert (config.training.num_train_epochs, config.training.mixup_alpha) == (99, 0.2)


def test_every_setting_of_version_0_1_still_exists() -> None:
    for config, _, _ in RUNS:
        lines = (FILES / f"{config.recipe}.yaml").read_text().splitlines()
        names = {line.partition(":")[0] for line in lines if not line.startswith("-")}
        assert len(names) >= 40
        assert names - {"recipe"} <= config.settings().keys()
