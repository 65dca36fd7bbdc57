"""The best epochs of a run, and soups of them against the recipe of the paper in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_transfer.targets.predictions import Ranking
from hf_transfer.training.averaging import BestEpochs, Candidate, Weights, greedy_soup


def equal(weights: Weights, expected: Weights) -> bool:
    return weights.keys() == expected.keys() and all(
        torch.equal(weights[name], value) for name, value in expected.items()
    )


def weights(*numbers: float) -> Weights:
    return {"w": torch.tensor(numbers), "count": torch.tensor(int(numbers[0]))}


def test_the_best_epochs_are_kept_and_of_equal_ones_the_earlier() -> None:
    best = BestEpochs(3)
    scores = [(0.5, -1.0), (0.8, -0.4), (0.8, -0.4), (0.2, 0.0), (0.8, -0.5), (0.9, -2.0), (0.8, -0.4)]
    for epoch, score in enumerate(scores):
        best.offer(weights(epoch), score, epoch)
    assert [(kept.epoch, kept.scores) for kept in best.candidates] == [(e, scores[e]) for e in (5, 1, 2)]
    assert all(kept.weights["w"].item() == kept.epoch for kept in best.candidates)


def test_kept_weights_are_copies() -> None:
    best, parameter = BestEpochs(1), nn.Parameter(torch.zeros(2))
    best.offer({"w": parameter}, (1.0,), 0)
    with torch.no_grad():
        parameter.add_(1)
    (kept,) = best.candidates
    assert kept.weights["w"].tolist() == [0, 0]
    assert not kept.weights["w"].requires_grad


def test_a_loss_of_nan_is_the_worst() -> None:
    best, ranking = BestEpochs(2), Ranking("loss", lower_is_better=True)
    for epoch, loss in enumerate([0.3, math.nan, 0.5]):
        best.offer(weights(epoch), ranking.scores({"loss": loss}), epoch)
    assert [kept.epoch for kept in best.candidates] == [0, 2]


def distance_to(target: np.ndarray[Any, Any]) -> Any:
    def evaluate(soup: Weights) -> tuple[float, ...]:
        return (-float(np.square(soup["w"].double().numpy() - target).sum()),)

    return evaluate


@pytest.mark.parametrize("seed", range(8))
def test_a_soup_is_the_greedy_mean_of_the_paper(seed: int) -> None:
    """Recipe 1, with means of lists in numpy."""
    generator = np.random.default_rng(seed)
    target = generator.normal(size=3)
    points = target + generator.normal(size=(6, 3))
    evaluate = distance_to(target)
    candidates = [
        Candidate(weights(*row), evaluate(weights(*row)), epoch) for epoch, row in enumerate(points.astype(np.float32))
    ]
    soup, chosen = greedy_soup(sorted(candidates, key=lambda one: one.scores, reverse=True), evaluate)

    ingredients: list[int] = []
    reached = -math.inf
    for position in sorted(range(6), key=lambda p: -candidates[p].scores[0]):
        mean = points[[*ingredients, position]].mean(0)
        if -np.square(mean - target).sum() >= reached:
            ingredients.append(position)
            reached = -np.square(mean - target).sum()
    assert chosen == ingredients
    assert soup["w"].numpy() == pytest.approx(points[ingredients].mean(0), abs=1e-6)
    assert evaluate(soup) >= max(candidate.scores for candidate in candidates)
    assert torch.equal(soup["count"], candidates[chosen[0]].weights["count"])
    assert {name: value.dtype for name, value in soup.items()} == {"w": torch.float32, "count": torch.int64}


def test_without_a_better_soup_the_result_is_the_best_candidate_to_the_bit() -> None:
    candidates = [Candidate(weights(1 / 3), (0.9,), 1), Candidate(weights(0.1), (0.1,), 0)]
    soup, chosen = greedy_soup(candidates, lambda _: (0.8,))
    assert chosen == [1]
    assert equal(soup, weights(1 / 3))


def test_a_candidate_that_makes_no_difference_is_averaged() -> None:
    """In the paper: if the soup is at least as good."""
    candidates = [Candidate(weights(2.0), (0.9,), 0), Candidate(weights(1.0), (0.5,), 1)]
    soup, chosen = greedy_soup(candidates, lambda _: (0.9,))
    assert chosen == [0, 1]
    assert equal(soup, {"w": torch.tensor([1.5]), "count": torch.tensor(2)})


def test_a_single_candidate_is_not_evaluated() -> None:
    soup, chosen = greedy_soup([Candidate(weights(0.1), (0.1,), 0)], lambda _: pytest.fail("evaluated"))
    assert chosen == [0]
    assert equal(soup, weights(0.1))


def test_a_soup_does_not_change_the_candidates() -> None:
    candidates = [Candidate(weights(number), (number,), 0) for number in (4.0, 2.0, 1.0)]
    greedy_soup(candidates, lambda _: (9.0,))
    assert [candidate.weights["w"].item() for candidate in candidates] == [4, 2, 1]
