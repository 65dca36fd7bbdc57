"""The results of a run: one typed object that reads and writes `results.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from hf_transfer.data.complete_files import put
from hf_transfer.data.splits import Splits, shown_count
from hf_transfer.errors import user_error
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.reporting import Table
from hf_transfer.targets.table import TARGETS
from hf_transfer.targets.target import Constant, Interval, Metrics, Target, Values

RESULTS_FILE = "results.json"
SCHEMA = 2
# The figures of whole samples, where each part of a sample is also evaluated alone.
WHOLE, PART = "both", "{}_only"


class Baseline(NamedTuple):
    """How good an answer is that is the same for every sample; a model must beat it.

    Attributes:
        name: what it answers, for tables ("always the most frequent class").
        metrics: of this answer, on the test split.
    """

    name: str
    metrics: Metrics


@dataclass(frozen=True)
class Scores:
    """How good a model is on the samples of a split, or on one part of each.

    Attributes:
        metrics: by name, with `loss`.
        intervals: 95 % intervals by metric.
        samples: how many were evaluated.
        masked: how many were not: they cannot be read, or lack the part.
    """

    metrics: Metrics
    intervals: dict[str, Interval]
    samples: int
    masked: int = 0

    @property
    def shown_samples(self) -> str:
        """The number of samples for people: "120", or "119 of 120" where one of them is masked."""
        return shown_count(self.samples + self.masked, self.masked)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What came out of a run.

    Attributes:
        schema: version of the form of this file.
        recipe: its name.
        strategy: what was trained; "evaluate_only", if nothing was.
        problem_type: the name of the target.
        predicts: what is predicted, in two words ("10 classes").
        model_name_or_path: what the model was made from.
        names: the settings that name a model or a data set on the Hub, with their values.
        dataset_name: the data.
        commits: by the setting that names something on the Hub, the commit; None where the Hub did not answer.
        languages: of the data, as its card names them.
        seed: of the run.
        labels: what each output of the model stands for.
        parameters: how many there are in `total`, and how many were `trainable`.
        scores: by split; for samples of several parts also "test image_only" and the like.
        baseline: an answer that is the same for every sample, on the test split.
        samples: how many count in each split: masked samples are not among them.
        masked: how many are masked in each split.
        tables: of the test split.
        best_epoch: counted from 1; 0, if nothing was trained.
        soup: the epochs whose weights were averaged, counted from 1.
        history: a row of figures for each epoch.
        resumed_at_steps: optimizer steps at which an interrupted run was resumed.
        notes: sentences on data, model and results.
        frozen_store: sentences on the stored activations of frozen layers.
        copies_of_training: for validation and test, how many samples have an exact copy in training.
        seconds: `total`, in `train` and for `frozen` layers.
        peak_memory_bytes: of the `host` and of the `device`.
        threads: of each process.
        processes: of the run.
        versions: of what the figures depend on.
        finished: when the run ended, in ISO 8601; empty in results of earlier versions.
        inputs: by setting, what is known of the local files that the run has read: see `inputs.fingerprint`.
        auto: how the strategy was chosen, as in `AutoRecord`; empty, if it was given.
    """

    schema: int = SCHEMA
    recipe: str
    strategy: str
    problem_type: str
    predicts: str
    model_name_or_path: str
    names: dict[str, str]
    dataset_name: str
    commits: dict[str, str | None]
    languages: list[str]
    seed: int
    labels: list[str]
    parameters: dict[str, int]
    scores: dict[str, Scores]
    baseline: Baseline | None = None
    samples: dict[str, int]
    masked: dict[str, int]
    tables: list[Table]
    best_epoch: int
    soup: list[int]
    history: list[Metrics]
    resumed_at_steps: list[int]
    notes: list[str]
    frozen_store: list[str]
    copies_of_training: dict[str, int]
    seconds: dict[str, float]
    peak_memory_bytes: dict[str, int]
    threads: int
    processes: int
    versions: dict[str, str]
    finished: str = ""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    auto: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> type[Target]:
        """What the model predicts: metrics and sentences for reports."""
        return TARGETS[self.problem_type]

    @property
    def test(self) -> Scores:
        """The scores of the test split: of whole samples."""
        return self.scores["test"]

    @property
    def shown_samples(self) -> dict[str, str]:
        """The number of samples of each split for people: see `Scores.shown_samples`."""
        return {split: shown_count(n + self.masked[split], self.masked[split]) for split, n in self.samples.items()}

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics by split; for samples of several parts `test` has those of `both` and of each part alone."""
        divided = {name.split(" ")[0] for name in self.scores if " " in name}
        metrics: dict[str, Any] = {}
        for name, scores in self.scores.items():
            split, _, part = name.partition(" ")
            if split in divided:
                metrics.setdefault(split, {})[part or WHOLE] = {**scores.metrics, "samples": scores.samples}
            else:
                metrics[split] = scores.metrics
        return metrics

    def write(self, folder: Path) -> None:
        """Write `results.json`, whole or not at all: it marks a finished run."""
        values = {name: getattr(self, name) for name in _plain_fields(type(self))}
        tables = {one.key: list(one.rows) for one in self.tables}
        headings = {one.key: {"title": one.title, "columns": one.columns, "titles": one.titles} for one in self.tables}
        intervals = {name: scores.intervals for name, scores in self.scores.items()}
        baseline = self.baseline and self.baseline._asdict()
        content = {
            **values,
            "baseline": baseline,
            "metrics": self.metrics,
            "intervals": intervals,
            **tables,
            "tables": headings,
        }
        put(folder / RESULTS_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The results of a finished run, also of one of an earlier version.

        Raises:
            UserError: there are none, they cannot be read, or a later version wrote them.
        """
        path = folder / RESULTS_FILE
        try:
            content = dict(json.loads(path.read_text(encoding="utf-8")))
            if (schema := int(content.get("schema", 1))) > SCHEMA:
                raise user_error(
                    expected=f"results that this version can read (schema {SCHEMA})",
                    found=f"schema {schema} in {path}",
                    do="update hf-transfer-learning",
                )
            return cls._from_json(content if schema == SCHEMA else _of_schema_1(content))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise user_error(
                expected=f"the results of a finished run in {path}",
                found=f"{type(error).__name__}: {error}",
                do="name the --output_dir of a run, and finish the run first: the same command resumes it",
            ) from error

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> Self:
        scores = {}
        for name, intervals in content["intervals"].items():
            split, _, part = name.partition(" ")
            metrics = content["metrics"][split]
            figures = dict(metrics[part or WHOLE] if WHOLE in metrics else metrics)
            samples = int(figures.pop("samples", content["samples"][split]))
            masked = content["samples"][split] + content["masked"][split] - samples
            pairs = {metric: (low, high) for metric, (low, high) in intervals.items()}
            scores[name] = Scores(figures, pairs, samples, masked)
        tables = [
            Table(key, form["title"], tuple(form["columns"]), tuple(form["titles"]), content[key])
            for key, form in content["tables"].items()
        ]
        baseline = content.get("baseline") and Baseline(**content["baseline"])
        plain = {name: content[name] for name in _plain_fields(cls) if name in content}
        return cls(**plain, scores=scores, tables=tables, baseline=baseline)


