"""Probes of earlier layers and nearest neighbours: the reports agree with scikit-learn."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_transfer.frozen.probe import probe_layers, solve_head
from hf_transfer.strategies.freezing import LinearProbe
from hf_transfer.targets.classes import Classes
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.progress import Fit
from tests.frozen.solved_heads import features, options_of, passes_of
from tests.training.toy_task import TARGET, Rows, loaders_of, rows_for, settings, text_settings, tiny, train

BLOCKS = {"vit": "vit.layers.{}", "resnet_basic": "resnet.encoder.stages.{}", "bert": "bert.encoder.layer.{}"}


def pooled(model: nn.Module, name: str, block: int, rows: Rows) -> Tensor:
    """The mean output of a block of the live model, over tokens or places."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    hook = model.get_submodule(BLOCKS[name].format(block - 1)).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(**rows.inputs)
    hook.remove()
    (output,) = outputs
    if name == "resnet_basic":
        return output.mean((2, 3))
    mask = rows.inputs["attention_mask"].bool() if name == "bert" else torch.ones(output.shape[:2], dtype=torch.bool)
    return torch.stack([sample[tokens].mean(0) for sample, tokens in zip(output, mask, strict=True)])


def probed(name: str, layers: list[int], folder: Path, **more: object) -> tuple[Fit, Rows, Rows]:
    """A linear probe that also reports on some blocks."""
    model, groups, _ = tiny(name)
    rows, validation = rows_for(name, 60), rows_for(name, 40, seed=1)
    # Half of the labels are wrong, so that the layers differ.
    rows.labels[::2] = rows.labels[::2].roll(1)
    chosen = {
        "strategy": "linear_probe",
        "feature_layers": layers,
        "cache_frozen": "on",
        "cache_dir": str(folder),
        **more,
    }
    config = text_settings(**chosen) if name == "bert" else settings(**chosen)
    return train(model, groups, LinearProbe(), config, rows, validation), rows, validation


def reported(fitted: Fit) -> dict[str, float]:
    """Validation accuracy by layers."""
    pattern = re.compile(r"Probe of layer (.+) of 3: validation accuracy ([\d.]+), loss [\d.]+\.")
    return {match[1]: float(match[2]) for match in map(pattern.fullmatch, fitted.notes) if match}


def best_accuracy(seen: Tensor, labels: Tensor, held_out: Tensor, expected: Tensor) -> float:
    """The best of scikit-learn's solutions, from strong to weak regularisation until four in a row bring no gain."""
    # Some features of a residual network are always zero.
    mean, spread = seen.mean(0), seen.std(0, correction=0).where(seen.std(0) > 0, 1)
    rows: list[tuple[float, float]] = []
    for exponent in np.arange(1.0, -6.5, -0.5):
        classifier = LogisticRegression(C=1 / (len(seen) * 10.0**exponent), max_iter=5000, tol=1e-7)
        classifier.fit((seen - mean) / spread, labels)
        scores = torch.from_numpy(classifier.decision_function((held_out - mean) / spread))
        rows.append((float((scores.argmax(1) == expected).double().mean()), -cross_entropy(scores, expected).item()))
        if len(rows) - rows.index(max(rows)) > 4:
            break
    return max(rows)[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_accuracy_of_each_layer_is_that_of_scikit_learn(name: str, tmp_path: Path) -> None:
    """Each layer, and all together, with the regularisation that is best on validation; up to one sample."""
    fitted, rows, validation = probed(name, [1, 3], tmp_path)
    accuracies = reported(fitted)
    model = tiny(name)[0]
    parts = {block: (pooled(model, name, block, rows), pooled(model, name, block, validation)) for block in (1, 3)}
    joined = tuple(torch.cat([parts[block][side] for block in (1, 3)], 1) for side in (0, 1))
    assert accuracies.keys() == {"1", "3", "1 + 3"}
    for layers, (seen, held_out) in {"1": parts[1], "3": parts[3], "1 + 3": joined}.items():
        expected = best_accuracy(seen, rows.labels, held_out, validation.labels)
        assert accuracies[layers] == pytest.approx(expected, abs=1 / len(validation) + 1e-4)


def test_reports_do_not_change_the_head(tmp_path: Path) -> None:
    plain, *_ = probed("vit", [], tmp_path)
    with_reports, *_ = probed("vit", [2], tmp_path, probe="knn")
    assert not plain.notes
    assert len(with_reports.notes) == 2
    weights = [fitted.model.get_parameter("classifier.weight") for fitted in (plain, with_reports)]
    assert torch.equal(*weights)


class F1First(Classes):
    """Classes with another main metric."""

    main_metric: ClassVar[str] = "f1_macro"


def test_the_main_metric_of_the_target_is_reported(tmp_path: Path) -> None:
    """Also if the regularisation is selected by another metric."""
    model, groups, _ = tiny("vit")
    config = settings(cache_frozen="on", cache_dir=str(tmp_path), metric_for_best_model="loss")
    sentences: list[str] = []
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, Rows(40), Rows(20, seed=1), 4, target=F1First(TARGET.label_names))
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        probe_layers(model, groups, [2], passes, options, sentences.append)
    (sentence,) = sentences
    assert re.fullmatch(r"Probe of layer 2 of 3: validation macro F1 [\d.]+, loss [\d.]+\.", sentence)


def test_a_second_report_needs_no_forward_pass(tmp_path: Path) -> None:
    """The features of earlier layers are kept, too."""
    first, *_ = probed("vit", [1, 2], tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    second, *_ = probed("vit", [1, 2], tmp_path)
    assert first.notes == second.notes
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files


@pytest.mark.parametrize("chunk", [7, 2048])
def test_nearest_neighbours_are_scikit_learns(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cosine, the best of 1, 5 and 20, whatever the chunks on disk."""
    monkeypatch.setattr("hf_transfer.frozen.store.CHUNK_SAMPLES", chunk)
    model, *_ = tiny("vit")
    rows, validation = Rows(60), Rows(40, seed=1)
    rows.labels[::2] = rows.labels[::2].roll(1)
    sentences: list[str] = []
    config = settings(strategy="linear_probe", probe="knn", cache_frozen="on", cache_dir=str(tmp_path))
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows, validation, 4)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        solve_head(model, "classifier", passes, options, sentences.append)
    seen, labels = features(model, "vit", rows)
    held_out, expected = features(model, "vit", validation)
    scores = [
        KNeighborsClassifier(count, metric="cosine", algorithm="brute").fit(seen, labels).score(held_out, expected)
        for count in (1, 5, 20)
    ]
    (sentence,) = sentences
    match = re.fullmatch(r"Nearest neighbours: validation accuracy ([\d.]+) by a vote of (\d+); not saved\.", sentence)
    assert match is not None
    assert int(match[2]) == (1, 5, 20)[int(np.argmax(scores))]
    assert float(match[1]) == pytest.approx(max(scores), abs=1e-4)
