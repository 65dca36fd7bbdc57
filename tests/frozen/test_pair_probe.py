"""A solved head for images with texts: it learns from whole samples, and from the same ones without one part."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hf_transfer.data.folds import Folds
from hf_transfer.frozen.features import Features, best_solution
from hf_transfer.frozen.hidden_parts import HiddenPart
from hf_transfer.frozen.out_of_fold import left_out_path
from hf_transfer.frozen.solvers import SOLVERS
from hf_transfer.frozen.taps import materials_of, tap_features
from hf_transfer.models.modeling_pair_probe import PairProbeModel
from hf_transfer.models.pair_taps import AllPairTaps
from hf_transfer.models.towers import trace
from hf_transfer.strategies.deep_probe import PairProbe
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from hf_transfer.training.progress import Fit
from tests.frozen.solved_heads import options_of, passes_of
from tests.tiny_models import logits, perturb
from tests.tiny_pairs import PAIRS, pair_inputs, tiny_pair
from tests.training.toy_pairs import PairRows, pair_settings
from tests.training.toy_task import TARGET, as_label_sets, as_numbers, loaders_of, train

TAPS = ("image_mean_1", "image_head", "text_mean_2", "text_head")


def rows_of(size: int, seed: int = 0) -> PairRows:
    """Samples of which half have a wrong label, so that no head is perfect."""
    rows = PairRows(size, seed=seed)
    rows.labels[::2] = rows.labels[::2].roll(1)
    return rows


def prepared(name: str, *taps: str) -> tuple[AllPairTaps, list[Any], PairProbe]:
    """A tiny model, its groups, and the strategy that it is prepared for."""
    model, inputs, strategy = tiny_pair(name), pair_inputs(name), PairProbe(taps=taps)
    groups = trace(model, inputs)
    strategy.check(model, groups)
    tapped, groups = strategy.prepare(model, groups, inputs, 0)
    assert isinstance(tapped, AllPairTaps)
    return tapped, groups, strategy


def solved(name: str, folder: Path, *taps: str) -> Fit:
    """A run of the strategy on a tiny model."""
    tapped, groups, strategy = prepared(name, *taps)
    config = pair_settings(folder).replaced(cache_frozen="on")
    return train(tapped, groups, strategy, config, rows_of(60), rows_of(40, 1))


def features_on_disk(name: str, folder: Path, *taps: str, rows: PairRows | None = None) -> tuple[Features, Any]:
    """The features of a run, which a run before may have left in the folder, and how its head is solved."""
    tapped, _, _ = prepared(name, *taps)
    config = pair_settings(folder).replaced(cache_frozen="on")
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows or rows_of(60), rows_of(40, 1), 4)
        passes = passes_of(loaders, accelerator, config)
        with tap_features(tapped.backbone, tapped.choice.taps, tapped.widths, 0, passes) as features:
            places = tapped.choice.combinations[0]
            return Features(
                features.train, features.validation, features.target, places, features.names, normalised=True
            ), options_of(loaders, config)  # fmt: skip


def side_by_side(columns: list[Tensor], features: Features) -> Tensor:
    """The chosen columns, each of unit length, or zero."""
    parts = [columns[place] for place in features.columns]
    return torch.cat([part / part.norm(dim=1, keepdim=True).clamp_min(1e-12) for part in parts], 1)


@pytest.mark.parametrize("name", PAIRS)
def test_reloaded_logits_are_the_stored_features_times_the_solved_weights(name: str, tmp_path: Path) -> None:
    """Also of the sample without an image, and of the one without a text."""
    fitted = solved(name, tmp_path, *TAPS)
    finished: Any = fitted.model
    assert isinstance(finished, PairProbeModel)
    finished.save_pretrained(tmp_path / "model")
    again: Any = PairProbeModel.from_pretrained(tmp_path / "model")
    features, _ = features_on_disk(name, tmp_path, *TAPS)
    assert features.validation is not None
    rows = side_by_side(features.validation.chunk(0), features)
    weights = load_file(tmp_path / "model/model.safetensors")
    expected = rows @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(logits(again.eval(), rows_of(40, 1).inputs), expected, rtol=1e-5, atol=1e-5)
    assert fitted.trainable == sum(parameter.numel() for parameter in finished.classifier.parameters())


def test_a_second_run_passes_nothing_through_the_towers(tmp_path: Path) -> None:
    """Whichever places it names."""
    solved("vit", tmp_path)
    tapped, groups, strategy = prepared("vit", "image_head", "text_head")
    seen: list[str] = []
    for tower in ("image", "text"):
        module = tapped.backbone.get_submodule(f"{tower}_tower")
        module.register_forward_pre_hook(lambda *_, tower=tower: seen.append(tower))
    config = pair_settings(tmp_path).replaced(cache_frozen="on")
    rows, validation = rows_of(60), rows_of(40, 1)
    with start_accelerator(config) as accelerator:
        passes = passes_of(loaders_of(accelerator, rows, validation, 4), accelerator, config)
        with tap_features(tapped.backbone, tapped.choice.taps, tapped.widths, 0, passes) as features:
            assert features.samples == 60
    assert seen == []
    assert strategy.stages(groups, 1)[0].solved


def test_a_tower_whose_features_are_stored_is_not_run_beside_another_one(tmp_path: Path) -> None:
    """Of a tower that was run before, the features are read; they are those of a run of both."""
    config = pair_settings(tmp_path).replaced(cache_frozen="on")
    seen: list[str] = []
    columns = []
    for changes in (False, True):
        tapped, _, _ = prepared("vit", *TAPS)
        if changes:
            perturb(tapped.backbone.get_submodule("text_tower"), 9)
        for tower in ("image", "text"):
            module = tapped.backbone.get_submodule(f"{tower}_tower")
            module.register_forward_pre_hook(lambda *_, tower=tower: seen.append(tower))
        with start_accelerator(config) as accelerator:
            passes = passes_of(loaders_of(accelerator, rows_of(60), rows_of(40, 1), 4), accelerator, config)
            with tap_features(tapped.backbone, tapped.choice.taps, tapped.widths, 0, passes) as features:
                columns.append((features.names, features.train[0].chunk(0)))
        assert set(seen) == ({"text"} if changes else {"image", "text"})
        seen.clear()
    (names, first), (_, second) = columns
    same = {name for place, name in enumerate(names) if torch.equal(first[place], second[place])}
    assert same == {name for name in names if name.startswith("image") or name == "text_present"}


def test_the_stores_of_one_tower_do_not_depend_on_the_other() -> None:
    tapped, _, _ = prepared("vit", *TAPS)
    taps = tapped.choice.taps
    with start_accelerator(pair_settings()) as accelerator:
        before = materials_of(tapped.backbone, taps, accelerator)
        perturb(tapped.backbone.get_submodule("text_tower"), 9)
        after = materials_of(tapped.backbone, taps, accelerator)
    same = [one == other for one, other in zip(before, after, strict=True)]
    assert same == [tap.tower == "image" for tap in taps]
    assert len({str(one) for one in before}) == len(taps)


def test_training_has_each_whole_sample_three_times_and_validation_once(tmp_path: Path) -> None:
    """Whole, without its text, without its image; the first has no image and the second no text, all three times."""
    features, _ = features_on_disk("vit", tmp_path, *TAPS)
    image, text = (features.names.index(f"{part}_present") for part in ("image", "text"))
    whole, no_text, no_image = (store.chunk(0) for store in features.train)
    complete = torch.ones(60, dtype=torch.bool)
    complete[:2] = False
    for copy, hidden in ((no_text, "text"), (no_image, "image")):
        for place, name in enumerate(features.names):
            expected = whole[place].clone()
            if name.startswith(hidden):
                expected[complete] = 0.0
            assert torch.equal(copy[place], expected), name
        assert torch.equal(copy[-2], whole[-2])
        assert torch.equal(copy[-1], whole[-1])
    assert whole[image][:3].flatten().tolist() == [0, 1, 1]
    assert whole[text][:3].flatten().tolist() == [1, 0, 1]
    assert features.validation_samples == 40


def stacked(features: Features) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features and targets of all three copies."""
    chunks = [store.chunk(0) for store in features.train]
    rows = torch.cat([side_by_side(chunk, features) for chunk in chunks]).double().numpy()
    return rows, torch.cat([chunk[-2] for chunk in chunks]).numpy()


