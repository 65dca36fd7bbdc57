"""What is worth trying: the best solved head first, then what suits the number of rows; each with its reason."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from hf_transfer.advice.advising import command_for
from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.missed import Missed
from hf_transfer.advice.shortlist import MEASURED, NOT_TRIED, RULES, TRIED, resolved_pooling, shortlist_of
from hf_transfer.settings.run import VisionConfig
from hf_transfer.settings.strategy import Strategy
from tests.advice.known import (
    CONSTANT,
    HELPS,
    LESS,
    MORE,
    NO_HELP,
    NO_PROBES,
    evidence,
    pair_config,
    pair_evidence,
    text_config,
)

PICTURES = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o")


def names(rows_per_class: float) -> list[str]:
    return [arm.name for arm in shortlist_of(evidence(rows_per_class), text_config()).arms]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (8, ["full", "gradual", "partial"]), (15.75, ["full", "gradual", "partial"]), (16, ["full", "lp_ft", "lora"]),
        (199, ["full", "lp_ft", "lora"]), (200, ["full", "lp_ft"]), (5_000, ["full", "lp_ft"]),
    ],
)  # fmt: skip
def test_what_is_trained_on_texts_depends_on_the_rows_of_a_class(rows: float, expected: list[str]) -> None:
    assert names(rows) == ["linear_probe", *expected]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(8, ["lp_ft", "gradual", "partial"]), (16, ["lp_ft", "full", "lora"]), (200, ["full", "lp_ft"])],
)
def test_with_few_pictures_a_solved_head_comes_before_all_layers(rows: float, expected: list[str]) -> None:
    arms = shortlist_of(evidence(rows), PICTURES).arms
    assert [arm.name for arm in arms] == ["linear_probe", *expected]


def test_the_first_strategy_that_trains_is_said_to_have_been_better_where_that_was_measured() -> None:
    for config, words in ((text_config(), "on the sample texts it was better than lp_ft."), (PICTURES, "than full.")):
        for rows in (8, 50):
            _, first, *others = shortlist_of(evidence(rows), config).arms
            assert first.reason.endswith(words)
            assert not any("it was better" in arm.reason for arm in others)
        assert not any("it was better" in arm.reason for arm in shortlist_of(evidence(500), config).arms)


def with_score(score: float, standard_error: float, **others: Any) -> Evidence:
    known = evidence(**others)
    probes = tuple(replace(one, score=score, standard_error=standard_error) for one in known.probes)
    return replace(known, probes=probes)


@pytest.mark.parametrize(
    ("score", "standard_error", "left"),
    [
        (1.0, 0.0, "0.0"), (0.989, 0.001, "1.1"), (0.981, 0.001, "1.9"), (0.97, 0.001, ""), (0.97, 0.016, "3.0"),
        (0.952, 0.025, "4.8"), (0.94, 0.05, ""), (0.7, 0.2, ""), (-0.001, 0.001, ""),
    ],
)  # fmt: skip
def test_a_solved_head_is_enough_if_it_leaves_too_little_to_gain(
    score: float, standard_error: float, left: str
) -> None:
    """At most 2 %, or at most 5 % within two standard errors of nothing; errors of numbers have no scale."""
    enough = shortlist_of(with_score(score, standard_error), text_config()).enough
    expected = f"the solved head leaves training only about {left} points of accuracy to gain" if left else ""
    assert enough == expected


@pytest.mark.parametrize(
    ("score", "of_constant", "is_enough"),
    [(0.995, 0.995, False), (0.99, 0.95, False), (0.996, 0.95, True), (0.981, 0.5, True), (1.0, 0.995, True)],
)
def test_few_errors_are_not_enough_where_an_answer_without_a_look_makes_hardly_more(
    score: float, of_constant: float, is_enough: bool
) -> None:
    """With one rare class, a head that never names it makes few errors; no more than a tenth of these may be left."""
    constant = replace(CONSTANT, score=of_constant)
    enough = shortlist_of(with_score(score, 0.001, constant=constant), text_config()).enough
    assert bool(enough) is is_enough


@pytest.mark.parametrize("tried", ["head", "mean_6"])
def test_a_head_that_misses_a_class_is_not_enough_however_few_its_rows_are(tried: str) -> None:
    """It is the head that is tried which has to name each class; what another one misses does not count."""
    known = evidence(best=tried, over_head=MORE if tried != "head" else LESS)
    missed = (Missed("rare", 6, 6),)
    for features, is_enough in ((tried, False), ("mean_2 + mean_6", True)):
        probes = tuple(replace(one, score=0.99) for one in known.probes)
        probes = tuple(replace(one, missed=missed) if one.features == features else one for one in probes)
        shortlist = shortlist_of(replace(known, probes=probes), text_config())
        assert bool(shortlist.enough) is is_enough
        shown = (
            "about 1.0 points of accuracy to gain, but it misses too many rows of rare (6 of 6), so it is not enough."
        )
        assert shortlist.misses.endswith(shown) if not is_enough else not shortlist.misses


def test_it_is_the_head_that_is_tried_which_has_to_be_enough() -> None:
    """A place that is better by chance alone is not read, and what it leaves does not count."""
    known = evidence(best="mean_6", over_head=MORE)
    good = replace(known, probes=tuple(replace(one, score=0.99 if one.over_head else 0.7) for one in known.probes))
    assert shortlist_of(good, text_config()).enough
    by_chance = tuple(replace(one, over_head=one.over_head and LESS) for one in good.probes)
    assert not shortlist_of(replace(good, probes=by_chance), text_config()).enough
    assert not shortlist_of(evidence(**NO_PROBES), text_config()).enough


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
    strategies = {name for rule in RULES for name in (*rule.texts, *rule.others)}
    assert strategies <= TRIED.keys()
    assert {name for rule in RULES[:-1] for name in (rule.texts[0], rule.others[0])} == MEASURED.keys()
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


def test_an_adapter_on_a_head_of_ours_is_merged() -> None:
    """peft could not load its base elsewhere."""
    for has_our_head in (False, True):
        arms = {arm.name: arm for arm in shortlist_of(evidence(has_our_head=has_our_head), text_config()).arms}
        assert arms["lora"].settings.get("merge_adapter", False) is has_our_head
        assert "merge_adapter" not in arms["full"].settings


def test_trained_heads_read_the_mean_where_it_is_better() -> None:
    arms = {arm.name: arm for arm in shortlist_of(evidence(best="mean_6", over_head=MORE), text_config()).arms}
    assert arms["full"].settings == {"strategy": "full", "pooling": "mean"}
    assert arms["lora"].settings == {"strategy": "lora", "pooling": "mean", "merge_adapter": True}
    assert "the mean of all tokens" in arms["full"].reason
    for arm in arms.values():
        text_config().replaced(**arm.settings)


def test_only_a_solved_head_gains_by_vectors_that_are_not_scaled_to_one_length() -> None:
    """Trained layers read the model's own pooling as it is, which is then no other one."""
    known = evidence(best="mean_6", over_head=MORE, scaled_if_solved="mean")
    for wanted in ("own", "auto"):
        _, *trained = shortlist_of(known, text_config(pooling=wanted)).arms
        assert {arm.settings.get("pooling", "own") for arm in trained} == {"own"}
        assert not any("its head reads" in arm.reason for arm in trained)
    expected = {"full": "own", "lp_ft": "own", "linear_probe": "mean"}
    auto = {name: text_config(strategy=name, pooling="auto") for name in expected}
    assert {name: resolved_pooling(known, config) for name, config in auto.items()} == expected
    assert resolved_pooling(replace(known, scaled_if_solved="cls"), auto["full"]) == "mean"


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
    known = evidence(best="mean_6", over_head=MORE)
    assert resolved_pooling(known, PICTURES) == "own"
    assert all("pooling" not in arm.settings for arm in shortlist_of(known, PICTURES).arms)


