"""One run, from settings to files. A recipe, every command and Python go through this one path."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_transfer.checkpoints.caches import usable_caches
from hf_transfer.data.batches import Loaders
from hf_transfer.data.checked import load_splits
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.judged import load_judged
from hf_transfer.data.splits import UNLABELLED, Splits
from hf_transfer.data.workers import explained_worker_failures
from hf_transfer.evaluation import further_metrics, inputs, run_folder
from hf_transfer.evaluation.parts import worth_of_parts
from hf_transfer.evaluation.prediction_table import write_predictions
from hf_transfer.evaluation.report import results_table, shown_again, write_report
from hf_transfer.evaluation.results import PART, Results, Scores
from hf_transfer.evaluation.row_file import write_rows
from hf_transfer.hub.publish import Published
from hf_transfer.hub.runs import prepare_to_publish, publish_run, push_run
from hf_transfer.modalities.modality import Modality, Regularisation, saved_description
from hf_transfer.modalities.table import modality_named
from hf_transfer.models.pretrained import AnyCheckpoint
from hf_transfer.models.towers import output_layers
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.choice import Prepared, choose_strategy, load_model, prepare_model
from hf_transfer.strategies.freezing import Strategy, has_batch_norm
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.reporting import Table
from hf_transfer.targets.target import Baseline, Target, Values
from hf_transfer.training.batch_size import find_batch_sizes
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from hf_transfer.training.predictions import predict_split
from hf_transfer.training.progress import Fit
from hf_transfer.versions import versions


class Run:
    """The state of one run; made by `open_run`. Its steps are called in the order in which they stand here.

    Args:
        config: the settings.
        accelerator: devices and processes.
        data: a data set in memory; None: what the settings name.
        results: of a run that is finished already.

    Attributes:
        config: the settings; `--auto_batch_size` changes the batch sizes.
        accelerator: devices and processes.
        modality: what a sample is.
        results: what the run came to, once it is finished.
        notes: sentences on data and model.
    """

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, data: datasets.DatasetDict | None = None,
        results: Results | None = None,
    ) -> None:  # fmt: skip
        self.config, self.accelerator, self._data, self.results = config, accelerator, data, results
        self.modality: Modality[Any] = modality_named(config.recipe)
        self.notes: list[str] = []
        self._started = time.perf_counter()
        self._was_finished = results is not None
        self._until_end = ExitStack()

    @property
    def is_finished(self) -> bool:
        """Whether `--output_dir` has the results of this run already, on all processes."""
        return self.results is not None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of a finished run, by split."""
        assert self.results is not None, "the run is not finished"
        return self.results.metrics

    def load_data(self) -> Splits:
        """Find the model's small files, then load, check and split the data: what can be wrong is found before weights.

        Raises:
            UserError: a model or data that cannot be used, or a result that could not be published.
        """
        config, modality = self.config, self.modality
        further_metrics.check(config.output.metrics)
        prepare_to_publish(config, self.accelerator)
        self.checkpoint: AnyCheckpoint = modality.checkpoint(config)
        saved = {} if config.trains() else saved_description(self.checkpoint.parts[0])
        self.preprocessing = modality.preprocessing(self.checkpoint, config, saved)
        self.modality = modality = modality.for_run(self.preprocessing, config)
        self._inputs = inputs.fingerprints(config) if self.accelerator.is_main_process else {}
        with self.accelerator.main_process_first():
            if config.trains():
                self.splits = load_splits(config, modality, self._data)
            else:
                (part,) = self.checkpoint.parts
                as_trained = modality.as_trained(config, self.preprocessing)
                kind = as_trained.data.problem_type or saved.get("problem_type")
                self.splits = load_judged(as_trained.replaced(problem_type=kind), modality, part.config, self._data)
        self._note(self.splits.describe())
        return self.splits

    def load_model(self) -> nn.Module:
        """Load the pretrained backbone with a new head; or a finished model, to evaluate it.

        Raises:
            UserError: the strategy does not suit the model, or the checkpoint is not complete.
        """
        config, target = self.config, self.splits.target
        if not config.trains():
            (part,) = self.checkpoint.parts
            self.model = run_folder.load_finished(part, target)
            self._note(self.preprocessing.adapt_to(self.model))
            return self.model
        self.strategy: Strategy = choose_strategy(config.strategy, larger_head=self.modality.larger_head)
        self._example = self.preprocessing.example()
        self._new_model = load_model(
            self.checkpoint, self.strategy, target, self._example, seed=config.training.seed,
            feature_layers=config.strategy.feature_layers,
            gradient_checkpointing=config.training.gradient_checkpointing,
        )  # fmt: skip
        self.model = self._new_model.model
        self._note(self.preprocessing.adapt_to(self.model))
        layers = output_layers(self.model, self._new_model.groups)
        target = target.for_head(has_bias=all(layer.bias is not None for layer in layers))
        target.start(layers, self.splits.train.targets[self.splits.train.counted])
        self.splits = replace(self.splits, target=target)
        return self.model

    def choose_what_learns(self) -> Loaders:
        """Make the model ready for its strategy, and batches of the data; of a finished model nothing learns.

        Raises:
            UserError: the settings ask for what this model cannot have.
        """
        config, target = self.config, self.splits.target
        if not config.trains():
            self.loaders = self._loaders(frozen_prefix=False)
            return self.loaders
        self.prepared: Prepared = prepare_model(
            self._new_model, self.strategy, self._example, seed=config.training.seed,
            epochs=config.training.num_train_epochs, cache_frozen=config.store.cache_frozen,
        )  # fmt: skip
        self.model = self.prepared.model
        if not has_batch_norm(self.model):
            config.refuse({"batch_norm_statistics"}, "a model without BatchNorm")
        self.regularisation: Regularisation = self.modality.regularisation(config, self.model, target)
        self.loaders = self._loaders(frozen_prefix=self.prepared.frozen_blocks)
        self._note([*self.prepared.notes, *self.regularisation.notes, *self.loaders.notes])
        return self.loaders

    def train(self) -> Fit:
        """Train as the strategy says, with Accelerate, and keep what was saved and read again; or train nothing.

        Raises:
            UserError: the folder cannot be used, memory or disk is full, or a loss is not finite.
            Interrupted: a signal asked the run to end; a checkpoint has been written.
        """
        needed = run_folder.size_of_model(self.model) if self.config.trains() else 0
        folder = self._until_end.enter_context(run_folder.open_run_folder(self.config, self.accelerator, needed))
        if self.accelerator.is_main_process:
            write_rows(folder, self.splits.rows_as_read)
        if not self.config.trains():
            self.fitted = Fit(self.model)
            return self.fitted
        prepared = self.prepared
        if self.config.training.auto_batch_size:
            self.config, note = find_batch_sizes(
                prepared, self.strategy, self.loaders, self.config, self.accelerator,
                twice=self.regularisation.rdrop_alpha > 0,
            )  # fmt: skip
            self._note([note])
            self.loaders = self._loaders(frozen_prefix=prepared.frozen_blocks)
        self.fitted = fit(
            prepared.model, self.strategy, prepared.groups, self.loaders, self.config, self.accelerator,
            self.regularisation,
        )  # fmt: skip
        target = self._finished_target()
        # From here on only what was saved counts: the figures are those of the files.
        self.model, finished = run_folder.save_and_load(
            self.fitted.model, self.preprocessing, self.modality.name,
            {**self.splits.columns, **self.config.data.read_with()}, target,
            self.checkpoint, self.config, self.accelerator,
        )  # fmt: skip
        self.splits, self.loaders = replace(self.splits, target=finished), replace(self.loaders, target=finished)
        return self.fitted

    def _finished_target(self) -> Target:
        """The target with what it takes from held-out predictions; the model's outputs become what users want."""
        target, fitted = self.splits.target, self.fitted
        if target.is_calibrated:
            outputs, targets = fitted.held_out_predictions() or self._validation()
            target = target.calibrated(outputs, targets)
            self._note(target.describe_calibration(len(targets)))
        target.finish(output_layers(fitted.model, self.prepared.groups))
        return target

    def _validation(self) -> tuple[Tensor, Values]:
        """Outputs of the trained model for validation, and the true values."""
        predictions = predict_split(self.fitted.model, self.loaders, "validation", self.accelerator)
        return predictions.outputs, predictions.targets

    def evaluate(self) -> dict[str, Predictions]:
        """Predict validation, test and samples without labels, and parts of each test sample alone, if it has parts."""
        accelerator = self.accelerator
        self.predictions = {
            split: predict_split(self.model, self.loaders, split, accelerator) for split in self.splits.judged()
        }
        if self.splits.unlabelled is not None:
            self.answers = predict_split(self.model, self.loaders, UNLABELLED, accelerator)
        self.parts = {
            part: predict_split(self.model, loaders, "test", accelerator)
            for part, loaders in self.modality.parts(self.loaders).items()
        }
        return self.predictions

    def write_report(self) -> Results | None:
        """Write `predictions.csv`, `report.md` and its pictures, and `results.json`; on the main process alone."""
        if not self.accelerator.is_main_process:
            return None
        test = self.predictions["test"]
        tables, pictures = test.target.details(test.outputs, test.targets)
        tables += further_metrics.table(self.config.output.metrics, test)
        self.results = self._results(tables)
        if self.splits.unlabelled is not None:
            write_predictions(Path(self.config.output.output_dir), self.answers, self.splits.unlabelled)
        write_report(Path(self.config.output.output_dir), self.results, pictures)
        return self.results

    def publish(self) -> None:
        """Print the results, write the model's card and, if it is wanted, publish model and demo.

        Raises:
            UserError: the Hub did not take it; the run is complete, and the command that is left is named.
        """
        if not self.accelerator.is_main_process or self.results is None:
            return
        print(results_table(self.results, self.config.output.output_dir))
        if self._was_finished:
            print(*shown_again(self.results, self.config), sep="\n")
        publish_run(self.config)

    def push_to_hub(self, repository: str, *, private: bool = True) -> Published:
        """Publish the model of a finished run with its card.

        Args:
            repository: OWNER/NAME.
            private: hide it from others.
        """
        return push_run(Path(self.config.output.output_dir), repository, private=private)

    def close(self) -> None:
        """Release the folder of the run."""
        self._until_end.close()

    def _loaders(self, *, frozen_prefix: bool) -> Loaders:
        loaders = self.modality.loaders(
            self.splits, self.preprocessing, self.config, self.accelerator, frozen_prefix=frozen_prefix
        )
        self._until_end.callback(loaders.close)
        return loaders

    def _note(self, sentences: list[str]) -> None:
        self.notes += sentences
        self.accelerator.print(*sentences, sep="\n")

    def _results(self, tables: Sequence[Table]) -> Results:
        config, splits, fitted, checkpoint = self.config, self.splits, self.fitted, self.checkpoint
        test = self.predictions["test"]
        judged = self.predictions | {f"test {PART.format(part)}": alone for part, alone in self.parts.items()}
        masked = {split: len(rows.unreadable) for split, rows in splits.labelled()}
        masked |= {split: predictions.masked for split, predictions in self.predictions.items()}
        return Results(
            recipe=config.recipe,
            strategy=" + ".join(config.strategy.names()) if config.trains() else "evaluate_only",
            problem_type=splits.target.problem_type,
            predicts=splits.target.describe(),
            model_name_or_path=checkpoint.name,
            names={name: str(config.flat()[name]) for name in checkpoint.commits},
            dataset_name=config.data.dataset_name,
            commits=self._commits(),
            languages=list(splits.languages),
            seed=config.training.seed,
            labels=splits.target.names,
            parameters={"total": count_parameters(self.model), "trainable": fitted.trainable},
            scores={
                name: Scores(predictions.metrics(), predictions.intervals(), len(predictions), predictions.masked)
                for name, predictions in judged.items()
            },
            baseline=self._baseline(test),
            samples={split: len(rows) - masked[split] for split, rows in splits.labelled()},
            masked=masked,
            tables=list(tables),
            best_epoch=fitted.best_epoch + 1,
            soup=[epoch + 1 for epoch in fitted.soup],
            history=fitted.history,
            resumed_at_steps=fitted.resumed,
            notes=[*self.notes, *worth_of_parts(test, self.parts)],
            frozen_store=fitted.notes,
            copies_of_training=splits.copies,
            seconds={
                "total": time.perf_counter() - self._started + fitted.earlier_seconds,
                "train": fitted.seconds,
                "frozen": fitted.frozen_seconds,
            },
            peak_memory_bytes=run_folder.peak_memory_bytes(),
            threads=torch.get_num_threads(),
            processes=int(os.environ.get("WORLD_SIZE", "1")),
            versions=versions(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=self._inputs,
        )

    def _baseline(self, test: Predictions) -> Baseline:
        """From the labels of training; without any, from those on which the model is judged."""
        train, target = self.splits.train, self.splits.target
        if len(train):
            return target.baseline(train.targets[train.counted], test.targets)
        baseline = target.baseline(test.targets, test.targets)
        return baseline._replace(name=f"{baseline.name} of the judged samples themselves")

    def _commits(self) -> dict[str, str | None]:
        """By the settings that name something on the Hub: the commit that was loaded; None where it did not answer."""
        loaded = dict(self.checkpoint.commits)
        if self._data is None:
            loaded["dataset_name"] = self.splits.commit
        return {name: commit for name, commit in loaded.items() if is_hub_id(str(self.config.flat()[name]))}


@contextmanager
def open_run(config: RunConfig, data: datasets.DatasetDict | None = None, *, ahead: bool = False) -> Iterator[Run]:
    """A run with devices, processes, precision and trackers; its folder is released at the end.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.
        ahead: only look at what the run would take: what is in `--output_dir` does not matter.

    Raises:
        UserError: the folder holds other files or another run, or the precision is not available on this machine.
    """
    with start_accelerator(config) as accelerator, usable_caches(config.store.cache_dir) as note:
        results = None if ahead else run_folder.results_or_start(config, accelerator)
        if note and results is None:
            accelerator.print(note)
        with closing(Run(config, accelerator, data, results)) as run, explained_worker_failures():
            yield run


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has, without the copies that peft keeps of what it has replaced."""
    return sum(value.numel() for name, value in model.named_parameters() if ".original_module." not in name)
