"""A new modality and a new target, made here: they train, are evaluated, reported and asked without another file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import numpy.typing as npt
import pandas
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

import hf_transfer
from hf_transfer.data.batches import (
    Batch,
    EpochSampler,
    InputMaker,
    LabelledInputs,
    LabelRows,
    Loaders,
    loaders_of,
)
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.splits import Split, Splits
from hf_transfer.errors import UserError
from hf_transfer.modalities.modality import LocatedSample, Modality, Preprocessing, Regularisation, Saved, Wanted
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.models.pretrained import AnyCheckpoint
from hf_transfer.settings.fields import Topic, setting
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.reporting import Metric
from hf_transfer.targets.table import TARGETS
from hf_transfer.targets.target import (
    OPTIONAL_SETTINGS,
    Constant,
    Interval,
    LabelColumns,
    LossOptions,
    LossSums,
    Metrics,
    Strata,
    Target,
    Values,
)

SIDE = 24


@dataclass(frozen=True)
class GreySettings(Topic):
    """Grey images in `.npy` files."""

    file_column_name: str = setting("Column with the paths of the .npy files.", "file")


@dataclass(frozen=True)
class GreyConfig(RunConfig):
    """The settings of a run on grey images."""

    recipe: ClassVar[str] = "grey"

    grey: GreySettings


class GreyPreprocessing(Preprocessing):
    """Grey values from 0 to 255 become three equal channels around 0."""

    def inputs(self, samples: Sequence[npt.NDArray[np.float32]]) -> Batch:
        pixels = torch.stack([torch.from_numpy(one) for one in samples]).float() / 127.5 - 1
        return {"pixel_values": pixels[:, None].expand(-1, 3, -1, -1).contiguous()}

    def example(self) -> Batch:
        return self.inputs([np.full((SIDE, SIDE), value, np.float32) for value in (0, 200)])

    def save(self, folder: Path) -> None:
        """There is nothing of transformers to save."""

    def description(self) -> dict[str, Any]:
        return {"grey": [0, 255]}


class GreyRows(Dataset[dict[str, Tensor]]):
    """Grey values, with target, mask and row number."""

    def __init__(self, split: Split) -> None:
        self.split, self._labels = split, LabelRows(split)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        path = self.split.dataset[int(self.split.rows[position])]["file"]
        return {"grey": torch.from_numpy(np.load(path)), **self._labels[position]}


class GreyInputs(InputMaker):
    """Grey values as the model takes them."""

    def __init__(self, preprocessing: GreyPreprocessing, splits: Splits) -> None:
        self.preprocessing, self.splits = preprocessing, splits

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        inputs = self.preprocessing.inputs([one.numpy() for one in batch.pop("grey")])
        return super().__call__(batch | inputs, device, split, epoch)

    def fingerprint(self, split: str, epoch: int | None) -> str:
        return f"{split} {self.splits.of(split).dataset._fingerprint} {self.splits.of(split).rows.tolist()}"


class GreyModality(Modality[GreyConfig]):
    """Grey images in `.npy` files that a table names."""

    name = "grey"
    config = GreyConfig
    samples = "grey images"
    usable = "files that exist"
    unusable = "that do not"
    kind = "A grey image"
    task = "image-classification"
    has_pipeline = False

    def suits(self, features: datasets.Features) -> bool:
        return "file" in features

    def select(self, loaded: datasets.DatasetDict, config: GreyConfig) -> Selected:
        column = config.grey.file_column_name
        files = {name: split.select_columns([column]) for name, split in loaded.items()}
        return Selected(files, {"file_column_name": column})

    def bad_rows(self, split: Split, config: GreyConfig) -> dict[int, str]:
        files = split.dataset["file"]
        return {row: "no such file" for row in split.rows.tolist() if not Path(files[row]).is_file()}

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        return {"validation": 0, "test": 0}

    def preprocessing(self, checkpoint: AnyCheckpoint, config: GreyConfig | None, saved: Saved) -> GreyPreprocessing:
        return GreyPreprocessing()

    def loaders(
        self, splits: Splits, preprocessing: GreyPreprocessing, config: GreyConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,
    ) -> Loaders:  # fmt: skip
        rows = {name: GreyRows(split) for name, split in splits.items()}
        orders = {"train": EpochSampler(len(splits.train), config.training.seed)}
        to_inputs = GreyInputs(preprocessing, splits)
        return loaders_of(rows, orders, config.training, 0, accelerator, target=splits.target, to_inputs=to_inputs)

    def sample_of(self, value: Any, saved: Any = None) -> npt.NDArray[np.float32]:
        return np.load(value) if isinstance(value, str | Path) else np.asarray(value, np.float32)

    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: Preprocessing) -> list[LocatedSample]:
        return [LocatedSample(path, None, self.sample_of(path)) for path in files]


@dataclass(frozen=True)
class Counts(Target):
    """A count for each sample, with Poisson loss: the model gives its logarithm."""

    problem_type: ClassVar[str] = "count"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mae", "MAE", lower_is_better=True),)
    main_metric: ClassVar[str] = "mae"
    score_words: ClassVar[str] = "of absolute error"

    @classmethod
    def recognises(cls, train: datasets.Dataset, columns: LabelColumns) -> str | None:
        return "whole numbers" if train.features[columns.only] == datasets.Value("int64") else None

    @classmethod
    def read(cls, splits: Mapping[str, datasets.Dataset], columns: LabelColumns) -> tuple[Self, dict[str, Values]]:
        column = columns.only
        return cls(), {name: np.asarray(split[column][:], dtype=np.float32) for name, split in splits.items()}

    @classmethod
    def of_model(cls, config: Any) -> Self:
        return cls()

    @property
    def names(self) -> list[str]:
        return ["count"]

    def check(self, values: Mapping[str, Values], *, splits_to_cut: int) -> None:
        assert all((counts >= 0).all() for counts in values.values())

    def strata(self, values: Values) -> Strata:
        return np.asarray(values > np.median(values), dtype=np.int64)

    def describe(self) -> str:
        return "counts"

    def model_settings(self) -> dict[str, Any]:
        return {"id2label": {0: "count"}, "label2id": {"count": 0}, "problem_type": "regression"}

    def weight(self, targets: Tensor, counted: Tensor, options: LossOptions) -> Tensor:
        return counted.sum()

    def loss(self, outputs: Tensor, targets: Tensor, counted: Tensor, options: LossOptions) -> LossSums:
        losses = torch.nn.functional.poisson_nll_loss(outputs[:, 0], targets, reduction="none")
        return LossSums((losses * counted).sum(), self.weight(targets, counted, options))

    def evaluate(self, outputs: Tensor, targets: Values, only: str | None = None) -> Metrics:
        everyone = torch.ones(len(targets), dtype=torch.bool)
        total, weight = self.loss(outputs, torch.from_numpy(targets), everyone, LossOptions())
        return {"mae": float(-self.sample_scores(outputs, targets).mean()), "loss": (total / weight).item()}

    def intervals(self, outputs: Tensor, targets: Values) -> dict[str, Interval]:
        errors = -self.sample_scores(outputs, targets)
        return {"mae": (float(errors.min()), float(errors.max()))}

    def sample_scores(self, outputs: Tensor, targets: Values) -> npt.NDArray[np.float64]:
        return -np.abs(outputs[:, 0].exp().numpy().astype(np.float64) - targets)

    def constant(self, values: Values) -> Constant:
        return Constant("always the mean", torch.full((1, 1), float(values.mean())).log(), self)

    def predicted(self, outputs: Tensor) -> Values:
        return outputs[:, 0].exp().numpy()

    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        return [[("count", count)] for count in outputs[:, 0].exp().tolist()]


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in a table for each of them."""
    monkeypatch.setitem(MODALITIES, "grey", GreyModality())
    monkeypatch.setitem(TARGETS, "count", Counts)


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    """Grey images with zero to three bright spots, and how many there are."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        count = number % 4
        grey = generator.uniform(0, 40, (SIDE, SIDE)).astype(np.float32)
        for top, left in ((2, 2), (2, 14), (14, 2))[:count]:
            grey[top : top + 8, left : left + 8] = 255
        np.save(tmp_path / f"{number}.npy", grey)
        rows.append({"file": str(tmp_path / f"{number}.npy"), "label": count})
    pandas.DataFrame(rows).to_json(tmp_path / "spots.jsonl", orient="records", lines=True)
    return tmp_path / "spots.jsonl"


def settings(data: Path, out: Path, *flags: str) -> GreyConfig:
    return parse(
        GreyConfig,
        [
            "--model_name_or_path=sample:vit-glyphs", f"--dataset_name={data}", f"--output_dir={out}",
            f"--cache_dir={out.parent / 'cache'}", "--num_train_epochs=4", "--per_device_train_batch_size=8",
            "--learning_rate=1e-3", *flags,
        ],
    )  # fmt: skip


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("strategy", ["full", "partial", "lp_ft"])
def test_a_new_modality_and_a_new_target_train_are_reported_and_asked(
    spots: Path, tmp_path: Path, strategy: str
) -> None:
    from hf_transfer.evaluation.results import Results
    from hf_transfer.whole_run import run_all_steps

    out = tmp_path / "out"
    run = run_all_steps(settings(spots, out, f"--strategy={strategy}"))
    results = Results.read(out)
    assert results == run.results
    assert results.problem_type == "count"
    assert results.history[-1]["mae"] < results.history[0]["mae"]
    # The epoch with the lowest error was kept.
    best = min(range(len(results.history)), key=lambda epoch: results.history[epoch]["mae"])
    assert results.best_epoch == best + 1
    assert results.metrics["validation"]["mae"] == pytest.approx(results.history[best]["mae"], rel=1e-5)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert f"| test | {results.samples['test']} | {results.test.metrics['mae']:.4f} |" in report

    saved = json.loads((out / "model/preprocessing.json").read_text(encoding="utf-8"))
    assert (saved["modality"], saved["problem_type"], saved["grey"]) == ("grey", "count", [0, 255])
    answers = hf_transfer.load(out)([tmp_path / "0.npy", tmp_path / "3.npy"])
    assert answers[0]["count"] < answers[1]["count"]


@pytest.mark.usefixtures("_known")
def test_a_finished_model_of_both_is_evaluated_again_with_the_same_figures(spots: Path, tmp_path: Path) -> None:
    from hf_transfer.whole_run import run_all_steps

    first = run_all_steps(settings(spots, tmp_path / "first", "--strategy=full"))
    rows = pandas.read_json(spots, lines=True).iloc[first.splits.test.rows]
    rows.to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    again = parse(
        GreyConfig,
        [
            f"--model_name_or_path={tmp_path / 'first/model'}", f"--dataset_name={tmp_path / 'test.jsonl'}",
            "--evaluate_only",
            f"--output_dir={tmp_path / 'again'}", f"--cache_dir={tmp_path / 'cache'}",
        ],
    )  # fmt: skip
    assert run_all_steps(again).metrics["test"] == first.metrics["test"]


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize(
    ("strategy", "flag", "reason"),
    [
        ("full", "--label_smoothing_factor=0.1", "the problem type count"),
        ("full", "--class_weights=balanced", "the problem type count"),
        ("lp_ft", "--probe=svm", "no solver"),
    ],
)
def test_a_setting_that_the_target_does_not_support_is_refused(
    spots: Path, tmp_path: Path, strategy: str, flag: str, reason: str
) -> None:
    from hf_transfer.whole_run import run_all_steps

    with pytest.raises(UserError, match=flag.split("=")[0]) as caught:
        run_all_steps(settings(spots, tmp_path / "out", f"--strategy={strategy}", flag))
    assert reason in caught.value.found


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("flags", [[], ["--mixup_alpha=0.2"]])
def test_mixup_is_refused_for_counts_of_images_and_not_needed(tmp_path: Path, flags: list[str]) -> None:
    from hf_transfer.modalities.image import ImageModality
    from hf_transfer.settings.run import VisionConfig

    config = parse(VisionConfig, ["--model_name_or_path=m", "--dataset_name=d", f"--output_dir={tmp_path}", *flags])
    unsupported = OPTIONAL_SETTINGS - Counts.supported_settings
    if flags:
        with pytest.raises(UserError, match="--mixup_alpha"):
            config.refuse(unsupported, "the problem type count")
    else:
        config.refuse(unsupported, "the problem type count")
        assert ImageModality().regularisation(config, torch.nn.Dropout(), Counts(), 12) == Regularisation()


def test_r_drop_is_off_by_default_for_a_target_without_agreement(tmp_path: Path) -> None:
    from hf_transfer.modalities.text import TextModality
    from hf_transfer.settings.run import TextConfig

    flags = ["--model_name_or_path=m", "--dataset_name=d", f"--output_dir={tmp_path}", "--strategy=full"]
    config = parse(TextConfig, flags)
    weights = [
        TextModality().regularisation(config, torch.nn.Dropout(), target, 12).rdrop_alpha
        for target in (Counts(), Classes(("a", "b")))
    ]
    assert weights == [0.0, 1.0]