def test_the_solution_is_that_of_scikit_learn_on_all_three_copies(tmp_path: Path) -> None:
    fitted = solved("vit", tmp_path, *TAPS)
    row = fitted.history[0]
    features, _ = features_on_disk("vit", tmp_path, *TAPS)
    rows, labels = stacked(features)
    centre, spread = rows.mean(0), rows.std(0)
    spread[spread <= 1e-6 * spread.max()] = 1.0
    reference = LogisticRegression(C=1 / (row["regularisation"] * len(rows)), tol=1e-8, max_iter=5000)
    reference.fit((rows - centre) / spread, labels)
    expected = reference.predict_log_proba((rows - centre) / spread)
    classifier: Any = fitted.model.get_submodule("classifier")
    weight, bias = (value.detach().double().numpy() for value in (classifier.weight, classifier.bias))
    logarithms = torch.from_numpy(rows @ weight.T + bias).log_softmax(1).numpy()
    assert logarithms == pytest.approx(expected, abs=0.02)
    assert row["train_loss"] == pytest.approx(-expected[np.arange(len(labels)), labels].mean(), abs=1e-3)


@pytest.mark.parametrize("hidden", ["image", "text"])
def test_a_head_knows_more_of_one_part_alone_than_one_that_saw_only_whole_samples(hidden: str, tmp_path: Path) -> None:
    """By the loss on validation without the other part."""
    features, options = features_on_disk("vit", tmp_path, *TAPS)
    taps = prepared("vit", *TAPS)[0].choice.taps
    assert TARGET.solver is not None
    assert features.validation is not None
    one_part = replace(features, validation=HiddenPart(features.validation, taps, hidden))
    losses = [
        one_part.predictions(best_solution(SOLVERS[TARGET.solver], seen, options, intercept=True)).metrics()["loss"]
        for seen in (features, features.as_in_evaluation)
    ]
    assert losses[0] < losses[1]


