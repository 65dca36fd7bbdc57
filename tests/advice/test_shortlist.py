"""What is worth trying: the best solved head first, then what suits the number of rows; each with its reason."""

from typing import get_args

import pytest

from hf_transfer.advice.shortlist import NOT_TRIED, RULES, TRIED, resolved_pooling, shortlist_of
from hf_transfer.settings.run import MultimodalConfig, VisionConfig
from hf_transfer.settings.strategy import Strategy
from tests.advice.known import HELPS, LESS, MORE, NO_HELP, NO_PROBES, evidence, text_config


def names(rows_per_class: float) -> list[str]:
    return [arm.name for arm in shortlist_of(evidence(rows_per_class), text_config()).arms]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (8, ["gradual", "partial", "full"]), (15.75, ["gradual", "partial", "full"]), (16, ["lp_ft", "full", "lora"]),
        (199, ["lp_ft", "full", "lora"]), (200, ["full", "lp_ft"]), (5_000, ["full", "lp_ft"]),
    ],
)  # fmt: skip
def test_what_is_trained_depends_on_the_rows_of_a_class(rows: float, expected: list[str]) -> None:
    assert names(rows) == ["linear_probe", *expected]


@pytest.mark.parametrize("rows", [8, 50, 500])
def test_each_strategy_is_tried_or_rejected_with_a_reason(rows: float) -> None:
    shortlist = shortlist_of(evidence(rows, fresh_weights=HELPS), text_config())
    tried = [arm.settings["strategy"] for arm in shortlist.arms]
    rejected = [one.strategy for one in shortlist.rejected]
    assert sorted(tried + rejected) == sorted(name for name in get_args(Strategy) if name != "auto")
    reasons = [arm.reason for arm in shortlist.arms] + [one.reason for one in shortlist.rejected]
    assert all(not reason[0].islower() and reason.endswith(".") and "{" not in reason for reason in reasons)
    assert all(arm.seconds == 60 for arm in shortlist.arms)


def test_a_reason_names_the_rows() -> None:
    reasons = {one.strategy: one.reason for one in shortlist_of(evidence(8), text_config()).rejected}
    assert reasons["lora"] == "8 rows per class are too few for adapters."
    assert (
        reasons["deep_probe"] == "No other place in the model is better than what its own head reads (0.700 ± 0.030)."
    )


def test_the_rules_name_strategies_that_have_reasons() -> None:
    assert [rule.fewest for rule in RULES] == sorted({rule.fewest for rule in RULES})
    assert RULES[0].fewest == 0
    strategies = {name for rule in RULES for name in rule.strategies}
    assert strategies <= TRIED.keys()
    assert strategies - {"lora"} <= NOT_TRIED.keys()


def test_another_place_is_read_where_it_is_better_by_more_than_its_error() -> None:
    (first, *_) = shortlist_of(evidence(best="mean_6", over_head=MORE), text_config()).arms
    assert first.settings == {"strategy": "deep_probe", "taps": ["mean_6"]}
    assert first.is_solved
    assert "0.800 ± 0.030 against 0.700 ± 0.030" in first.reason


def test_the_head_is_kept_where_the_difference_is_within_its_error() -> None:
    within = MORE.__class__(0.01, 0.02, (-0.03, 0.05))
    shortlist = shortlist_of(evidence(best="mean_6", over_head=within), text_config())
    assert shortlist.arms[0].settings == {"strategy": "linear_probe"}
    (reason,) = (one.reason for one in shortlist.rejected if one.strategy == "deep_probe")
    assert reason.startswith("To read mean_6 is not clearly better than what the model's own head reads (0.710 ")


def test_several_places_together_are_named_one_by_one() -> None:
    known = evidence(best="mean_2 + mean_6", over_head=MORE)
    together = known.probes[-1].__class__("mean_2 + mean_6", 0.9, 0.01, MORE)
    arms = shortlist_of(evidence(best="mean_2 + mean_6", probes=(*known.probes[:-1], together)), text_config()).arms
    assert arms[0].settings["taps"] == ["mean_2", "mean_6"]


def test_a_quarter_of_the_blocks_learns_in_partial() -> None:
    arms = {arm.name: arm for arm in shortlist_of(evidence(8), text_config()).arms}
    assert arms["partial"].settings == {"strategy": "partial", "trainable_layers": 2}


