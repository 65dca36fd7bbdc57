"""How long each strategy takes, from the time of a row through the model and back."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from hf_transfer.advice.costs import SHARE_OF_SMALL_PARTS, Costs, seconds_of_strategies, top_quarter
from hf_transfer.settings.run import TextConfig, VisionConfig
from tests.advice.known import COSTS
from tests.tapped_models import tapped

EVALUATION = COSTS.validation * COSTS.forward


def seconds(costs: Costs = COSTS, **settings: Any) -> dict[str, float]:
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", **settings)
    model = tapped("vit")
    return seconds_of_strategies(config, costs, model.model, model.groups)[0]


def test_an_epoch_of_all_layers_is_a_step_for_each_row_and_an_evaluation() -> None:
    assert seconds()["full"] == pytest.approx(5 * (100 * 0.03 + EVALUATION))
    assert seconds()["scratch"] == seconds()["full"]


def test_a_probe_is_an_evaluation_and_a_solution_as_its_features_are_stored() -> None:
    assert seconds()["linear_probe"] == pytest.approx(EVALUATION + 2.0)
    assert seconds()["deep_probe"] == seconds()["linear_probe"]
    assert seconds()["lp_ft"] == pytest.approx(seconds()["linear_probe"] + seconds()["full"])


def test_augmented_views_of_a_probe_are_not_stored_yet() -> None:
    assert COSTS.of_probe() + 3 * 100 * 0.01 == pytest.approx(replace(COSTS, views=3).of_probe())


def test_without_a_store_frozen_layers_are_computed_in_each_epoch() -> None:
    """Half of the layers is frozen: a row costs one forward pass and half of a backward pass."""
    costs = replace(COSTS, stores=False)
    assert costs.of_epochs(5, 0.5) == pytest.approx(5 * (100 * (0.01 + 0.02 / 2) + EVALUATION))


def test_with_a_store_frozen_layers_are_computed_once() -> None:
    once = 0.5 * (100 * 0.01 + EVALUATION)
    assert COSTS.of_epochs(5, 0.5) == pytest.approx(once + 5 * (100 * (0.01 + 0.02) / 2 + EVALUATION / 2))


def test_with_r_drop_each_row_passes_twice_in_training_and_once_in_evaluation() -> None:
    assert replace(COSTS, stores=False).of_epochs(5, 1.0, passes=2) == pytest.approx(5 * (2 * 100 * 0.03 + EVALUATION))


@pytest.mark.parametrize(
    ("repeats", "train", "alpha", "passes"),
    [(True, 100, None, 2), (True, 500, None, 1), (False, 100, None, 1), (True, 100, 0.0, 1), (True, 500, 0.5, 2)],
)
def test_the_time_of_full_fine_tuning_counts_the_passes_of_r_drop_where_a_run_has_it(
    repeats: bool, train: int, alpha: float | None, passes: int
) -> None:
    config = TextConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", strategy="full", rdrop_alpha=alpha)
    costs, model = replace(COSTS, train=train, repeats=repeats), tapped("bert")
    known = seconds_of_strategies(config, costs, model.model, model.groups)[0]
    assert known["full"] == known["scratch"] == pytest.approx(costs.of_epochs(5, 1.0, passes=passes))
    assert known["lora"] == pytest.approx(costs.of_epochs(5, 1.0, SHARE_OF_SMALL_PARTS, 2 if alpha else 1))


def test_a_store_of_more_views_than_epochs_is_not_used() -> None:
    costs = replace(COSTS, cycle=20)
    assert costs.of_epochs(5, 0.5) == replace(COSTS, stores=False).of_epochs(5, 0.5)
    assert replace(COSTS, cycle=0).of_epochs(5, 0.5) == replace(COSTS, stores=False).of_epochs(5, 0.5)


def test_strategies_take_longer_the_more_of_the_model_learns() -> None:
    known = seconds()
    assert known["linear_probe"] < known["partial"] < known["gradual"] < known["full"] < known["lp_ft"]
    assert known["lora"] == known["bitfit"] < known["full"]
    assert seconds(strategy="lora", adapter_layers=1)["lora"] < known["lora"]


def test_what_a_model_lacks_for_a_strategy_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    whole = tapped("vit")
    groups = [replace(whole.groups[0], name="backbone", modules=("0",), parameters=("0.weight",))]
    groups.append(replace(whole.groups[-1], modules=("1",), parameters=("1.weight", "1.bias")))
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o")
    known, unsuitable = seconds_of_strategies(config, COSTS, model, groups)
    assert {"partial", "bitfit"} <= unsuitable.keys()
    assert known.keys().isdisjoint(unsuitable)


def test_a_quarter_of_the_blocks_is_rounded_up() -> None:
    assert [top_quarter(blocks) for blocks in (0, 1, 4, 5, 12)] == [1, 1, 1, 2, 3]