def test_a_wrong_label_leaves_the_predictions_for_its_own_sample_as_they_were(tmp_path: Path) -> None:
    """Its copies without one part are left out with it: to the bit, with each regularisation."""
    row, changed = 11, rows_of(60)
    changed.labels[row] = (changed.labels[row] + 1) % len(TARGET.names)
    paths = []
    for folder, rows in (("same", rows_of(60)), ("changed", changed)):
        features, options = features_on_disk("vit", tmp_path / folder, *TAPS, rows=rows)
        folds = Folds(np.random.default_rng(7).permutation(60)[None] % 4, np.arange(60))
        assert TARGET.solver is not None
        path = left_out_path(SOLVERS[TARGET.solver], features, folds, options, intercept=True)
        paths.append([next(path).outputs[0] for _ in range(5)])
    for one, other in zip(*paths, strict=True):
        assert torch.equal(one[row], other[row])
        assert not torch.equal(one, other)


@pytest.mark.parametrize("relabel", [as_label_sets, as_numbers])
def test_labels_and_numbers_are_solved_with_their_own_solvers(relabel: Any, tmp_path: Path) -> None:
    tapped, groups, strategy = prepared("vit")
    rows, validation = PairRows(60), PairRows(40, seed=1)
    target = relabel(rows)
    relabel(validation)
    config = pair_settings(tmp_path).replaced(cache_frozen="on")
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4, target=target)
        fitted = fit(tapped, strategy, groups, loaders, config, accelerator)
    assert fitted.history[0]["regularisation"] > 0
    assert isinstance(fitted.model, PairProbeModel)
    if relabel is as_numbers:
        assert fitted.history[0]["r2"] > 0.9
    else:
        assert fitted.history[0]["map"] > 0.9
