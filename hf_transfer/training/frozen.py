"""No frozen layer is computed twice: what the groups in front of the learning ones make of each sample is stored."""

import math
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_transfer.config import RunConfig, UserError, mistake
from hf_transfer.data.inputs import MASKED, Batch, Loaders, some_samples
from hf_transfer.models.cutting import CannotCutError, Cut, Stand
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.models.joint_cut import JointCut, JointStand
from hf_transfer.models.towers import INPUTS, groups_of, towers_of
from hf_transfer.strategies.freezing import Stage, frozen_towers
from hf_transfer.training.checkpoint import Checkpoints
from hf_transfer.training.recording import computed, fill, identity, store_of, stored_dtype
from hf_transfer.training.store import Column, Store, free_bytes, in_units, no_room

# How far the loss on the first batch may lie from that of a live run.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
BATCHES_MEASURED = 3


@dataclass(frozen=True)
class Costs:
    """Seconds for one sample: through the frozen groups, to disk, and back."""

    prefix: float
    write: float
    read: float

    def live(self, *, epochs: int, samples: int) -> float:
        """Seconds of the frozen groups in a run that computes them in every epoch."""
        return epochs * samples * self.prefix

    def stored(self, *, epochs: int, samples: int, to_write: int) -> float:
        """Seconds of the same with a store, into which `to_write` samples go first."""
        return to_write * (self.prefix + self.write) + epochs * samples * self.read


@dataclass(frozen=True)
class _Plan:
    """Where a stage's model is cut, and the stores of its splits: for training one for each view.

    Attributes:
        cut: of the model, or of each of its towers.
        frozen: the groups in front of it.
        stores: by split.
        images: whether it is the outputs of layers that look at pixels that are stored.
    """

    cut: Cut | JointCut
    frozen: list[Group]
    stores: dict[str, list[Store]]
    images: bool

    @property
    def every(self) -> list[tuple[str, int | None, Store]]:
        """Split, the epoch whose view is stored (None: as evaluation sees it), and store."""
        return [
            (split, view if split == "train" else None, store)
            for split, stores in self.stores.items()
            for view, store in enumerate(stores)
        ]


