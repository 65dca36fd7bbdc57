"""What `--strategy auto` tries next, and when it is enough."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from hf_transfer.advice.decision_folder import check_named, settings_of_arm
from hf_transfer.advice.missed import Missed
from hf_transfer.advice.plan import (
    arm_with_pooling,
    describe_plan,
    is_enough,
    next_arm,
    plan_from,
    planned_count,
    with_other_rates,
)
from hf_transfer.errors import UserError
from hf_transfer.evaluation.auto_record import AutoRecord, decision_of
from hf_transfer.settings.run import TextConfig, VisionConfig
from hf_transfer.settings.strategy import Strategy
from tests.advice.auto_runs import arm, record
from tests.advice.known import MORE, NO_PROBES, evidence, pair_config

NAMED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def config(**more: Any) -> TextConfig:
    return TextConfig.of(**NAMED | {"strategy": "auto"} | more)


def tried(
    given: TextConfig, *arms: str, takes: float = 10.0, started: float = 5.0, fails: str = "", enough: str = ""
) -> AutoRecord:
    """The record after arms of these estimated seconds have been tried, each of which takes so long."""
    now = replace(record(arm("linear_probe", 2.0), *map(arm, arms), seconds=started), enough=enough)
    while True:
        now, name = next_arm(now, given)
        if not name:
            return now
        one = next(one for one in now.arms if one.name == name)
        now = replace(
            now.with_arm(replace(one, state="failed" if name == fails else "trained")), seconds=now.seconds + takes
        )


def states(now: AutoRecord) -> dict[str, str]:
    return {one.name: one.state for one in now.arms}


def test_one_strategy_is_trained_beside_the_solved_head() -> None:
    now = tried(config(), "lp_ft", "full", "lora")
    assert states(now) == {"linear_probe": "trained", "lp_ft": "trained", "full": "left out", "lora": "left out"}
    assert now.arms[2].note == "one strategy is trained by default; --auto_seconds tries more"


def test_one_that_fails_makes_room_for_the_next() -> None:
    now = tried(config(), "lp_ft", "full", "lora", fails="lp_ft")
    assert states(now) == {"linear_probe": "trained", "lp_ft": "failed", "full": "trained", "lora": "left out"}


def test_nothing_is_trained_beside_a_solved_head_that_is_enough() -> None:
    now = tried(config(), "lp_ft", "full", enough="it leaves 1 point")
    assert states(now) == {"linear_probe": "trained", "lp_ft": "left out", "full": "left out"}
    assert {one.note for one in now.arms[1:]} == {"it leaves 1 point; --auto_seconds tries more"}
    assert planned_count(now, config()) == 1
    assert is_enough(now, config())


@pytest.mark.parametrize("more", [{"auto_seconds": 100.0}, {"auto_arms": ["full"]}])
def test_time_that_is_given_is_used_though_the_head_is_enough(more: dict[str, Any]) -> None:
    now = tried(config(**more), "full", "lora", enough="it leaves 1 point")
    assert set(states(now).values()) == {"trained"}
    assert not is_enough(now, config(**more))


def test_a_head_that_could_not_be_solved_is_not_enough() -> None:
    now = tried(config(), "lp_ft", "full", fails="linear_probe", enough="it leaves 1 point")
    assert states(now) == {"linear_probe": "failed", "lp_ft": "trained", "full": "left out"}
    assert now.arms[2].note == "one strategy is trained by default; --auto_seconds tries more"


def test_with_time_more_are_trained_as_long_as_the_next_one_fits() -> None:
    """5 s of evidence and 10 s for each: 35 s are spent before the third."""
    now = tried(config(auto_seconds=40.0), "lp_ft", "full", "lora")
    assert states(now) == {"linear_probe": "trained", "lp_ft": "trained", "full": "trained", "lora": "left out"}
    assert now.arms[3].note == "about 10 s needed, 5 s of --auto_seconds left"
    assert set(states(tried(config(auto_seconds=45.0), "lp_ft", "full", "lora")).values()) == {"trained"}


def test_without_time_the_solved_head_alone_is_left() -> None:
    now = tried(config(auto_seconds=1.0), "lp_ft", "full")
    assert states(now) == {"linear_probe": "trained", "lp_ft": "left out", "full": "left out"}
    assert now.arms[1].note == "about 10 s needed, 0 s of --auto_seconds left"


def test_strategies_that_are_named_are_all_trained() -> None:
    assert set(states(tried(config(auto_arms=["full", "lora"]), "full", "lora")).values()) == {"trained"}


def test_the_best_is_tried_with_three_times_and_a_third_of_its_rate_if_there_is_a_limit_of_time() -> None:
    best = replace(arm("full", state="trained", learning_rate=1e-4), seconds=12.0)
    before = record(arm("linear_probe"), best)
    after = with_other_rates(before, best, config(auto_seconds=100.0))
    assert [(one.name, one.settings["learning_rate"], one.estimated_seconds) for one in after.arms[2:]] == [
        ("full at 0.0003", 3e-4, 12.0), ("full at 3.3e-05", 3.3e-5, 12.0),
    ]  # fmt: skip
    assert with_other_rates(after, best, config(auto_seconds=100.0)) == after
    assert with_other_rates(before, best, config()) == before
    assert with_other_rates(before, best, config(auto_seconds=100.0, learning_rate=1e-3)) == before
    solved = arm("linear_probe", state="trained")
    assert with_other_rates(before, solved, config(auto_seconds=100.0)) == before


def test_the_plan_has_the_shortlist_and_a_reason_against_every_other_strategy() -> None:
    plan = plan_from(evidence(50), config())
    assert [one.settings["strategy"] for one in plan.arms] == ["linear_probe", "full", "lp_ft", "lora"]
    named = {one.settings["strategy"] for one in plan.arms} | {one.strategy for one in plan.rejected}
    assert named == set(get_args(Strategy))
    assert (plan.evidence["rows"], plan.evidence["best"]) == (200, "head")


def test_named_strategies_replace_those_of_the_shortlist() -> None:
    """The solved head is tried in any case, once."""
    plan = plan_from(evidence(50), config(auto_arms=["bitfit", "linear_probe", "full"]))
    assert [one.name for one in plan.arms] == ["linear_probe", "bitfit", "full"]
    assert plan.arms[1].reason == "You named it in --auto_arms."
    reasons = {one.strategy: one.reason for one in plan.rejected}
    assert reasons["lora"] == "It is not among --auto_arms."
    assert not {"bitfit", "full", "linear_probe"} & reasons.keys()


@pytest.mark.parametrize(
    ("more", "score", "beginnings"),
    [
        ({}, 0.7, ["Then full", "With --auto_seconds lp_ft", "With --auto_seconds lora"]),
        ({"auto_seconds": 9.0}, 0.7, ["Then full", "Then lp_ft", "Then lora"]),
        ({"auto_seconds": 9.0}, 0.99, ["Then full", "Then lp_ft", "Then lora"]),
        ({}, 0.99, ["Nothing is trained beside it: the solved head", "With --auto_seconds full"]),
    ],
)  # fmt: skip
def test_a_plan_in_sentences_says_what_is_trained_by_default(
    more: dict[str, Any], score: float, beginnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = evidence(50)
    known = replace(known, probes=tuple(replace(one, score=score) for one in known.probes))
    monkeypatch.setattr("hf_transfer.advice.plan.gather_evidence", lambda *_: known)
    monkeypatch.setattr("hf_transfer.advice.plan.sentences_on_data", lambda _: ["200 train texts."])
    on_data, first, *others = describe_plan(config(**more))
    assert on_data == "200 train texts."
    assert first.startswith("First linear_probe, about 60 s: A head on what")
    for sentence, beginning in zip(others, beginnings, strict=False):
        assert sentence.startswith(beginning)


def test_a_plan_in_sentences_names_the_classes_for_which_more_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    known, missed = evidence(50), (Missed("rare", 6, 6),)
    known = replace(known, probes=tuple(replace(one, score=0.99, missed=missed) for one in known.probes))
    monkeypatch.setattr("hf_transfer.advice.plan.gather_evidence", lambda *_: known)
    monkeypatch.setattr("hf_transfer.advice.plan.sentences_on_data", lambda _: [])
    _, misses, then, *_ = describe_plan(config())
    assert misses.endswith("rare (6 of 6), so it is not enough.")
    assert then.startswith("Then full")


def test_a_named_strategy_reads_the_pooling_that_is_better() -> None:
    better = evidence(50, best="mean_6", over_head=MORE)
    arms = {one.name: one.settings for one in plan_from(better, config(auto_arms=["bitfit", "dora"])).arms}
    assert arms["bitfit"]["pooling"] == "mean"
    # An adapter that is saved alone has no place for it.
    assert arms["dora"]["pooling"] == "own"


@pytest.mark.parametrize(
    ("known", "why"), [({}, "by probes on 200 training rows"), (NO_PROBES, "since the head of m has several layers")]
)
def test_a_sentence_says_why_a_pooling_is_chosen(
    known: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_transfer.advice.plan.gather_evidence", lambda *_: evidence(50, **known))
    chosen, sentence = arm_with_pooling(config(strategy="full", pooling="auto"))
    assert chosen.settings == {"strategy": "full", "pooling": "own"}
    assert sentence == f"--pooling auto: the head reads the model's own pooling, {why}."


def test_a_named_strategy_that_the_model_cannot_have_is_refused() -> None:
    without = evidence(50, unsuitable={"lora": "it has no layers that peft can adapt"})
    with pytest.raises(UserError, match="strategies that this model can have\nFound:    lora: it has no layers"):
        plan_from(without, config(auto_arms=["full", "lora"]))


def test_an_arm_has_the_settings_that_have_an_effect_on_it() -> None:
    given = config(auto_seconds=60.0, learning_rate=1e-3, adapter_rank=4, probe="svm", num_train_epochs=3)
    full = settings_of_arm(given, {"strategy": "full"})
    assert (full.training.learning_rate, full.training.num_train_epochs) == (1e-3, 3)
    assert (full.strategy.auto_seconds, full.strategy.adapter_rank, full.strategy.probe) == (None, 8, "logistic")
    solved = settings_of_arm(given, {"strategy": "linear_probe"})
    assert (solved.training.learning_rate, solved.strategy.probe) == (None, "svm")
    assert settings_of_arm(given, {"strategy": "lora"}).strategy.adapter_rank == 4
    assert full.ineffective() == solved.ineffective() == {}


def test_an_adapter_is_merged_where_it_could_not_stand_alone() -> None:
    """It has no place for another pooling, and a base that is only here cannot be published."""
    pushed = {"push_to_hub": True, "hub_model_id": "me/pets"}
    there = config(**pushed, model_name_or_path="google-bert/bert-base-uncased")
    assert settings_of_arm(
        config(**pushed, model_name_or_path="sample:minilm"), {"strategy": "lora"}
    ).strategy.merge_adapter
    assert not settings_of_arm(there, {"strategy": "lora"}).strategy.merge_adapter
    assert settings_of_arm(config(pooling="mean"), {"strategy": "lora"}).strategy.merge_adapter
    assert not settings_of_arm(config(), {"strategy": "lora"}).strategy.merge_adapter


def test_every_kind_of_samples_can_have_every_strategy() -> None:
    check_named(pair_config(strategy="auto", auto_arms=["deep_probe", "lora"]))
    check_named(VisionConfig.of(**NAMED, strategy="auto", auto_arms=["deep_probe", "lora"]))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    best = arm("full", state="trained", score=0.5, standard_error=0.1, settings={"strategy": "full", "taps": ["head"]})
    written = replace(record(arm("linear_probe"), best), chosen="full", estimate=0.4, interval=(0.3, 0.5), samples=9)
    assert AutoRecord.read(tmp_path) is None
    written.write(tmp_path)
    assert AutoRecord.read(tmp_path) == written
    assert decision_of(tmp_path)["chosen"] == "full"
    (tmp_path / "auto/decision.json").write_text("{")
    assert AutoRecord.read(tmp_path) is None
    assert decision_of(tmp_path) == {}


def test_a_decision_that_is_not_taken_yet_is_no_decision(tmp_path: Path) -> None:
    record(arm("full")).write(tmp_path)
    assert decision_of(tmp_path) == {}