def baseline_of(splits: Splits, test: Predictions) -> Baseline:
    """What a model must beat on test: from the labels of training; without any, from those on which it is judged."""
    train, target = splits.train, splits.target
    if len(train):
        return judged(target.constant(train.targets[train.counted]), test.targets)
    baseline = judged(target.constant(test.targets), test.targets)
    return baseline._replace(name=f"{baseline.name} of the judged samples themselves")


def judged(constant: Constant, targets: Values) -> Baseline:
    """How good an answer is that is the same for all samples of a split."""
    outputs = constant.outputs.expand(len(targets), -1)
    return Baseline(constant.name, constant.target.evaluate(outputs, targets))


def _plain_fields(results: type[Results]) -> list[str]:
    """The fields that stand in the file as they are."""
    return [one.name for one in fields(results) if one.name not in ("scores", "tables", "baseline")]


def _of_schema_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Results of version 0.1, which counted masked samples among those of a split."""
    samples = {split: count - content["masked"][split] for split, count in content["samples"].items()}
    classes = {"title": "Classes (test)", "columns": ("label", "precision", "recall", "f1", "samples")}
    confusions = {"title": "Most confused (test)", "columns": ("true", "predicted", "samples")}
    return {
        **content,
        "schema": SCHEMA,
        "problem_type": "single_label_classification",
        "predicts": f"{len(content['labels'])} classes",
        "samples": samples,
        "copies_of_training": content["duplicates_of_training"],
        "tables": {
            "classes": {**classes, "titles": ("class", "precision", "recall", "F1", "samples")},
            **({"confusions": {**confusions, "titles": confusions["columns"]}} if content["confusions"] else {}),
        },
    }