@pytest.mark.parametrize(
    ("known", "taps", "words"),
    [
        (
            pair_evidence(), ["image_head", "text_head"],
            "A head on the pooled vectors of both towers costs no training, and no other place is clearly better (0.7",
        ),
        (
            pair_evidence("image_mean_4 + text_head", MORE), ["image_mean_4", "text_head"],
            "A head on image_mean_4 + text_head costs no training, and scores higher than one on the pooled vectors of",
        ),
    ],
)  # fmt: skip
def test_of_images_with_texts_a_solved_head_on_both_is_the_first(known: Evidence, taps: list[str], words: str) -> None:
    """A linear probe is not: its head of several layers is trained."""
    shortlist = shortlist_of(known, pair_config())
    first = shortlist.arms[0]
    assert first.settings == {"strategy": "deep_probe", "taps": taps}
    assert first.reason.startswith(words)
    (rejected,) = [one for one in shortlist.rejected if one.strategy == "linear_probe"]
    assert rejected.reason.startswith("Its head of several layers is trained on the same frozen features")
    assert "deep_probe" not in [one.strategy for one in shortlist.rejected]
    command = command_for(first, pair_config(), ["--dataset_name", "d"])
    assert command.endswith(f"--strategy deep_probe --taps {' '.join(taps)} --output_dir runs/deep_probe")


def test_images_with_texts_without_a_solver_are_judged_by_their_number_alone() -> None:
    config = pair_config()
    shortlist = shortlist_of(evidence(8, **NO_PROBES, unsuitable={"deep_probe": "none"}), config)
    assert [arm.name for arm in shortlist.arms] == ["linear_probe", "lp_ft", "gradual", "partial"]
    assert "deep_probe" in [one.strategy for one in shortlist.rejected]
    assert shortlist.arms[0].reason.endswith(
        "The head of m has several layers, so it cannot be solved and judged beforehand; what follows is by the number "
        "of rows alone."
    )
