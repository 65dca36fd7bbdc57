"""What is known of a pretrained model and some data before anything is trained."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np

from hf_transfer.advice.costs import Costs, seconds_of_a_row, seconds_of_strategies
from hf_transfer.advice.probes import ConstantAnswer, Difference, FreshWeights, JudgedRows, LearningCurve, Probe
from hf_transfer.advice.probing import probed_model, why_no_head_is_solved
from hf_transfer.advice.scoring import frozen_run, solving, training_alone
from hf_transfer.data.complete_files import put
from hf_transfer.data.folds import NoFoldsError
from hf_transfer.data.splits import Splits
from hf_transfer.errors import user_error
from hf_transfer.models.dropout import suits_rdrop
from hf_transfer.models.taps import count_blocks
from hf_transfer.models.towers import groups_of, towers_of
from hf_transfer.run import Run
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import regularisation_of
from hf_transfer.targets.shown_scores import shown_score
from hf_transfer.targets.target import OPTIONAL_SETTINGS

SCHEMA = 1
# Kinds are uneven if the rarest one has this many times fewer rows than the mean.
UNEVEN = 4


@dataclass(frozen=True)
class Evidence:
    """What one frozen pass over training rows says of a model and some data. It never contains anything of test.

    Attributes:
        model: its name.
        predicts: what is predicted, in two words.
        score_title: what scores are called.
        rows: of training.
        kind: what rows are counted by: class, label or range of values.
        kinds: how many of these there are; a row of several labels counts for its rarest, and of numbers there are ten
            ranges where rows suffice.
        rarest: how many rows the rarest of these has.
        blocks: of the model; of two towers, of the smaller one.
        scores_are_errors: whether scores are errors with a minus; `shown` takes it away.
        probes: heads on several features, first on what the model's own head reads, of two towers both pooled vectors;
            none where no head can be solved.
        why_no_probes: why there are none, in a part of a sentence; empty if there are some.
        best: the features with the best head; empty if there are no probes.
        judged: the scores of the best head by row; None: there are no probes.
        constant: an answer that is the same for all rows, on the same rows; None: there are no probes.
        neighbours: the score of a vote of the nearest rows, on the same features; None: it is not defined.
        curve: the best head on fewer rows; None: there are no probes.
        fresh_weights: the same probe without pretrained weights; None: it was not asked for.
        has_our_head: whether an adapter must be merged; see `AnyCheckpoint.has_our_head`.
        scaled_if_solved: see `AnyCheckpoint.scaled_if_solved`.
        costs: of a row.
        seconds: how long each strategy takes, by name.
        unsuitable: what the other strategies lack in this model, by name.
    """

    model: str
    predicts: str
    score_title: str
    rows: int
    kind: str
    kinds: int
    rarest: int
    blocks: int
    costs: Costs
    seconds: Mapping[str, float]
    unsuitable: Mapping[str, str]
    scores_are_errors: bool = False
    probes: tuple[Probe, ...] = ()
    why_no_probes: str = ""
    best: str = ""
    judged: JudgedRows | None = None
    constant: ConstantAnswer | None = None
    neighbours: float | None = None
    curve: LearningCurve | None = None
    fresh_weights: FreshWeights | None = None
    has_our_head: bool = False
    scaled_if_solved: str | None = None

    @property
    def rows_per_kind(self) -> float:
        """Rows of training divided by the kinds: the rows per class; of numbers, a tenth of the rows."""
        return self.rows / self.kinds

    @property
    def is_uneven(self) -> bool:
        """Whether the rarest kind has so few rows that the mean says nothing of it."""
        return self.rarest * UNEVEN < self.rows_per_kind

    @property
    def head(self) -> str:
        """The features that the model's own head reads, by the names of `--taps`; empty if there are no probes."""
        return self.probes[0].features if self.probes else ""

    def probe(self, features: str) -> Probe | None:
        """The head on these features."""
        return next((one for one in self.probes if one.features == features), None)

    @property
    def deficit_of_head(self) -> Difference | None:
        """How much better the best head is than one on what enters the model's own; None: it is the best one."""
        best = self.probe(self.best)
        return None if best is None else best.over_head

    @property
    def best_single(self) -> Probe | None:
        """The best head that reads a single place."""
        single = [one for one in self.probes if len(one.taps) == 1]
        return max(single, key=lambda one: one.score, default=None)

    def shown(self, score: float) -> float:
        """A score as people read it."""
        return shown_score(score, are_errors=self.scores_are_errors)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `as_json` wrote."""
        values = {name: value for name, value in content.items() if name != "schema"}
        values["costs"] = Costs(**values["costs"])
        values["probes"] = tuple(Probe.from_json(one) for one in values["probes"])
        parts: dict[str, Any] = {
            "judged": JudgedRows, "constant": ConstantAnswer, "curve": LearningCurve, "fresh_weights": FreshWeights,
        }  # fmt: skip
        for name, kind in parts.items():
            values[name] = None if values[name] is None else kind.from_json(values[name])
        return cls(**values)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        put(path, (json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n").encode())


def gather_evidence(
    config: RunConfig, data: datasets.DatasetDict | None = None, *, with_fresh_weights: bool = False
) -> Evidence:
    """What one frozen pass over the training rows says; a later run with the same cache finds the features there.

    Where a head cannot be solved there are no probes: of a model whose outputs several layers compute, or a target
    without a solver. Nor are there where it cannot be judged, as on one row of each class. Then only rows and times are
    known.

    Args:
        config: the settings of a run with any strategy.
        data: a data set in memory; None: what the settings name.
        with_fresh_weights: whether the same architecture with random weights is scored, too: one more pass over at
            most 1,000 rows.

    Raises:
        UserError: whatever a run would stop at before training.
    """
    if not config.trains():
        raise user_error(expected="a run that trains", found="--evaluate_only", do="leave --evaluate_only out")
    sizes: dict[str, int] = {}
    rows_of_kinds: list[int] = []

    def alone(splits: Splits) -> Splits:
        sizes.update({name: len(getattr(splits, name)) for name in ("train", "validation")})
        strata = splits.target.strata(splits.train.targets[splits.train.counted])
        rows_of_kinds.extend(np.unique(strata, return_counts=True)[1].tolist())
        return training_alone(splits, config.training.seed)

    with frozen_run(_probing(config), data, alone) as run:
        _refuse_without_effect(config, run)
        why_no_probes, model = why_no_head_is_solved(run), None
        try:
            model = None if why_no_probes else probed_model(run, with_fresh_weights=with_fresh_weights)
        except NoFoldsError:
            why_no_probes = "no training row can be left out"
        forward, step = seconds_of_a_row(run, None if model is None else model.seconds)
        costs = Costs(
            forward, step, 0.0 if model is None else model.solving, sizes["train"], sizes["validation"],
            config.training.num_train_epochs, run.loaders.views, run.loaders.cycle,
            stores=config.store.cache_frozen != "off",
            repeats=suits_rdrop(run.prepared.model, run.splits.target),
        )  # fmt: skip
        groups = run.prepared.groups
        seconds, unsuitable = seconds_of_strategies(
            config, costs, run.prepared.model, groups, solves_heads=model is not None,
            deeper=run.checkpoint.is_read_at_depths,
        )  # fmt: skip
        return Evidence(
            run.checkpoint.name, run.splits.target.describe(), run.splits.target.score_title, sizes["train"],
            run.splits.target.divided_by.removeprefix("by "), len(rows_of_kinds), min(rows_of_kinds),
            min(count_blocks(groups_of(tower, groups)) for tower in towers_of(groups)), costs, seconds, unsuitable,
            why_no_probes=why_no_probes, has_our_head=run.checkpoint.has_our_head,
            scaled_if_solved=run.checkpoint.scaled_if_solved,
            scores_are_errors=run.splits.target.scores_are_errors, **({} if model is None else model.known),
        )  # fmt: skip


def _refuse_without_effect(config: RunConfig, run: Run) -> None:
    """Refuse what no training on these samples, or of this model, could have: a solved head does not read it.

    Args:
        config: the settings as they were given.
        run: a frozen run with them.
    """
    target = run.splits.target
    config.refuse(OPTIONAL_SETTINGS - target.supported_settings, f"the problem type {target.problem_type}")
    regularisation_of(config, run.modality, run.prepared.model, target, len(run.splits.train))


def _probing(config: RunConfig) -> RunConfig:
    """The settings of a run that solves a head on the same rows of the same model, and publishes nothing.

    What a training recomputes is kept: a model that cannot is refused once, and the time of a step is that of training.
    """
    changes: dict[str, Any] = {
        "report_to": ["none"], "push_to_hub": False, "push_space": False,
        "hub_model_id": None, "overwrite_output_dir": False, "resume_from_checkpoint": None,
    }  # fmt: skip
    recomputes = config.training.gradient_checkpointing
    return solving(config.replaced(**changes)).replaced(gradient_checkpointing=recomputes)
