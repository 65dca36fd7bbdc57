"""Which of several models is taken, and whether the figure that is reported for it is honest."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from hf_transfer.advice.decision import Compared, choose, corrected_estimate
from hf_transfer.targets.intervals import mean_and_error

Floats = npt.NDArray[np.float64]
ARMS = 6


def compared(*scores: npt.ArrayLike, units: npt.ArrayLike | None = None, costs: list[float] | None = None) -> Compared:
    rows = len(np.asarray(scores[0]))
    given = np.arange(rows) if units is None else np.asarray(units)
    return Compared.of(scores, given, list(range(len(scores))) if costs is None else costs)


def answers(truths: Floats, rows: int, generator: np.random.Generator) -> Floats:
    """Right and wrong answers of models of these accuracies, which agree on most samples [models, rows]."""
    from scipy.stats import norm

    shared, alone = generator.normal(size=rows), generator.normal(size=(len(truths), rows))
    right: Floats = (0.8 * shared + 0.6 * alone < norm.ppf(truths)[:, None]).astype(float)
    return right


def plain_choice(scores: Floats, units: npt.NDArray[np.int64], costs: list[float]) -> int:
    """The number of the model that `choose` takes, computed model by model."""
    best = max(range(len(scores)), key=lambda model: scores[model].mean())
    for model in sorted(range(len(scores)), key=lambda model: costs[model]):
        behind, error = mean_and_error(scores[best] - scores[model], units)
        if behind <= min(0.005, error):
            return model
    return best


def test_the_best_is_taken_if_it_is_clearly_better() -> None:
    assert choose(compared(np.zeros(60), np.r_[np.ones(50), np.zeros(10)])) == 1


def test_of_equal_ones_the_cheapest_is_taken() -> None:
    same = np.tile([1.0, 0.0], 30)
    assert choose(compared(same, same, same, costs=[9, 3, 5])) == 1


def test_a_lead_of_less_than_half_a_point_does_not_outweigh_the_cost() -> None:
    """They differ on so many of 1,000 samples that one standard error is more than the lead."""
    cheap, dear = np.zeros(1000), np.zeros(1000)
    cheap[:20], dear[20:44] = 1, 1
    assert choose(compared(cheap, dear)) == 0
    dear[20:46] = 1
    assert choose(compared(cheap, dear)) == 1


def test_a_lead_of_more_than_one_standard_error_outweighs_the_cost_even_if_it_is_small() -> None:
    """The same lead in each sample has no error."""
    assert choose(compared(np.full(60, 0.5), np.full(60, 0.504))) == 1


def test_errors_are_compared_by_their_size() -> None:
    """Half a point of an error of 1000 kg is 5 kg."""
    generator = np.random.default_rng(0)
    errors = -1000 + generator.normal(0, 100, 400)
    assert choose(compared(errors, errors + generator.normal(2, 100, 400))) == 0
    assert choose(compared(errors, errors + generator.normal(100, 100, 400))) == 1


def test_samples_of_one_unit_count_as_one_when_the_error_is_computed() -> None:
    """Of 900 samples four are answered better and one is answered worse."""
    cheap, dear = np.zeros(900), np.zeros(900)
    cheap[899], dear[:4] = 1, 1
    assert choose(compared(cheap, dear)) == 1
    assert choose(compared(cheap, dear, units=np.arange(900) // 4)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_the_rule_in_words(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(40, 900))
    scores = answers(0.8 + generator.normal(0, 0.004, ARMS), rows, generator)
    units = generator.integers(0, rows // 2, rows)
    costs = generator.permutation(ARMS).astype(float).tolist()
    assert choose(compared(*scores, units=units, costs=costs)) == plain_choice(scores, units, costs)


@pytest.mark.parametrize(
    "truths",
    [
        (0.80, 0.803, 0.807, 0.81, 0.813, 0.817),
        (0.65, 0.80, 0.80, 0.80, 0.80, 0.80),
        (0.82, 0.80, 0.80, 0.80, 0.80, 0.80),
    ],
    ids=["close", "the cheapest is far behind", "the cheapest is best"],
)
def test_the_reported_figure_has_a_bias_below_one_point_where_the_highest_score_has_three(
    truths: tuple[float, ...],
) -> None:
    """Simulated: 60 samples, six models."""
    generator = np.random.default_rng(0)
    honest, naive = [], []
    for repeat in range(300):
        scores = answers(np.array(truths), 60, generator)
        models = compared(*scores)
        estimate = corrected_estimate(models, draws=200, seed=repeat)
        honest.append(estimate.mean - truths[choose(models)])
        naive.append(scores.mean(axis=1).max() - truths[int(scores.mean(axis=1).argmax())])
    assert abs(np.mean(honest)) < 0.01
    assert np.mean(naive) > 0.02


def test_the_interval_contains_the_truth_at_least_as_often_as_it_says() -> None:
    generator, truths = np.random.default_rng(1), np.linspace(0.75, 0.8, ARMS)
    inside = 0
    for repeat in range(200):
        models = compared(*answers(truths, 60, generator))
        low, high = corrected_estimate(models, draws=200, seed=repeat).interval
        inside += low <= truths[choose(models)] <= high
    assert inside >= 0.93 * 200


def test_one_model_has_the_mean_of_its_scores() -> None:
    scores = np.tile([1.0, 1.0, 0.0, 1.0], 50)
    estimate = corrected_estimate(compared(scores))
    assert estimate.mean == pytest.approx(0.75, abs=0.005)
    assert estimate.interval[0] < 0.75 < estimate.interval[1]


def test_the_same_scores_give_the_same_figure() -> None:
    models = compared(*answers(np.linspace(0.6, 0.8, ARMS), 50, np.random.default_rng(2)))
    assert corrected_estimate(models) == corrected_estimate(models)


def test_a_single_unit_has_no_figure() -> None:
    models = compared(np.ones(5), np.zeros(5), units=np.zeros(5, dtype=int))
    assert choose(models) == 0
    assert math.isnan(corrected_estimate(models).mean)
