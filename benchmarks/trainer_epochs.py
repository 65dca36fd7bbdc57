"""Epochs of `transformers.Trainer` on the very batches of a run of ours, in the same order."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_transfer.data.batches import LABELS, Batch
from hf_transfer.run import Run


def model_inputs(run: Run, batch: Batch) -> Batch:
    """What a script passes to the model: tokens as they are, or normalised pixels."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in LABELS}
    if "pixel_values" in inputs:
        preprocessing: Any = run.preprocessing
        inputs["pixel_values"] = preprocessing.normalise(inputs["pixel_values"].float())
    return inputs


def epochs_of_trainer(run: Run) -> Callable[[int], float]:
    """An epoch of Trainer: its number goes in, and seconds come out, without those of Trainer's own start.

    Args:
        run: ready to be trained; its settings are used for batches, rate and weight decay.
    """
    clock, batches, training = _Clock(), run.loaders.train, run.config.training

    class OnTheseBatches(Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return _AsTrainerTakesThem(run)  # type: ignore[return-value]

    arguments = TrainingArguments(
        output_dir="runs/trainer", num_train_epochs=1, learning_rate=1e-5, lr_scheduler_type="constant",
        weight_decay=training.weight_decay, per_device_train_batch_size=training.train_batch_size(len(batches.dataset)),
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = OnTheseBatches(run.model, arguments, train_dataset=batches.dataset, callbacks=[clock])

    def epoch(number: int) -> float:
        batches.set_epoch(number)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return clock.seconds

    return epoch


class _AsTrainerTakesThem:
    """Batches with labels, and without masks and row numbers."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.dataset = run.loaders.train.dataset

    def __len__(self) -> int:
        return len(self.run.loaders.train)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.run.loaders.train:
            yield {**model_inputs(self.run, batch), "labels": batch["target"]}


class _Clock(TrainerCallback):
    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started
