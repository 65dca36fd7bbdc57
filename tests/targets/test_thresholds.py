"""Thresholds against scikit-learn and a search over all of them, and on data that they were not chosen on."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, logit
from sklearn.metrics import f1_score, precision_recall_curve

from hf_transfer.targets.thresholds import choose_thresholds

Floats = npt.NDArray[np.float64]
PREVALENCES = np.geomspace(0.01, 0.5, 12)


def some_answers(
    seed: int, samples: int, prevalences: Floats, missing: float = 0.0, digits: int = 9
) -> tuple[Floats, Floats]:
    """Probabilities that are too low by a factor in odds that differs by label, and the truth."""
    generator = np.random.default_rng(seed)
    odds = logit(prevalences) + 2 * generator.normal(size=(samples, len(prevalences)))
    truth = (generator.random(odds.shape) < expit(odds)).astype(float)
    truth[generator.random(odds.shape) < missing] = np.nan
    return expit(odds - np.linspace(0, 2, len(prevalences))).round(digits), truth


def f1(probabilities: Floats, truth: Floats, thresholds: Floats | float, average: str = "micro") -> float:
    """Over the known cells."""
    chosen, known = probabilities >= thresholds, ~np.isnan(truth)
    if average == "macro":
        return float(np.mean([f1_score(truth[k, i], chosen[k, i]) for i, k in enumerate(known.T)]))
    return float(f1_score(truth[known], chosen[known]))


def candidates(probabilities: Floats) -> list[float]:
    """The midpoints between neighbouring probabilities, highest first."""
    values = np.unique(np.append(probabilities, 0))[::-1]
    return [float(middle) for middle in (values[1:] + values[:-1]) / 2]


def searched(probabilities: Floats, truth: Floats) -> Floats:
    """The rule, written out with a search over all candidates."""

    def shared(labels: npt.NDArray[np.intp]) -> float:
        cells, true = probabilities[:, labels], truth[:, labels]
        return max(candidates(cells[~np.isnan(true)]), key=lambda one: f1(cells, true, one))

    def moved(towards: float, searched: float, count: int) -> float:
        weight = count / (count + 5)
        return float(expit(weight * logit(searched) + (1 - weight) * logit(towards)))

    counts = (truth == 1).sum(0)
    few = np.flatnonzero(counts < 25)
    base = np.full(len(counts), shared(np.arange(len(counts))))
    if counts[few].any():
        base[few] = moved(base[0], shared(few), counts[few].sum())
    searched, done = base.copy(), np.array([], int)
    for label in sorted(np.flatnonzero(counts).tolist(), key=lambda one: -counts[one]):
        labels = np.append(done, label)

        def gain(one: float, label: int = label, labels: npt.NDArray[np.intp] = labels) -> float:
            here, thresholds = [label], np.append(searched[labels[:-1]], one)
            of_label = f1(probabilities[:, here], truth[:, here], one)
            return of_label / len(labels) + f1(probabilities[:, labels], truth[:, labels], thresholds)

        searched[label] = max(
            candidates(probabilities[~np.isnan(truth[:, label]), label]), key=lambda one: round(gain(one), 12)
        )
        done = labels
    return np.array([moved(*one) for one in zip(base, searched, counts, strict=True)])


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("digits", [1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_a_single_label_has_the_best_f1_of_all_thresholds(seed: int, digits: int, missing: float) -> None:
    probabilities, truth = some_answers(seed, 80, np.array([0.3]), missing, digits)
    known = ~np.isnan(truth)
    precision, recall, _ = precision_recall_curve(truth[known], probabilities[known])
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1(probabilities, truth, choose_thresholds(probabilities, truth)) == pytest.approx(best)


def test_a_threshold_is_halfway_between_neighbouring_probabilities() -> None:
    probabilities, truth = np.array([[0.9], [0.7], [0.4], [0.1]]), np.array([[1.0], [1.0], [0.0], [0.0]])
    assert choose_thresholds(probabilities, truth) == pytest.approx([0.55])


def test_if_every_sample_has_the_label_its_threshold_is_below_all_probabilities() -> None:
    assert choose_thresholds(np.array([[0.9], [0.4]]), np.ones((2, 1))) == pytest.approx([0.2])


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_thresholds_are_those_of_a_search_over_all_candidates(seed: int, missing: float) -> None:
    """Labels with no, few and many positives."""
    probabilities, truth = some_answers(seed, 70, np.array([0.5, 0.02, 0.4, 0.1]), missing, digits=2)
    truth[truth[:, 1] == 1, 1] = 0
    assert choose_thresholds(probabilities, truth) == pytest.approx(searched(probabilities, truth))


def test_a_label_without_a_positive_has_the_best_threshold_of_all_cells() -> None:
    probabilities, truth = some_answers(0, 100, np.array([0.1, 0.05, 0.1]))
    truth[:, 2] = 0
    cells = probabilities.reshape(-1, 1), truth.reshape(-1, 1)
    assert choose_thresholds(probabilities, truth)[2] == pytest.approx(choose_thresholds(*cells)[0])


def test_the_more_positives_a_label_has_the_nearer_is_its_threshold_to_its_own_best() -> None:
    """Positives of the second label score lower than negatives of the first."""
    distances = []
    for positives in (2, 10, 40, 400):
        truth = np.zeros((800, 2))
        truth[:400, 0] = truth[:positives, 1] = 1
        probabilities = np.where(truth == 1, [0.9, 0.05], [0.3, 0.01])
        alone, shared = logit(0.03), logit(0.6)
        distances.append((logit(choose_thresholds(probabilities, truth)[1]) - alone) / (shared - alone))
    assert distances == sorted(distances, reverse=True)
    assert 0 <= distances[-1] < 0.02


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_without_a_known_positive_all_thresholds_are_a_half(value: float) -> None:
    assert choose_thresholds(np.full((5, 3), 0.2), np.full((5, 3), value)).tolist() == [0.5] * 3


def test_probabilities_of_cells_that_are_not_known_change_nothing() -> None:
    probabilities, truth = some_answers(1, 100, np.array([0.3, 0.1, 0.5]), missing=0.3)
    others = np.where(np.isnan(truth), 0.77, probabilities)
    assert choose_thresholds(others, truth).tolist() == choose_thresholds(probabilities, truth).tolist()


@pytest.mark.filterwarnings("error")
def test_probabilities_of_exactly_zero_and_one_give_thresholds_between_them() -> None:
    truth = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 1]])
    thresholds = choose_thresholds(truth, truth)
    assert ((thresholds > 0) & (thresholds < 1)).all()
    assert f1(truth, truth, thresholds) == 1


def test_single_precision_gives_the_same_thresholds() -> None:
    probabilities, truth = some_answers(2, 200, PREVALENCES)
    single = choose_thresholds(probabilities.astype(np.float32), truth.astype(np.float32))
    assert single == pytest.approx(choose_thresholds(probabilities, truth), rel=1e-4)


@pytest.mark.parametrize(("samples", "gain"), [(60, 0.005), (300, 0.0)])
def test_on_new_samples_chosen_thresholds_beat_a_half_and_the_best_of_each_label(samples: int, gain: float) -> None:
    """The fewer samples, the more the best threshold of a label follows chance."""
    results: dict[str, list[tuple[float, float]]] = {"chosen": [], "half": [], "each": []}
    for seed in range(12):
        probabilities, truth = some_answers(seed, 4000 + samples, PREVALENCES)
        seen, new = (probabilities[:samples], truth[:samples]), (probabilities[samples:], truth[samples:])
        each = [choose_thresholds(seen[0][:, [label]], seen[1][:, [label]])[0] for label in range(len(PREVALENCES))]
        for name, thresholds in (("chosen", choose_thresholds(*seen)), ("half", 0.5), ("each", np.array(each))):
            results[name].append((f1(*new, thresholds), f1(*new, thresholds, "macro")))
    micro, macro = (dict(zip(results, column, strict=True)) for column in np.mean(list(results.values()), 1).T)
    assert micro["chosen"] > micro["half"] + 0.05
    assert micro["chosen"] > micro["each"] + gain
    assert macro["chosen"] > macro["half"] + 0.05
    assert macro["chosen"] > macro["each"] - 0.005
