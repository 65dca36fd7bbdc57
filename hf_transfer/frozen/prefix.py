"""No frozen layer is computed twice: the outputs of the groups below the first one that learns are stored."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hf_transfer.checkpoints.checkpoint import Checkpoints
from hf_transfer.checkpoints.files import free_bytes, in_units
from hf_transfer.data.batches import Batch, Loaders, in_parts
from hf_transfer.errors import UserError, user_error
from hf_transfer.frozen.recording import Part, Passes, fill, from_main_process, identity, measured_costs, stores_of
from hf_transfer.frozen.store import Column, Store, no_room
from hf_transfer.frozen.stored_batches import stored_loaders
from hf_transfer.models.cutting import CannotCutError, Cut
from hf_transfer.models.groups import Group
from hf_transfer.models.joint_cut import JointCut
from hf_transfer.models.modeling_pair import INPUTS
from hf_transfer.models.stubs import Crossing
from hf_transfer.models.towers import groups_of
from hf_transfer.models.tracing import evaluating
from hf_transfer.strategies.freezing import Stage, frozen_towers
from hf_transfer.targets.target import LossOptions

# The largest relative difference between the losses of a live run and of one with stored activations: if both compute
# and store in float32, and if one of them rounds.
TOLERANCE, TOLERANCE_OF_HALVES = 1e-5, 1e-2


@dataclass(frozen=True)
class _Plan:
    """Where the model of a stage is cut, and the stores of its splits.

    Attributes:
        cut: of the model, or of each of its towers.
        crossing: the tensors that are stored, with the types in which the run computes them.
        frozen: the groups below the cut.
        stores: of training one for each view, and one of validation.
        images: whether the layers below the cut look at pixels.
    """

    cut: Cut | JointCut
    crossing: Sequence[Crossing]
    frozen: Sequence[Group]
    stores: Mapping[Part, Store]
    images: bool

    def room(self) -> tuple[int, int]:
        """Bytes that are still to be written, and bytes that are free."""
        missing = sum(store.bytes for store in self.stores.values() if not store.complete)
        return missing, free_bytes(self.stores["train", 0].folder)


class FrozenPrefix:
    """The frozen groups below the first one that learns in a stage, computed once for each sample and view.

    References: Liu, Agarwal and Venkataraman, "AutoFreeze", 2021, https://arxiv.org/abs/2102.01386, and Nakandala and
    Kumar, "Nautilus", SIGMOD 2022, https://doi.org/10.1145/3514221.3517846 (prior art).

    Args:
        model: classifier, not wrapped.
        groups: its groups in depth order.
        passes: the samples; whether outputs are stored, where, and in which type.
        decisions: where decisions are remembered, so that a resumed run decides as before; None: nowhere.
        mixes: whether samples are mixed with each other.
        allow_mismatch: whether a resumed run may decide otherwise than before.

    Attributes:
        seconds: time spent on filling stores.
        notes: what was decided, in sentences for the report; those of an earlier process of the same run come first.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], passes: Passes, decisions: Checkpoints | None = None, *,
        mixes: bool = False, allow_mismatch: bool = False,
    ) -> None:  # fmt: skip
        self._model, self._groups, self._passes, self._decisions = model, groups, passes, decisions
        self._mixes, self._allow_mismatch = mixes, allow_mismatch
        self.seconds = 0.0
        self.notes: list[str] = []
        self._skipped_state: dict[str, Tensor] = {}

    def note(self, sentence: str) -> None:
        """Print a sentence, and keep it for the report."""
        self.notes = [*self.notes, sentence]
        self._passes.accelerator.print(sentence)

    @contextmanager
    def skipped(self, stage: Stage) -> Iterator[Loaders]:
        """The batches of a stage: with stored activations if that saves time; then the frozen groups are skipped.

        Raises:
            UserError: the store was asked for and is not possible, the disk is full, or stored activations do not give
                the loss of a live run.
        """
        plan, passes = self._plan(stage), self._passes
        if plan is None:
            yield passes.loaders
            return
        compute = partial(plan.cut.record, self._model)
        self.seconds += fill(plan.stores, lambda _: compute, passes)
        live = self._first_loss(passes.loaders)
        with plan.cut.skipped(self._model, passes.accelerator.device) as modules:
            batches = stored_loaders(passes.loaders, plan.crossing, plan.stores, images=plan.images)
            self._compare(live, self._first_loss(batches))
            self._skipped_state = {
                f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
            }
            yield batches
            self._skipped_state = {}

    def expected(self, stage: Stage) -> str | None:
        """What a store would cost and save in a stage, in a sentence; None if nothing worth storing is frozen."""
        groups = self._frozen(stage)
        if not _is_worth_it(groups) or self._passes.settings.cache_frozen == "off":
            return None
        frozen = f"{len(groups)} of {len(self._groups)} groups"
        try:
            return self._estimate(self._cut(groups), stage, frozen)[1]
        except CannotCutError as reason:
            return f"Frozen store: not used for {frozen}; {reason}."

    def state_of(self, names: Set[str]) -> dict[str, Tensor]:
        """Parameters and buffers by name, also of groups that are skipped at the moment; not copies."""
        state = {**self._skipped_state, **self._model.state_dict()}
        return {name: value for name, value in state.items() if name in names}

    def _plan(self, stage: Stage) -> _Plan | None:
        """How the outputs of a stage are stored; None if they are not."""
        groups, wanted = self._frozen(stage), self._passes.settings.cache_frozen
        if not groups:
            return None
        self._refuse_change(groups)
        if wanted == "off":
            return None
        frozen = f"{len(groups)} of {len(self._groups)} groups"
        try:
            plan = self._cut(groups)
            if wanted == "auto" and not self._decide(plan, stage, frozen):
                return None
        except CannotCutError as reason:
            if wanted == "on":
                raise user_error(
                    expected="with --cache_frozen on a model whose frozen layers can be stored",
                    found=str(reason),
                    do="use --cache_frozen auto",
                ) from reason
            self.note(f"Frozen store: not used for {frozen}; {reason}.")
            return None
        size, free = plan.room()
        if size >= free:
            raise no_room(plan.stores["train", 0].folder.parent, size)
        return plan

    def _frozen(self, stage: Stage) -> list[Group]:
        """The groups below the first one that learns, in all towers."""
        return [group for groups in frozen_towers(self._groups, [stage]).values() for group in groups]

    def _refuse_change(self, groups: Sequence[Group]) -> None:
        """A resumed run must keep its decision: stored activations may be rounded."""
        wanted, decisions = self._passes.settings.cache_frozen, self._decisions
        if wanted == "auto" or decisions is None or not self._passes.accelerator.is_main_process:
            return
        name, used = _decision(groups), wanted == "on"
        if decisions.remembered().get(name, used) != used and not self._allow_mismatch:
            raise user_error(
                expected=f"--cache_frozen {'off' if used else 'on'} or auto, as when the run began",
                found=f"--cache_frozen {wanted}",
                do="leave it as it was, or add --allow_mismatch: results may then differ in rounding",
            )
        decisions.remember(name, used)

    def _cut(self, groups: list[Group]) -> _Plan:
        inputs, accelerator = self._test_inputs(), self._passes.accelerator
        images = groups[0].tower != "text" and "pixel_values" in inputs
        # Views change images alone: a text is the same in all of them.
        cycle = self._passes.loaders.cycle if images else 1
        if cycle == 0:
            raise CannotCutError("every epoch sees new views (--cache_views 0)")
        if self._mixes:
            raise CannotCutError("samples are mixed with each other, differently in every epoch")
        self._model.to(accelerator.device)
        if "attention_mask" in inputs and not bool(inputs["attention_mask"][:, 0].all()):
            raise CannotCutError("texts are padded on the left, so the outputs for one text depend on the others")
        groups, cut = self._tried(groups, inputs)
        crossing = self._as_computed(cut, inputs)
        columns = []
        for one in crossing:
            shape = tuple(size for size in one.shape if isinstance(size, int))
            dtype = self._passes.dtype if one.dtype.is_floating_point else None
            columns.append(Column(shape, dtype or one.dtype, one.by_token))
        behind = [group for group in self._groups if group not in groups]
        later = {name for group in behind for name in (*group.modules, *group.parameters)}
        material = {"cut behind": cut.module, **identity(self._model, later, accelerator)}
        parts: list[Part] = [*(("train", view) for view in range(cycle)), ("validation", None)]
        return _Plan(cut, crossing, groups, stores_of(self._passes, parts, columns, material), images)

    def _as_computed(self, cut: Cut | JointCut, inputs: Batch) -> list[Crossing]:
        """What crosses the cut, with the types of this run: mixed precision computes some of it in half precision.

        The sums of residual connections stay in float32. Rounded to half precision, they would change the results.
        """
        with self._passes.accelerator.autocast():
            recorded = cut.record(self._model, inputs)
        return [replace(one, dtype=tensor.dtype) for one, tensor in zip(cut.crossing, recorded, strict=True)]

    def _tried(self, groups: list[Group], inputs: Batch) -> tuple[list[Group], Cut | JointCut]:
        """The groups that are stored, the first ones of one tower or of each, and the cut behind them."""
        if not groups[0].tower:
            return groups, Cut(self._model, self._groups, len(groups), inputs, longest=self._longest())
        try:
            return groups, self._joint(groups, inputs)
        except CannotCutError:
            # Attention needs the places of an image, and not only their pooled vector: pooling must not be skipped.
            lower = [group for group in groups if group.name != "final"]
            if lower == groups:
                raise
            return lower, self._joint(lower, inputs)

    def _joint(self, groups: Sequence[Group], inputs: Batch) -> JointCut:
        counts = Counter(group.tower for group in groups)
        towers = [(groups_of(tower, self._groups), count, INPUTS[tower]) for tower, count in counts.items()]
        return JointCut(self._model, towers, inputs, longest=self._longest())

    def _longest(self) -> int:
        """Tokens of the longest text of training and validation; 0 for other samples."""
        datasets = (self._passes.loaders.of(split).dataset for split in ("train", "validation"))
        lengths = (getattr(dataset, "lengths", None) for dataset in datasets)
        return max((int(one.max()) for one in lengths if one is not None), default=0)

    def _decide(self, plan: _Plan, stage: Stage, frozen: str) -> bool:
        """Whether storing takes less time than computing; one process measures, and all do the same."""
        if not _is_worth_it(plan.frozen):
            return False
        decide = partial(self._remembered_decision, plan, stage, frozen)
        used, sentence = from_main_process(self._passes.accelerator, decide)
        self.note(sentence)
        return used

    def _remembered_decision(self, plan: _Plan, stage: Stage, frozen: str) -> tuple[bool, str]:
        """The decision of an earlier process of the run, or else a new one; and a sentence."""
        if self._decisions is None:
            return self._estimate(plan, stage, frozen)
        name = _decision(plan.frozen)
        if (earlier := self._decisions.remembered().get(name)) is not None:
            return bool(earlier), f"Frozen store: {'' if earlier else 'not '}used for {frozen}, as when the run began."
        used, sentence = self._estimate(plan, stage, frozen)
        self._decisions.remember(name, used)
        return used, sentence

    def _estimate(self, plan: _Plan, stage: Stage, frozen: str) -> tuple[bool, str]:
        """Whether storing takes less time than computing, and a sentence on it."""
        if all(store.complete for store in plan.stores.values()):
            return True, f"Frozen store: {frozen}, as an earlier run left it."
        try:
            record = partial(plan.cut.record, self._model)
            compute, write, read = measured_costs(plan.stores["train", 0], record, self._passes)
        except UserError as error:
            return False, f"Frozen store: not used for {frozen}; {error.found}."
        samples = plan.stores["train", 0].samples + plan.stores["validation", None].samples
        to_write = sum(store.samples for store in plan.stores.values())
        stored = to_write * (compute + write) + stage.epochs * samples * read
        live = stage.epochs * samples * compute
        size, free = plan.room()
        used = stored < live and size < free
        return used, (
            f"Frozen store: {'' if used else 'not used, '}{frozen}, {in_units(size)} ({in_units(free)} free), about "
            f"{stored:.1f} s with it and {live:.1f} s without for these groups in {stage.epochs} epochs."
        )

    def _test_inputs(self) -> Batch:
        """Model inputs of two samples; of texts the longest and the shortest, so that one is padded."""
        loaders = self._passes.loaders
        lengths = getattr(loaders.train.dataset, "lengths", None)
        rows = range(2) if lengths is None else (int(lengths.argmax()), int(lengths.argmin()))
        return loaders.some_samples("train", rows, 0, self._passes.accelerator.device).inputs

    @torch.no_grad()
    def _first_loss(self, loaders: Loaders) -> float:
        """The mean loss of the first training samples, in evaluation mode."""
        accelerator = self._passes.accelerator
        rows = range(min(self._passes.batch_size, len(loaders.train.dataset)))
        inputs, targets, counted, _ = loaders.some_samples("train", rows, 0, accelerator.device)
        with evaluating(self._model), accelerator.autocast():
            (outputs,) = in_parts(lambda part: [self._model(**part).logits], inputs, loaders.parts_of(inputs))
        total, weight = loaders.target.loss(outputs.float(), targets, counted, LossOptions())
        return (total / weight).item()

    def _compare(self, live: float, stored: float) -> None:
        in_float32 = self._passes.accelerator.mixed_precision == "no" and self._passes.dtype in (None, torch.float32)
        tolerance = TOLERANCE if in_float32 else TOLERANCE_OF_HALVES
        # If no label of the batch counts, both losses are NaN.
        if math.isnan(live) != math.isnan(stored) or abs(live - stored) > tolerance * max(1.0, abs(live)):
            raise user_error(
                expected=f"from stored activations the loss of a live run, {live:.6f} on the first batch",
                found=f"{stored:.6f}",
                do="use --cache_frozen off, and please report this with the name of the model",
            )


def _is_worth_it(groups: Sequence[Group]) -> bool:
    """Whether there is more than embeddings, which cost too little to be measured."""
    return any(group.is_block or group.name == "backbone" for group in groups)


def _decision(groups: Sequence[Group]) -> str:
    """The name under which it is remembered whether these groups are stored."""
    # A model of one tower has no name for it.
    counts = [f"{count} {tower}".rstrip() for tower, count in Counter(group.tower for group in groups).items()]
    return f"store {' and '.join(counts)} groups"
