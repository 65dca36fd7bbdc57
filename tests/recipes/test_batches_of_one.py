"""The figures of a run do not depend on how many samples are evaluated together: with padding of any kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig
from tests.conftest import load_recipe
from tests.data.conftest import text_rows, write_table
from tests.padded_models import save_texts
from tests.recipes.test_multimodal import save_dual, write_split

COUNTS = {"train": 48, "validation": 16, "test": 24}
RECIPES: dict[str, type[RunConfig]] = {"text": TextConfig, "multimodal": MultimodalConfig}
OF_TEXTS = ["gpt2", "convbert", "xlnet"]


def given(folder: Path, kind: str) -> tuple[str, Path, Path]:
    """A recipe, a model and data."""
    for seed, (name, count) in enumerate(COUNTS.items()):
        if kind == "siglip":
            write_split(folder / "data" / name, count, seed=seed)
        else:
            rows = [{**row, "text": f"{row['text']} {'word9 ' * (number % 7)}"}
                    for number, row in enumerate(text_rows(count, seed=seed))]  # fmt: skip
            write_table(folder / "data" / f"{name}.csv", rows)
    if kind == "siglip":
        save_dual(folder / "siglip", "siglip")
        return "multimodal", folder / "siglip", folder / "data"
    return "text", save_texts(folder / kind, kind, padding_side="left"), folder / "data"


def losses_on_test(recipe: str, out: Path, **settings: object) -> dict[str, Any]:
    argv = [f"--{name}={value}" for name, value in (settings | {"output_dir": out}).items()]
    run_recipe(load_recipe(recipe).main, RECIPES[recipe], argv)
    metrics: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))["metrics"]["test"]
    return {name: value["loss"] for name, value in metrics.items()} if recipe == "multimodal" else {"": metrics["loss"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "store"), [(kind, store) for kind in OF_TEXTS for store in ("on", "off")] + [("siglip", "on")]
)
def test_the_loss_is_the_same_one_by_one_and_in_batches(kind: str, store: str, tmp_path: Path) -> None:
    recipe, model, data = given(tmp_path, kind)
    shared = {"dataset_name": data, "cache_dir": tmp_path / "cache"}
    steps = {} if recipe == "text" else {"num_train_epochs": 1}
    trained = losses_on_test(
        recipe,
        tmp_path / "out",
        model_name_or_path=model,
        strategy="linear_probe",
        cache_frozen=store,
        **shared,
        **steps,
    )
    for size in (1, 5):
        judged = losses_on_test(
            recipe, tmp_path / f"by {size}", model_name_or_path=tmp_path / "out" / "model", evaluate_only="true",
            per_device_eval_batch_size=size, **shared,
        )  # fmt: skip
        assert judged == pytest.approx(trained, abs=1e-5)