class FrozenPrefix:
    """The groups in front of whatever learns in a stage, computed once for each sample and view.

    References: Liu, Agarwal and Venkataraman, "AutoFreeze", 2021, https://arxiv.org/abs/2102.01386, and Nakandala and
    Kumar, "Nautilus", SIGMOD 2022, https://doi.org/10.1145/3514221.3517846 (prior art).

    Args:
        model: classifier, not wrapped.
        groups: its groups in depth order.
        loaders: the batches of the run.
        config: whether to store, where, and as which type.
        accelerator: the processes; those of one machine share the work.
        decisions: where they are remembered, so that a run that goes on decides as it did before.

    Attributes:
        seconds: spent in building stores.
        notes: what was decided, in sentences.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], loaders: Loaders, config: RunConfig, accelerator: Accelerator,
        decisions: Checkpoints | None = None,
    ) -> None:  # fmt: skip
        self._model, self._groups, self._loaders = model, groups, loaders
        self._config, self._accelerator, self._decisions = config, accelerator, decisions
        self.seconds = 0.0
        self.notes: list[str] = []
        self._resting: dict[str, Tensor] = {}

    @contextmanager
    def skipped(self, stage: Stage) -> Iterator[Loaders]:
        """Batches for a stage: from the store, if that pays and while the frozen groups are out of the model.

        Raises:
            UserError: the store was asked for and cannot be had, the disk is full, or stored activations do not give
                the loss of a live run.
        """
        plan = self._plan(stage)
        if plan is None:
            yield self._loaders
            return
        compute = partial(plan.cut.record, self._model)
        batch_size = self._config.per_device_eval_batch_size
        for split, view, store in plan.every:
            self.seconds += fill(store, compute, self._loaders, split, view, self._accelerator, batch_size)
        live = self._first_loss(self._loaders)
        with plan.cut.skipped(self._model, self._accelerator.device) as stand:
            batches = _stored_loaders(self._loaders, plan, stand)
            self._compare(live, self._first_loss(batches))
            self._resting = {
                f"{name}.{key}": value
                for name, module in stand.originals.items()
                for key, value in module.state_dict().items()
            }
            yield batches
            self._resting = {}

    def expected(self, stage: Stage) -> str | None:
        """What storing would take and gain in a stage, in a sentence; None if nothing is frozen in it."""
        groups = self._frozen(stage)
        if not _is_worth_it(groups) or self._config.cache_frozen == "off":
            return None
        frozen = f"{len(groups)} of {len(self._groups)} groups"
        try:
            return self._verdict(self._cut(groups), stage, frozen)[1]
        except CannotCutError as reason:
            return f"Frozen store: not used for {frozen}; {reason}."

    def state_of(self, names: Set[str]) -> dict[str, Tensor]:
        """Weights and statistics by name, also of groups that are out of the model at the moment; not copies."""
        state = {**self._resting, **self._model.state_dict()}
        return {name: value for name, value in state.items() if name in names}

    def _plan(self, stage: Stage) -> _Plan | None:
        """How the stage is to be stored; None if it is not."""
        groups = self._frozen(stage)
        if not groups:
            return None
        self._refuse_change(groups)
        if self._config.cache_frozen == "off":
            return None
        asked = self._config.cache_frozen == "on"
        frozen = f"{len(groups)} of {len(self._groups)} groups"
        try:
            plan = self._cut(groups)
            if not asked and not self._pays(plan, stage, frozen):
                return None
            self._refuse_if_too_large(plan)
        except CannotCutError as reason:
            if asked:
                raise mistake(
                    expected="with --cache_frozen on a model whose frozen layers can be stored",
                    found=str(reason),
                    do="use --cache_frozen auto",
                ) from reason
            self.say(f"Frozen store: not used for {frozen}; {reason}.")
            return None
        return plan

    def _frozen(self, stage: Stage) -> list[Group]:
        """What lies in front of whatever learns, in all towers."""
        return [group for groups in frozen_towers(self._groups, [stage]).values() for group in groups]

    def _refuse_change(self, groups: Sequence[Group]) -> None:
        """What is stored may be rounded: a run that goes on must not be told to do otherwise than it did."""
        if self._config.cache_frozen == "auto" or self._decisions is None or not self._accelerator.is_main_process:
            return
        name, used = _decision(groups), self._config.cache_frozen == "on"
        if self._decisions.remembered().get(name, used) != used and not self._config.allow_mismatch:
            raise mistake(
                expected=f"--cache_frozen {'off' if used else 'on'} or auto, as when the run began",
                found=f"--cache_frozen {self._config.cache_frozen}",
                do="leave it as it was, or add --allow_mismatch: results may then differ in rounding",
            )
        self._decisions.remember(name, used)

    def _cut(self, groups: list[Group]) -> _Plan:
        images = groups[0].tower != "text" and "pixel_values" in self._extremes()
        # What is said of an image does not change with its views.
        cycle = self._loaders.cycle if images else 1
        if cycle == 0:
            raise CannotCutError("every epoch sees new views (--cache_views 0)")
        if any(getattr(self._config, name, 0.0) > 0 for name in ("mixup_alpha", "cutmix_alpha")):
            raise CannotCutError("images are mixed with each other, in every epoch anew")
        self._model.to(self._accelerator.device)
        inputs = self._extremes()
        if "attention_mask" in inputs and not bool(inputs["attention_mask"][:, 0].all()):
            raise CannotCutError("texts are padded on the left, so what a layer makes of one depends on the others")
        groups, cut = self._tried(groups, inputs)
        dtype = stored_dtype(self._config)
        columns = [
            Column(
                tuple(size for size in crossing.shape if isinstance(size, int)),
                dtype if crossing.dtype.is_floating_point else crossing.dtype,
                crossing.by_token,
            )
            for crossing in cut.crossing
        ]
        behind = [group for group in self._groups if group not in groups]
        modules = [name for group in behind for name in group.modules]
        parameters = {name for group in behind for name in group.parameters}
        material = {"cut behind": cut.module, **identity(self._model, modules, self._accelerator, parameters)}
        stores = {
            split: [
                store_of(self._loaders, self._config, split, view, columns, material)
                for view in (range(cycle) if split == "train" else [None])
            ]
            for split in ("train", "validation")
        }
        return _Plan(cut, groups, stores, images)

    def _tried(self, groups: list[Group], inputs: Batch) -> tuple[list[Group], Cut | JointCut]:
        """The model cut behind these groups, which are the first ones of one tower, or of each; and the groups."""
        if not groups[0].tower:
            return groups, Cut(self._model, self._groups, len(groups), inputs)
        try:
            return groups, self._joint(groups, inputs)
        except CannotCutError:
            # Attention looks at the places of an image and not at their pooled vector alone.
            lower = [group for group in groups if group.name != "final"]
            if lower == groups:
                raise
            return lower, self._joint(lower, inputs)

    def _joint(self, groups: Sequence[Group], inputs: Batch) -> JointCut:
        counts = {tower: sum(group.tower == tower for group in groups) for tower in towers_of(groups)}
        return JointCut(
            self._model, [(groups_of(tower, self._groups), count, INPUTS[tower]) for tower, count in counts.items()],
            inputs,
        )  # fmt: skip

    def _pays(self, plan: _Plan, stage: Stage, frozen: str) -> bool:
        """Whether storing takes less time than computing; one process finds out, and all do the same."""
        if not _is_worth_it(plan.frozen):
            return False
        answer: list[Any] = [None]
        if self._accelerator.is_main_process:
            answer = [self._decided(plan, stage, frozen)]
        broadcast_object_list(answer)
        ((pays, sentence),) = answer
        self.say(sentence)
        return bool(pays)

    def _decided(self, plan: _Plan, stage: Stage, frozen: str) -> tuple[bool, str]:
        """As it was decided when the run began, if that was in an earlier process."""
        name = _decision(plan.frozen)
        if self._decisions is None:
            return self._verdict(plan, stage, frozen)
        if (earlier := self._decisions.remembered().get(name)) is not None:
            return bool(earlier), f"Frozen store: {'' if earlier else 'not '}used for {frozen}, as when the run began."
        pays, sentence = self._verdict(plan, stage, frozen)
        self._decisions.remember(name, pays)
        return pays, sentence

    def _verdict(self, plan: _Plan, stage: Stage, frozen: str) -> tuple[bool, str]:
        if all(store.complete for _, _, store in plan.every):
            return True, f"Frozen store: {frozen}, as an earlier run left it."
        costs = self._costs(plan)
        if isinstance(costs, str):
            return False, f"Frozen store: not used for {frozen}; {costs}."
        samples = sum(stores[0].samples for stores in plan.stores.values())
        to_write = sum(store.samples for _, _, store in plan.every)
        stored = costs.stored(epochs=stage.epochs, samples=samples, to_write=to_write)
        live = costs.live(epochs=stage.epochs, samples=samples)
        size, free = self._room(plan)
        pays = stored < live and size < free
        verdict = "" if pays else "not used, "
        return pays, (
            f"Frozen store: {verdict}{frozen}, {in_units(size)} ({in_units(free)} free), about {stored:.1f} s with it "
            f"and {live:.1f} s without for these groups in {stage.epochs} epochs."
        )

    def _costs(self, plan: _Plan) -> Costs | str:
        """Measured on a few batches; a sentence if nothing can be written."""
        size, whole = self._config.per_device_eval_batch_size, plan.stores["train"][0]
        count = min(whole.samples, BATCHES_MEASURED * size)
        trial = whole.first_samples(count)
        compute = partial(plan.cut.record, self._model)
        numbers = range(len(trial.chunks))
        try:
            # The second time, as in all epochs but the first: what is decoded once may be kept.
            for _ in range(2):
                started = time.perf_counter()
                chunks = list(computed(trial, numbers, compute, self._loaders, "train", 0, self._accelerator, size))
                prefix = time.perf_counter() - started
            started = time.perf_counter()
            for number, tensors, labels in chunks:
                trial.write(number, tensors, labels)
            write = time.perf_counter() - started
            started = time.perf_counter()
            for batch in np.array_split(np.arange(count)[::-1], BATCHES_MEASURED):
                trial.read(batch)
            read = time.perf_counter() - started
        except UserError as error:
            return str(error).splitlines()[1].partition("Found:")[2].strip()
        finally:
            trial.remove()
        return Costs(prefix / count, write / count, read / count)

    def _room(self, plan: _Plan) -> tuple[int, int]:
        """Bytes that are still to be written, and bytes that are free."""
        missing = [store for _, _, store in plan.every if not store.complete]
        return sum(store.bytes for store in missing), free_bytes(plan.stores["train"][0].folder)

    def _refuse_if_too_large(self, plan: _Plan) -> None:
        size, free = self._room(plan)
        if size >= free:
            raise no_room(plan.stores["train"][0].folder.parent, size)

    def _extremes(self) -> Batch:
        """Model inputs of two samples; of texts the longest and the shortest, so that there is padding."""
        lengths = getattr(self._loaders.train.dataset, "lengths", None)
        rows = range(2) if lengths is None else (int(lengths.argmax()), int(lengths.argmin()))
        return some_samples(self._loaders, "train", rows, 0, self._accelerator.device)[0]

    @torch.no_grad()
    def _first_loss(self, loaders: Loaders) -> float:
        rows = range(min(self._config.per_device_train_batch_size, len(loaders.train.dataset)))
        inputs, labels = some_samples(loaders, "train", rows, 0, self._accelerator.device)
        with evaluating(self._model), self._accelerator.autocast():
            logits = self._model(**inputs).logits
        return cross_entropy(logits.float(), labels, ignore_index=MASKED).item()

    def _compare(self, live: float, stored: float) -> None:
        tolerance = TOLERANCES[stored_dtype(self._config)]
        # Without any label that counts, there is no loss on either side.
        if math.isnan(live) != math.isnan(stored) or abs(live - stored) > tolerance * max(1.0, abs(live)):
            raise mistake(
                expected=f"from stored activations the loss of a live run, {live:.6f} on the first batch",
                found=f"{stored:.6f}",
                do="use --cache_frozen off, and please report this with the name of the model",
            )

    def say(self, sentence: str) -> None:
        """Print a sentence, and keep it for the report."""
        self.notes.append(sentence)
        self._accelerator.print(sentence)


def _is_worth_it(groups: Sequence[Group]) -> bool:
    """Embeddings alone cost too little to be measured."""
    return any(group.is_block or group.name == "backbone" for group in groups)


def _decision(groups: Sequence[Group]) -> str:
    """What it is remembered under whether these groups are stored."""
    if not groups[0].tower:
        return f"store {len(groups)} groups"
    counts = [f"{sum(group.tower == tower for group in groups)} {tower}" for tower in towers_of(groups)]
    return f"store {' and '.join(counts)} groups"


def _stored_loaders(loaders: Loaders, plan: _Plan, stand: Stand | JointStand) -> Loaders:
    """Batches in the same order, whose images are not even read: what crosses the cut comes from the stores."""
    light = loaders.blank() if loaders.blank and plan.images else loaders
    rows = {split: loaders.of(split).dataset.split.rows for split in plan.stores}

    def to_inputs(batch: Batch, device: torch.device, split: str, epoch: int | None) -> tuple[Batch, Tensor, Tensor]:
        inputs, _, index = light.to_inputs(batch, device, split, epoch)
        stores = plan.stores[split]
        store = stores[0 if epoch is None else epoch % len(stores)]
        columns, labels = store.read(np.searchsorted(rows[split], batch["index"].numpy()))
        tensors = []
        for crossing, column in zip(plan.cut.crossing, columns, strict=True):
            values = column.to(device, non_blocking=True).to(crossing.dtype)
            tensors.append(_padded(values, inputs["attention_mask"]) if crossing.by_token else values)
        stand.put(tensors, inputs)
        return inputs, labels.to(device, non_blocking=True), index

    return replace(light, to_inputs=to_inputs)


def _padded(tokens: Tensor, mask: Tensor) -> Tensor:
    """Tokens one after the other [tokens of all samples, ...] as a batch [samples, tokens of the longest, ...]."""
    batch = tokens.new_zeros(*mask.shape, *tokens.shape[1:])
    batch[mask.bool()] = tokens
    return batch
