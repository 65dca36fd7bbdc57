"""Errors are compared with a minus, so that higher is better, and shown without it."""

import pytest

from hf_transfer.evaluation.templates import TEMPLATES
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.shown_scores import shown_interval, shown_score
from hf_transfer.targets.table import TARGETS


def test_an_error_is_shown_without_its_minus_and_a_share_as_it_is() -> None:
    assert shown_score(-0.25, are_errors=True) == 0.25
    assert shown_score(0.25, are_errors=False) == 0.25
    assert f"{shown_score(-0.0, are_errors=True):.2f}" == f"{shown_score(0.0, are_errors=True):.2f}" == "0.00"


def test_an_interval_is_shown_from_the_smaller_to_the_larger_number() -> None:
    assert shown_interval((-0.5, -0.25), are_errors=True) == (0.25, 0.5)
    assert shown_interval((0.25, 0.5), are_errors=False) == (0.25, 0.5)


@pytest.mark.parametrize("are_errors", [True, False])
def test_the_expected_score_of_auto_is_a_positive_number(are_errors: bool) -> None:
    sign = -1 if are_errors else 1
    auto = {
        "score_title": "title", "scores_are_errors": are_errors, "samples": 80, "estimate": sign * 0.3855,
        "interval": sorted((sign * 0.35, sign * 0.42)),
    }  # fmt: skip
    sentence = str(TEMPLATES.get_template("evaluation/tables.md.jinja").make_module().__dict__["expected"](auto))
    assert "Expected title for other samples: 0.3855 (95 % interval 0.3500 to 0.4200)" in sentence


def test_a_record_of_an_earlier_version_is_shown_as_it_was() -> None:
    auto = {"score_title": "- absolute error", "samples": 80, "estimate": -0.3855, "interval": [-0.42, -0.35]}
    sentence = str(TEMPLATES.get_template("evaluation/tables.md.jinja").make_module().__dict__["expected"](auto))
    assert "Expected - absolute error for other samples: -0.3855 (95 % interval -0.4200 to -0.3500)" in sentence


def test_scores_of_numbers_alone_are_errors() -> None:
    assert [target for target in TARGETS.values() if target.scores_are_errors] == [Numbers]
