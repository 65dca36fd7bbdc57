"""Trains the strategies that may suit some data best, one after the other, and chooses among them."""

import gc
import io
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np

from hf_transfer.advice.decision import Compared, choose, corrected_estimate
from hf_transfer.advice.decision_folder import begin, locked_if_used, new_record, record_before, settings_of_arm
from hf_transfer.advice.plan import arm_with_pooling, is_enough, next_arm, plan_of, planned_count, with_other_rates
from hf_transfer.data.checked import units_of_rows
from hf_transfer.data.complete_files import put
from hf_transfer.data.splits import part_of
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation import run_folder
from hf_transfer.evaluation.auto_record import (
    AutoRecord,
    TriedArm,
    arm_folder,
    remove_arms,
)  # fmt: skip
from hf_transfer.frozen.recording import Passes
from hf_transfer.hub.runs import prepare_to_publish
from hf_transfer.interruption import before_anything_is_kept
from hf_transfer.look_ahead import in_words
from hf_transfer.run import open_run
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.intervals import mean_and_error
from hf_transfer.training.devices import connect_once, start_accelerator
from hf_transfer.training.launching import ONLY_PROCESS, Processes, main_process_first
from hf_transfer.training.predictions import predict_judged
from hf_transfer.training.rates import peak_rates
from hf_transfer.training.resuming import checkpoints_of

SCORES_FILE = "validation_scores.json"
Value = TypeVar("Value")
Config = TypeVar("Config", bound=RunConfig)


class ArmScores(NamedTuple):
    """How good the answers of a trained arm are, for validation rows.

    Attributes:
        rows: their numbers.
        units: those of one unit belong together.
        scores: higher is better.
    """

    rows: list[int]
    units: list[int]
    scores: list[float]


def decide(config: Config, data: datasets.DatasetDict | None = None) -> Config:
    """The settings of the strategy that is chosen: see `auto.decided`."""
    processes = connect_once()
    out = Path(config.output.output_dir)
    with _record(config, processes) as record:
        if not record.chosen:
            prepare_to_publish(config, processes)
            with start_accelerator(config):
                # A wrong tracker, precision or compiler is known before the arms, which leave it out or fail by it.
                pass
            race = _Race(config, data, processes, record)
            record = race.run() if config.chooses_strategy() else race.choose_pooling()
        final = _final_settings(config, record, processes)
        if processes.is_main_process and not final.output.overwrite_output_dir and not record.is_finished(out):
            run_folder.save_settings(out, final)
            if config.chooses_strategy():
                print(f"\n{record.chosen} is finished now: judged on validation and test, and written to {out}.")
    return final


def shared(processes: Processes, value: Value) -> Value:
    """What the main process has, on all of them."""
    if processes is ONLY_PROCESS:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Value] = broadcast_object_list([value])
    return values[0]


@contextmanager
def _record(config: RunConfig, processes: Processes) -> Iterator[AutoRecord]:
    """The record of a decision, which is begun if there is none; meanwhile the folder is locked."""
    out, record = Path(config.output.output_dir), None
    with ExitStack() as held:
        with main_process_first(processes):
            if processes.is_main_process:
                record = record_before(config)
                if record is None or not record.is_finished(out):
                    try:
                        held.enter_context(locked_if_used(out))
                        record = record or new_record(config)
                    except OSError as error:
                        raise run_folder.not_writable(error) from error
        shown = shared(processes, record)
        assert shown is not None
        yield shown


def _final_settings(config: Config, record: AutoRecord, processes: Processes) -> Config:
    """The settings of the run that finishes the chosen arm; it has nothing left to train."""
    out = Path(config.output.output_dir)
    values: dict[str, Any] = {"no_resume": False, "overwrite_output_dir": False, "resume_from_checkpoint": None}
    if processes.is_main_process and not record.is_finished(out):
        folder = arm_folder(out, record.chosen)
        arm = settings_of_arm(config, record.chosen_arm.settings, output_dir=str(folder))
        newest = checkpoints_of(arm).folders()[-1:] if _trains_stepwise(arm, record) else []
        values["resume_from_checkpoint"] = str(newest[0]) if newest else None
        # As soon as it has a checkpoint of its own it resumes, like any run.
        has_begun = run_folder.earlier_run(out).aside.exists() and bool(checkpoints_of(config).folders())
        values["overwrite_output_dir"] = record.replaces and not has_begun
    return settings_of_arm(config, record.chosen_arm.settings, **shared(processes, values))


