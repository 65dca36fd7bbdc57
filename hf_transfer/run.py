"""One run, from settings to files. A recipe, every command and Python go through this one path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.evaluation import further_metrics, inputs, row_file, run_folder
from hf_transfer.evaluation.auto_record import decision_of
from hf_transfer.evaluation.report import results_table, shown_again, write_report
from hf_transfer.evaluation.results import PART, Results, Scores, baseline_of
from hf_transfer.host_memory import freed_memory_kept
from hf_transfer.hub.runs import loaded_commits, prepare_to_publish, publish_run, push_run
from hf_transfer.progress_bars import without_bars_in_logs
from hf_transfer.settings.run import RunConfig
from hf_transfer.training.launching import ONLY_PROCESS, Processes, main_process_first, may_be_one_of_several
from hf_transfer.versions import versions

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from torch import nn

    from hf_transfer.data.batches import Loaders
    from hf_transfer.data.splits import Splits
    from hf_transfer.hub.publish import Published
    from hf_transfer.modalities.modality import Modality, Regularisation
    from hf_transfer.models.pretrained import AnyCheckpoint
    from hf_transfer.strategies.choice import Prepared
    from hf_transfer.strategies.freezing import Strategy
    from hf_transfer.targets.predictions import Predictions
    from hf_transfer.targets.reporting import Table
    from hf_transfer.targets.target import Target
    from hf_transfer.training.progress import Fit


class Run:
    """The state of one run; made by `open_run`. Its steps are called in the order in which they stand here.

    A step imports what it needs: wrong data are found, and a finished run is shown, before torch is imported.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.

    Attributes:
        config: the settings; `--auto_batch_size` changes the batch sizes.
        results: what the run came to, once it is finished.
        notes: sentences on data and model.
    """

    def __init__(self, config: RunConfig, data: datasets.DatasetDict | None = None) -> None:
        self.config, self._data = config, data
        self.results: Results | None = None
        self.notes: list[str] = []
        self._started, self._was_finished = time.perf_counter(), False
        self._accelerator: Accelerator | None = None
        self._until_end = ExitStack()

    @property
    def accelerator(self) -> Accelerator:
        """Devices, processes, precision and trackers, started on first use and closed with the run.

        Raises:
            UserError: the precision or a tracker is not available on this machine.
        """
        if self._accelerator is None:
            from hf_transfer.training.devices import start_accelerator

            self._accelerator = self._until_end.enter_context(start_accelerator(self.config))
        return self._accelerator

    @property
    def processes(self) -> Processes:
        """The processes of the run; devices are not started for it where this is the only one."""
        several = self._accelerator is not None or may_be_one_of_several()
        return self.accelerator if several else ONLY_PROCESS

    @cached_property
    def modality(self) -> Modality[Any]:
        """What a sample is."""
        from hf_transfer.modalities.table import modality_named

        return modality_named(self.config.recipe)

    @property
    def is_finished(self) -> bool:
        """Whether `--output_dir` has the results of this run already, on all processes."""
        return self.results is not None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of a finished run, by split."""
        assert self.results is not None, "the run is not finished"
        return self.results.metrics

    def load_data(self, choose: Callable[[Splits], Splits] | None = None) -> Splits:
        """Find data and columns, then the model's small files, then check and split the data, all before any weights.

        Args:
            choose: makes splits of the samples that are used; a test split of the data is then not read. None: all.

        Raises:
            UserError: a model or data that cannot be used, or a result that could not be published.
        """
        from hf_transfer.data.checked import splits_of
        from hf_transfer.data.judged import load_judged
        from hf_transfer.modalities.modality import saved_description
        from hf_transfer.modalities.opening import open_inputs

        config, modality = self.config, self.modality
        further_metrics.check(config.output.metrics)
        prepare_to_publish(config, self.processes)
        if config.trains():
            with main_process_first(self.processes):
                opened = open_inputs(config, self._data)
        self.checkpoint: AnyCheckpoint = modality.checkpoint(config)
        saved = {} if config.trains() else saved_description(self.checkpoint.parts[0])
        self.preprocessing = modality.preprocessing(self.checkpoint, config, saved)
        if config.trains() and config.training.gradient_checkpointing:
            self.checkpoint.refuse_without_recomputing(self.preprocessing.example())
        self.modality = modality = modality.for_run(self.preprocessing, config)
        self._inputs = inputs.fingerprints(config) if self.accelerator.is_main_process else {}
        with main_process_first(self.accelerator):
            if config.trains():
                splits = splits_of(opened, config, modality, () if choose is None else ("test",))
                self.splits = splits if choose is None else choose(splits)
            else:
                (part,) = self.checkpoint.parts
                trained = modality.as_trained(config, self.preprocessing)
                trained = trained.replaced(problem_type=trained.data.problem_type or saved.get("problem_type"))
                self.splits = load_judged(trained, modality, part.config, self._data)
        self._note(self.splits.describe())
        return self.splits

    def load_model(self) -> nn.Module:
        """Load the pretrained backbone with a new head; or a finished model, to evaluate it.

        Raises:
            UserError: the strategy does not suit the model, or the checkpoint is not complete.
        """
        from hf_transfer.evaluation import saved_model
        from hf_transfer.models.towers import output_layers
        from hf_transfer.strategies.choice import choose_strategy, load_model

        config, target = self.config, self.splits.target
        if not config.trains():
            (part,) = self.checkpoint.parts
            self.model = saved_model.load_finished(part, target)
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
        from hf_transfer.strategies.choice import prepare_model, regularisation_of

        config, target = self.config, self.splits.target
        if not config.trains():
            self.loaders = self._loaders(frozen_prefix=False)
            return self.loaders
        self.prepared: Prepared = prepare_model(
            self._new_model, self.strategy, self._example, seed=config.training.seed,
            epochs=config.training.num_train_epochs, cache_frozen=config.store.cache_frozen,
        )  # fmt: skip
        self.model = self.prepared.model
        samples = len(self.splits.train)
        self.regularisation: Regularisation = regularisation_of(config, self.modality, self.model, target, samples)
        self.loaders = self._loaders(frozen_prefix=self.prepared.frozen_blocks)
        self._note([*self.prepared.notes, *self.regularisation.notes, *self.loaders.notes])
        return self.loaders

    def train(self, *, save_at_end: bool = False) -> Fit:
        """Train as the strategy says, with Accelerate, and keep what was saved and read again; or train nothing.

        Args:
            save_at_end: see `fit`.

        Raises:
            UserError: the folder cannot be used, memory or disk is full, or a loss is not finite.
            Interrupted: a signal asked the run to end; a checkpoint has been written.
        """
        from hf_transfer.evaluation import saved_model
        from hf_transfer.training.batch_size import find_batch_sizes
        from hf_transfer.training.loop import fit
        from hf_transfer.training.progress import Fit

        self._until_end.enter_context(freed_memory_kept(scarce=self.config.training.auto_batch_size))
        needed = saved_model.size_of_model(self.model) if self.config.trains() else 0
        folder = self._until_end.enter_context(run_folder.open_run_folder(self.config, self.accelerator, needed))
        if self.accelerator.is_main_process:
            row_file.write_rows(folder, self.splits.rows_as_read)
        if not self.config.trains():
            self.fitted = Fit(self.model)
            return self.fitted
        if self.config.training.auto_batch_size:
            self.config, note = find_batch_sizes(
                self.prepared, self.strategy, self.loaders, self.config, self.accelerator,
                twice=self.regularisation.rdrop_alpha > 0,
            )  # fmt: skip
            self._note([note])
            self.loaders = self._loaders(frozen_prefix=self.prepared.frozen_blocks)
        self.fitted = fit(
            self.prepared.model, self.strategy, self.prepared.groups, self.loaders, self.config, self.accelerator,
            self.regularisation, save_at_end=save_at_end,
        )  # fmt: skip
        target = self._finished_target()
        # From here on only what was saved counts: the figures are those of the files.
        self.model, finished = saved_model.save_and_load(
            self.fitted.model, self.preprocessing, self.modality.name,
            {**self.splits.columns, **self.config.data.read_with()}, target,
            self.checkpoint, self.config, self.accelerator,
        )  # fmt: skip
        self.splits, self.loaders = replace(self.splits, target=finished), replace(self.loaders, target=finished)
        return self.fitted

    def _finished_target(self) -> Target:
        """The target with what it takes from held-out predictions; the model's outputs become what users want."""
        from hf_transfer.models.towers import output_layers
        from hf_transfer.training.predictions import predict_split

        target, fitted = self.splits.target, self.fitted
        if target.is_calibrated:
            held_out = fitted.held_out_predictions()
            if held_out is None:
                validation = predict_split(fitted.model, self.loaders, "validation", self.accelerator)
                held_out = validation.outputs, validation.targets
            target = target.calibrated(*held_out)
            self._note(target.describe_calibration(len(held_out[1])))
        target.finish(output_layers(fitted.model, self.prepared.groups))
        return target

    def evaluate(self) -> dict[str, Predictions]:
        """Predict validation, test and samples without labels, and parts of each test sample alone, if it has parts."""
        from hf_transfer.data.splits import UNLABELLED
        from hf_transfer.frozen.recording import Passes
        from hf_transfer.training.predictions import predict_judged, predict_split

        passes = Passes.of(self.loaders, self.accelerator, self.config)
        self.predictions = predict_judged(self.model, self.splits.judged(), self.fitted.solved_layer, passes)
        if self.splits.unlabelled is not None:
            self.answers = predict_split(self.model, self.loaders, UNLABELLED, self.accelerator)
        self.parts = {
            part: predict_split(self.model, loaders, "test", self.accelerator)
            for part, loaders in self.modality.parts(self.loaders).items()
        }
        return self.predictions

    def write_report(self) -> Results | None:
        """Write `predictions.csv`, `report.md` and its pictures, and `results.json`; on the main process alone."""
        from hf_transfer.evaluation.prediction_table import write_predictions

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
        if not self.processes.is_main_process or self.results is None:
            return
        print(results_table(self.results, self.config.output.output_dir))
        if self._was_finished:
            print(*shown_again(self.results, self.config), sep="\n")
        publish_run(self.config)

    def push_to_hub(self, repository: str, *, private: bool = True) -> Published:
        """Publish the model of a finished run with its card as OWNER/NAME, hidden from others if it is private."""
        return push_run(Path(self.config.output.output_dir), repository, private=private)

    def close(self) -> None:
        """Release the folder of the run, and what its devices and trackers hold."""
        self._until_end.close()

    def _loaders(self, *, frozen_prefix: bool) -> Loaders:
        from hf_transfer.data.checked import with_units

        splits, config, modality = self.splits, self.config, self.modality
        loaders = modality.loaders(splits, self.preprocessing, config, self.accelerator, frozen_prefix=frozen_prefix)
        self._until_end.callback(loaders.close)
        return with_units(loaders, splits, config, modality)

    def _note(self, sentences: list[str]) -> None:
        self.notes += sentences
        self.accelerator.print(*sentences, sep="\n")

    def _results(self, tables: Sequence[Table]) -> Results:
        import torch

        from hf_transfer.evaluation import saved_model
        from hf_transfer.evaluation.parts import worth_of_parts

        config, splits, fitted, checkpoint = self.config, self.splits, self.fitted, self.checkpoint
        total = time.perf_counter() - self._started + fitted.earlier_seconds
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
            commits=loaded_commits(config, splits, checkpoint.commits, in_memory=self._data is not None),
            languages=list(splits.languages),
            seed=config.training.seed,
            labels=splits.target.names,
            parameters={"total": saved_model.count_parameters(self.model), "trainable": fitted.trainable},
            scores={
                name: Scores(predictions.metrics(), predictions.intervals(), len(predictions), predictions.masked)
                for name, predictions in judged.items()
            },
            baseline=baseline_of(splits, test),
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
            seconds={"total": total, "train": fitted.seconds, "frozen": fitted.frozen_seconds},
            peak_memory_bytes=run_folder.peak_memory_bytes(),
            threads=torch.get_num_threads(),
            processes=self.accelerator.num_processes,
            versions=versions(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=self._inputs,
            auto=decision_of(Path(config.output.output_dir)),
        )


@contextmanager
def open_run(config: RunConfig, data: datasets.DatasetDict | None = None, *, ahead: bool = False) -> Iterator[Run]:
    """A run; at the end its folder is released, and devices, processes and trackers are as they were before.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.
        ahead: only look at what the run would take: what is in `--output_dir` does not matter.

    Raises:
        UserError: strategy or pooling is still to be chosen, the folder holds other files or another run, or the
            environment has variables of a launcher that do not belong together.
    """
    if config.trains() and not ahead:
        config.refuse_open_choices()
    with without_bars_in_logs(), closing(Run(config, data)) as run:
        processes = run.processes
        results = None if ahead else run_folder.results_or_start(config, processes)
        if results is not None:
            run.results, run._was_finished = results, True
            yield run
            return
        from hf_transfer.checkpoints.caches import usable_caches
        from hf_transfer.data.workers import explained_worker_failures
        from hf_transfer.models.locating import located_once

        with usable_caches(config.store.cache_dir) as note, explained_worker_failures(), located_once():
            if note:
                processes.print(note)
            yield run