@pytest.mark.parametrize(("fresh", "tried"), [(None, False), (HELPS, False), (NO_HELP, True)])
def test_fresh_weights_are_tried_only_if_pretrained_ones_were_seen_not_to_help(fresh: object, tried: bool) -> None:
    shortlist = shortlist_of(evidence(fresh_weights=fresh), text_config())
    assert ("scratch" in [arm.name for arm in shortlist.arms]) == tried
    reasons = {one.strategy: one.reason for one in shortlist.rejected}
    if fresh is HELPS:
        assert reasons["scratch"] == "The pretrained weights help: 0.800 against 0.600 with fresh weights."
    if fresh is NO_HELP:
        assert "pooling" not in shortlist.arms[-1].settings


def test_a_strategy_that_the_model_does_not_suit_is_rejected_with_what_is_wrong() -> None:
    known = evidence(8)
    seconds = {name: value for name, value in known.seconds.items() if name not in ("partial", "gradual")}
    shortlist = shortlist_of(
        evidence(8, seconds=seconds, unsuitable={"partial": "none", "gradual": "x"}), text_config()
    )
    assert [arm.name for arm in shortlist.arms] == ["linear_probe", "full"]
    assert {one.strategy: one.reason for one in shortlist.rejected}[
        "partial"
    ] == "This model cannot be trained so: none."


def test_trained_heads_read_the_mean_where_it_is_better() -> None:
    arms = {arm.name: arm for arm in shortlist_of(evidence(best="mean_6", over_head=MORE), text_config()).arms}
    assert arms["full"].settings == {"strategy": "full", "pooling": "mean"}
    assert arms["lora"].settings == {"strategy": "lora", "pooling": "mean", "merge_adapter": True}
    assert "the mean of all tokens" in arms["full"].reason
    for arm in arms.values():
        text_config().replaced(**arm.settings)


def test_auto_pooling_is_resolved_in_every_arm() -> None:
    config = text_config(pooling="auto")
    for known in (evidence(), evidence(best="mean_6", over_head=MORE)):
        arms = shortlist_of(known, config).arms
        assert all(arm.settings["pooling"] in ("own", "mean") for arm in arms)
        assert all(config.replaced(**arm.settings).text.pooling != "auto" for arm in arms)


def test_a_pooling_that_is_named_stays() -> None:
    arms = shortlist_of(evidence(best="mean_6", over_head=MORE), text_config(pooling="cls")).arms
    assert all("pooling" not in arm.settings for arm in arms)


@pytest.mark.parametrize(
    ("strategy", "over_head", "expected"),
    [("full", LESS, "own"), ("full", MORE, "mean"), ("lora", MORE, "own"), ("lp_ft", MORE, "mean")],
)
def test_auto_pooling_is_the_one_with_the_better_probe(strategy: str, over_head: object, expected: str) -> None:
    """An adapter that peft loads has no place for another pooling."""
    known = evidence(best="mean_6", over_head=over_head)  # type: ignore[arg-type]
    assert resolved_pooling(known, text_config(strategy=strategy, pooling="auto")) == expected


def test_a_pooling_is_not_changed_by_evidence() -> None:
    known = evidence(best="mean_6", over_head=MORE)
    assert resolved_pooling(known, text_config(pooling="cls")) == "cls"
    adapter = text_config(strategy="lora", pooling="auto", merge_adapter=True)
    assert resolved_pooling(known, adapter) == "mean"


def test_samples_that_are_no_texts_have_no_pooling() -> None:
    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o")
    known = evidence(best="mean_6", over_head=MORE)
    assert resolved_pooling(known, config) == "own"
    assert all("pooling" not in arm.settings for arm in shortlist_of(known, config).arms)


def test_images_with_texts_are_judged_by_their_number_alone() -> None:
    config = MultimodalConfig.of(
        image_model_name_or_path="i", text_model_name_or_path="t", dataset_name="d", output_dir="o"
    )
    shortlist = shortlist_of(evidence(8, **NO_PROBES), config)
    assert [arm.name for arm in shortlist.arms] == ["linear_probe", "gradual", "partial", "full"]
    assert "deep_probe" not in [one.strategy for one in shortlist.rejected]
    assert shortlist.arms[0].reason.endswith(
        "The head of m has several layers, so it cannot be solved and judged beforehand; what follows is by the number "
        "of rows alone."
    )