class _Race:
    """One decision on its way.

    Args:
        config: the settings as they were given.
        data: a data set in memory; None: what the settings name.
        processes: of the run.
        record: how far an earlier process has come.
    """

    def __init__(
        self, config: RunConfig, data: datasets.DatasetDict | None, processes: Processes, record: AutoRecord
    ) -> None:
        self._config, self._data, self._processes, self._record = config, data, processes, record
        self._out = Path(config.output.output_dir)

    def run(self) -> AutoRecord:
        """Try what is planned, and choose.

        Raises:
            UserError: nothing could be trained.
        """
        if not self._record.arms:
            self._plan()
        # What could not be trained may have been put right since.
        again = (replace(arm, state="planned", note="") for arm in self._record.arms if arm.state == "failed")
        for arm in again:
            self._record = self._record.with_arm(arm)
        while name := self._next():
            self._try(next(arm for arm in self._record.arms if arm.name == name))
        self._choose()
        return self._record

    def choose_pooling(self) -> AutoRecord:
        """For a strategy that was given: what the head of a text model reads, where the settings leave it open."""
        self._processes.print("Pooling auto: what the frozen model tells of these data ...")
        arm, sentence = arm_with_pooling(self._config, self._data)
        self._begin(replace(self._record, arms=(arm,), chosen=arm.name, sentence=sentence))
        self._processes.print(sentence)
        return self._record

    def _begin(self, record: AutoRecord) -> None:
        """Nothing is written earlier: an error in settings or data leaves no decision that others differ from."""
        self._record = shared(self._processes, record)
        if self._processes.is_main_process:
            begin(self._config, self._record)

    def _keep(self, record: AutoRecord) -> None:
        """The record of the main process is that of all."""
        self._record = shared(self._processes, record)
        if self._processes.is_main_process:
            self._record.write(self._out)

    def _plan(self) -> None:
        started = time.perf_counter()
        self._processes.print("Strategy auto: what the frozen model tells of these data ...")
        with before_anything_is_kept():
            plan = plan_of(self._config, self._data)
        arms = tuple(
            TriedArm(name=arm.name, settings=arm.settings, reason=arm.reason, estimated_seconds=arm.seconds)
            for arm in plan.arms
        )
        self._begin(replace(
            self._record, evidence=plan.evidence, score_title=plan.score_title,
            scores_are_errors=plan.scores_are_errors, arms=arms,
            rejected={one.strategy: one.reason for one in plan.rejected}, enough=plan.enough,
            seconds=time.perf_counter() - started,
        ))  # fmt: skip
        if plan.misses:
            self._processes.print(plan.misses)
        if is_enough(self._record, self._config):
            self._processes.print(f"{plan.enough[0].upper()}{plan.enough[1:]}: nothing is trained beside it.")

    def _next(self) -> str:
        record, name = next_arm(self._record, self._config)
        if not name and any(arm.state == "trained" for arm in record.arms) and self._processes.is_main_process:
            record, name = next_arm(with_other_rates(record, self._leader(record), self._config), self._config)
        self._keep(record)
        return shared(self._processes, name)

    def _try(self, arm: TriedArm) -> None:
        started = time.perf_counter()
        number = 1 + sum(one.state in ("trained", "failed") for one in self._record.arms)
        count = max(number, planned_count(self._record, self._config))
        seconds = in_words(arm.estimated_seconds)
        self._processes.print(f"Trying {number} of {count}: {arm.name}, about {seconds} ... {arm.reason}")
        try:
            outcome = self._trained(arm)
        except UserError as error:
            # Its whole text, but not the error: that holds the model, by the frames of its traceback.
            outcome = replace(arm, state="failed", note=str(error))
        gc.collect()
        taken = time.perf_counter() - started
        self._keep(replace(self._record.with_arm(outcome), seconds=self._record.seconds + max(taken, outcome.seconds)))
        if outcome.score is None:
            shown = f"cannot be trained: {' '.join(outcome.note.split())}"
        else:
            score = f"{self._record.score_title} {self._record.shown(outcome.score):.4f}"
            shown = f"{score} on validation rows, {in_words(taken)}"
        self._processes.print(f"{arm.name}: {shown}")

    def _trained(self, arm: TriedArm) -> TriedArm:
        """The arm after its training; the test split is not predicted."""
        started, folder = time.perf_counter(), arm_folder(self._out, arm.name)
        config = settings_of_arm(
            self._config, arm.settings, output_dir=str(folder), report_to=["none"], push_to_hub=False,
            push_space=False, hub_model_id=None, overwrite_output_dir=False, no_resume=False,
            # The chosen one is handed over by a checkpoint.
            save_steps=self._config.checkpoints.save_steps or None,
        )  # fmt: skip
        with open_run(config, self._data) as run:
            # The run that follows prints its notes.
            with redirect_stdout(io.StringIO()):
                run.load_data()
                run.load_model()
                run.choose_what_learns()
            run.train(save_at_end=_trains_stepwise(config, self._record))
            # Of a solved head, from the features that it was solved on.
            passes = Passes.of(run.loaders, run.accelerator, run.config)
            predictions = predict_judged(run.model, ["validation"], run.fitted.solved_layer, passes)["validation"]
            validation = part_of(run.splits.validation, np.flatnonzero(run.splits.validation.counted))
            units = units_of_rows(validation, run.splits.groups, run.config, run.modality).of_rows
            assert predictions.index.tolist() == validation.rows.tolist()
            scores = predictions.sample_scores()
            if self._processes.is_main_process:
                content = ArmScores(validation.rows.tolist(), units.tolist(), scores.tolist())
                put(folder / SCORES_FILE, json.dumps(content._asdict()).encode())
            mean, error = mean_and_error(scores, units)
            rate = peak_rates(run.strategy, run.config.training)[0] if config.trains_stepwise() else None
            return replace(
                arm, state="trained", score=mean, standard_error=error, learning_rate=rate,
                seconds=time.perf_counter() - started + run.fitted.earlier_seconds,
            )  # fmt: skip

    def _compared(self, arms: list[TriedArm]) -> Compared:
        """On the main process: the scores of trained arms for the same rows."""
        each = [
            ArmScores(**json.loads((arm_folder(self._out, arm.name) / SCORES_FILE).read_text(encoding="utf-8")))
            for arm in arms
        ]
        assert all(one.rows == each[0].rows for one in each), "arms were judged on different rows"
        costs = [arm.estimated_seconds for arm in arms]
        return Compared.of([one.scores for one in each], np.array(each[0].units), costs)

    def _leader(self, record: AutoRecord) -> TriedArm:
        trained = [arm for arm in record.arms if arm.state == "trained"]
        return trained[choose(self._compared(trained))]

    def _choose(self) -> None:
        trained = [arm for arm in self._record.arms if arm.state == "trained"]
        if not trained:
            raise _nothing_trained(self._record)
        record = self._record
        if self._processes.is_main_process:
            compared = self._compared(trained)
            best = trained[choose(compared)]
            samples = int(compared.counts.sum())
            sentence = _why(best, trained, samples, record, record.enough if is_enough(record, self._config) else "")
            record = replace(record, chosen=best.name, sentence=sentence, samples=samples)
            # Of a single unit there is none, and without a choice no optimism.
            if len(trained) > 1 and not math.isnan((estimate := corrected_estimate(compared)).mean):
                record = replace(record, estimate=estimate.mean, interval=estimate.interval)
        self._keep(record)
        self._processes.print(self._record.sentence)
        if self._processes.is_main_process:
            remove_arms(self._out, but=self._record.chosen)


