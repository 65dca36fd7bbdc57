"""Scores as people read them: of errors the size, without the minus that makes higher scores the better ones."""

from hf_transfer.targets.target import Interval


def shown_score(score: float, *, are_errors: bool) -> float:
    """A score as it is shown.

    Args:
        score: higher is better.
        are_errors: whether scores are errors with a minus: `Target.scores_are_errors`.
    """
    return 0.0 - score if are_errors else score


def shown_interval(interval: Interval, *, are_errors: bool) -> Interval:
    """An interval of scores as it is shown, from the smaller to the larger number."""
    low, high = sorted(shown_score(score, are_errors=are_errors) for score in interval)
    return low, high