def _trains_stepwise(config: RunConfig, record: AutoRecord) -> bool:
    """Whether a training ends with a checkpoint; where no head can be solved, that of a probe does, too."""
    return config.trains_stepwise() or bool(record.evidence.get("why_no_probes"))


def _why(best: TriedArm, trained: list[TriedArm], samples: int, record: AutoRecord, enough: str) -> str:
    if len(trained) == 1:
        return f"Chosen: {best.name}, {f'since {enough}' if enough else 'the only one that was trained'}."
    scored = {arm.name: f"{arm.name} {record.shown(arm.score):.4f}" for arm in trained if arm.score is not None}
    others = ", ".join(text for name, text in scored.items() if name != best.name)
    highest = max(arm.score for arm in trained if arm.score is not None)
    reason = (
        "" if best.score == highest else "; nothing that takes longer is better by more than chance or half a point"
    )
    return f"Chosen: {scored[best.name]} against {others} on {samples:,} validation rows{reason}."


def _nothing_trained(record: AutoRecord) -> UserError:
    failed = [arm for arm in record.arms if arm.state == "failed"]
    if len({arm.note for arm in failed}) == 1:
        # The one reason, as of data that cannot be read.
        return UserError(failed[0].note)
    return user_error(
        expected="at least one strategy that can be trained",
        found="; ".join(f"{arm.name}: {' '.join(arm.note.split())}" for arm in failed),
        do="put right what these say, or name a --strategy",
    )
