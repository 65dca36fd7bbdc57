"""A pretrained classifier with a new head, and the image processor or tokenizer it was trained with."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.hub import cached_file

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data import hub_access, samples
from hf_transfer.data.inputs import ImageProcessor
from hf_transfer.models.explained import explained, quietly
from hf_transfer.models.fusion import FusionConfig, FusionModel
from hf_transfer.models.groups import Group
from hf_transfer.models.pooling import (
    Pooling,
    backbone_config,
    check_pooling,
    load_pooled,
    pooled_classifier,
    pooling_of,
    read_config,
)
from hf_transfer.models.tasks import TASKS
from hf_transfer.models.towers import trace
from hf_transfer.models.trust import refuse_other_files

HEAD_STANDARD_DEVIATION = 0.02


class AnyCheckpoint(Protocol):
    """What a classifier is made of: one checkpoint, or one for each of its towers; see `Checkpoint`."""

    name: str
    path: str
    commit: str | None
    commits: dict[str, str | None]
    task: str

    @property
    def parts(self) -> "tuple[Checkpoint, ...]":
        """The single checkpoints that it is made of."""

    def outline(self, label_names: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[Group]]:
        """See `Checkpoint.outline`."""

    def classifier(self, label_names: Sequence[str], *, seed: int, fresh_weights: bool) -> PreTrainedModel:
        """See `Checkpoint.classifier`."""

    def describe_fresh(self, groups: Sequence[Group]) -> list[str]:
        """See `Checkpoint.describe_fresh`."""


class Checkpoint:
    """A checkpoint that has been found and can do the task; no weights are read yet.

    Args:
        name: a Hub id, a local folder, or sample:NAME.
        revision: branch, tag or commit on the Hub.
        task: one of `TASKS`.
        pooling: what the head sees of a text: as the checkpoint has it, the first token, or the mean of all.
        setting: the user names it in this one.

    Attributes:
        path: where it is loaded from.
        commit: on the Hub, of which all its files are; None for a folder here.
        commits: the same, by the setting that names it.
        revision: what its files are asked for by: the commit, if it is known.
        offline: the Hub must not be asked again.

    Raises:
        UserError: it does not exist, cannot be reached or read, or is no classifier of that kind.
    """

    def __init__(
        self, name: str, revision: str = "main", task: str = "image-classification",
        pooling: Literal["own", "cls", "mean"] = "own", setting: str = "model_name_or_path",
    ) -> None:  # fmt: skip
        self.name = name
        self.task, self._task = task, TASKS[task]
        self._fresh: frozenset[str] = frozenset()
        self.path, self.commit, self.offline = _locate(name, revision, setting)
        self.commits = {setting: self.commit}
        self.revision = self.commit or revision
        with explained(name), hub_access.local_files_only(self.offline):
            self.config: PretrainedConfig = read_config(self.path, revision=self.revision)
        kind = backbone_config(self.config).model_type
        if kind not in self._task.model_types:
            raise mistake(
                expected=self._task.expected,
                found=f"{name}, a {kind} model",
                do=self._task.advice.format(setting=setting),
            )
        self._pooling: Pooling | None = pooling_of(self.config) if pooling == "own" else pooling
        if self._pooling is not None:
            check_pooling(name, self.config, self._pooling)
        if getattr(self.config, "num_channels", 3) != 3:
            raise mistake(
                expected="a model that takes images of 3 channels",
                found=f"{name} with {self.config.num_channels}",
                do=f"choose another --{setting}",
            )

    @property
    def parts(self) -> "tuple[Checkpoint, ...]":
        """What it is made of: itself."""
        return (self,)

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint, downloaded if need be; None if it has none of that name."""
        with explained(self.name), hub_access.local_files_only(self.offline):
            found = cached_file(
                self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
        return Path(found) if found else None

    def processor(self) -> ImageProcessor:
        """The checkpoint's own image processor: its size, interpolation, mean and standard deviation."""
        with explained(self.name), hub_access.local_files_only(self.offline):
            # The same pixels with and without torchvision.
            processor: ImageProcessor = AutoImageProcessor.from_pretrained(
                self.path, revision=self.revision, backend="pil", trust_remote_code=False
            )
        return processor

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        with explained(self.name), hub_access.local_files_only(self.offline):
            refuse_other_files(self.name, get_tokenizer_config(self.path, revision=self.revision))
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path, revision=self.revision, config=self._text_config, trust_remote_code=False
            )
        return tokenizer

    @property
    def _text_config(self) -> PretrainedConfig:
        """What a configuration says of the part that reads texts."""
        both = isinstance(self.config, FusionConfig) or self._task is TASKS["dual-encoder"]
        config: PretrainedConfig = self.config.text_config if both else backbone_config(self.config)
        return config

    @property
    def longest_input(self) -> int | None:
        """How many tokens the model has positions for; None if its config does not say."""
        stated = getattr(self._text_config, "max_position_embeddings", None)
        if not stated or stated < 0:
            return None
        model = _without_weights(lambda: self._from_config(["a", "b"]))
        # RoBERTa and its kin count positions from behind the padding's: of 514 they have 512 for tokens.
        tables = (module for name, module in model.named_modules() if "position" in name)
        padding = (table.padding_idx for table in tables if isinstance(table, nn.Embedding))
        return int(stated) - max((index + 1 for index in padding if index is not None), default=0)

    def outline(self, label_names: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[Group]]:
        """The architecture without weights, which takes no time and no memory, and its groups.

        Args:
            label_names: class names.
            inputs: a small batch to trace the model with.
        """
        return outlined(lambda: self._from_config(label_names), inputs)

    def _from_config(self, label_names: Sequence[str]) -> PreTrainedModel:
        with explained(self.name), hub_access.local_files_only(self.offline):
            if self._pooling is not None:
                return self._pooled(label_names, fresh_weights=True)[0]
            config = read_config(self.path, revision=self.revision, **self._settings(label_names))
            if isinstance(config, FusionConfig):
                return FusionModel(config)
            model: PreTrainedModel = self._task.classifier.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        return model

    def _pooled(self, label_names: Sequence[str], *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        assert self._pooling is not None
        return pooled_classifier(
            self.path, pooling=self._pooling, labels=labels_of(label_names), revision=self.revision,
            fresh_weights=fresh_weights,
        )  # fmt: skip

    def _settings(self, label_names: Sequence[str]) -> dict[str, Any]:
        """What the model's config is to say: its classes and, for texts, which token is padding."""
        settings = labels_of(label_names)
        if getattr(self.config, "pad_token_id", 0) is None and self._task is TASKS["text-classification"]:
            tokenizer = self.tokenizer()
            found = tokenizer.pad_token_id if tokenizer.pad_token is not None else tokenizer.eos_token_id
            settings["pad_token_id"] = found
        return settings

    def classifier(self, label_names: Sequence[str], *, seed: int, fresh_weights: bool) -> PreTrainedModel:
        """The backbone with an output for each label, in float32.

        Args:
            label_names: class names, saved in the model's config.
            seed: seed of every weight that is not read from the checkpoint.
            fresh_weights: take the architecture only; no weights are read.
        """
        with seeded(seed), explained(self.name), hub_access.local_files_only(self.offline), quietly():
            if fresh_weights:
                return self._from_config(label_names)
            model: PreTrainedModel
            if self._pooling is not None:
                model, self._fresh = self._pooled(label_names, fresh_weights=False)
                return model
            model, found = self._task.classifier.from_pretrained(
                self.path, revision=self.revision, dtype=torch.float32, ignore_mismatched_sizes=True,
                output_loading_info=True, use_safetensors=True, trust_remote_code=False, **self._settings(label_names),
            )  # fmt: skip
        self._fresh = frozenset(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
        return model

    def describe_fresh(self, groups: Sequence[Group]) -> list[str]:
        """A sentence on what the checkpoint lacks behind the blocks, other than the head: a norm or a pooler, say.

        Raises:
            UserError: it lacks weights of the backbone itself, which would be random without a word.
        """
        return fresh_in_words(self.name, groups, self._fresh)

    def finished_classifier(self, label_names: Sequence[str] | None = None) -> PreTrainedModel:
        """The model with its own head, for evaluation.

        Args:
            label_names: the classes it must have, in their order; None takes any.

        Raises:
            UserError: its classes are not those of the data.
        """
        self.class_names(label_names)
        with explained(self.name), hub_access.local_files_only(self.offline):
            if pooling_of(self.config) is not None:
                return load_pooled(self.path, revision=self.revision)
            model: PreTrainedModel = self._task.classifier.from_pretrained(
                self.path, revision=self.revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        return model

    def class_names(self, label_names: Sequence[str] | None = None) -> list[str]:
        """The classes of a finished model.

        Args:
            label_names: the classes it must have, in their order; None takes any.

        Raises:
            UserError: its classes are others.
        """
        own = [str(name) for _, name in sorted((self.config.id2label or {}).items())]
        if label_names is not None and own != list(label_names):
            raise mistake(
                expected=f"a model with the classes of the data set, in their order: {', '.join(label_names[:5])}, ...",
                found=f"{self.name} with {', '.join(own[:5])}, ...",
                do="name the folder OUT/model of a run on this data set, or train first (without --evaluate_only)",
            )
        return own


def fresh_in_words(name: str, groups: Sequence[Group], fresh: Set[str]) -> list[str]:
    """See `Checkpoint.describe_fresh`."""
    lacking = [parameter for group in groups[:-1] for parameter in group.parameters if parameter in fresh]
    backbone = {parameter for group in groups[:-1] if group.name != "final" for parameter in group.parameters}
    if holes := [parameter for parameter in lacking if parameter in backbone]:
        raise mistake(
            expected=f"in {name} all weights of its backbone, in the shapes that its config.json says",
            found=f"{len(holes)} missing or of another shape: {', '.join(holes[:3])}, ...",
            do="use a complete checkpoint of this architecture, or --strategy scratch",
        )
    return [f"Not in the checkpoint, and drawn anew: {', '.join(lacking)}."] if lacking else []


def load_classifier(
    checkpoint: AnyCheckpoint, label_names: Sequence[str], config: RunConfig, inputs: dict[str, Tensor],
    *, fresh_weights: bool,
) -> tuple[PreTrainedModel, list[Group]]:  # fmt: skip
    """A classifier with a new head, and its groups in depth order.

    Args:
        checkpoint: what to start from.
        label_names: class names.
        config: seed and memory settings.
        inputs: a small batch to trace the model with.
        fresh_weights: train from scratch.
    """
    model = checkpoint.classifier(label_names, seed=config.seed, fresh_weights=fresh_weights)
    groups = trace(model, inputs)
    checkpoint.describe_fresh(groups)
    if not isinstance(model, FusionModel):
        # A checkpoint with as many classes as the data would otherwise keep its old head.
        renew_head(model, groups[-1], config.seed)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise mistake(
                expected="a model that supports --gradient_checkpointing",
                found=f"{type(model).__name__}, which does not",
                do="leave the flag out, or lower --per_device_train_batch_size",
            )
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model, groups


def labels_of(label_names: Sequence[str]) -> dict[str, Any]:
    """What a model's config says of its classes."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        # A checkpoint of another kind of task would lend the pipeline its sigmoid.
        "problem_type": "single_label_classification",
    }


def outlined(make: Callable[[], PreTrainedModel], inputs: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[Group]]:
    """What `make` makes, if it can be without weights, and its groups; see `Checkpoint.outline`."""
    # Without the mask: masks are made by looking at its values, and on this device there are none.
    main = {name: value.to("meta") for name, value in inputs.items() if name != "attention_mask"}
    model = _without_weights(make)
    try:
        return model, trace(model, main)
    except (RuntimeError, NotImplementedError):
        # Some look at the values of their inputs: these need real, if random, weights.
        model = make()
        return model, trace(model, inputs)


def _without_weights(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.device("meta"):
        return make()


def renew_head(model: nn.Module, head: Group, seed: int) -> None:
    """Draw the head's weights from N(0, 0.02²) with `seed`; biases become 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in head.modules:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(0.0, HEAD_STANDARD_DEVIATION, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _locate(name: str, revision: str, setting: str) -> tuple[str, str | None, bool]:
    """Where to load from, which commit of it, and whether the Hub must not be asked again."""
    if samples.is_sample(name):
        return str(samples.backbone_folder(name)), None, False
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise mistake(
                expected=f"a saved model with a config.json in {path}",
                found="a folder without one",
                do="name the folder that holds config.json and model.safetensors",
            )
        return str(path), None, False
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise mistake(
            expected="a model: a folder here, a Hub id, or sample:NAME",
            found=f"no folder {path}",
            do=f"correct --{setting}",
        )
    found = hub_access.ask_hub(name, kind="model", revision=revision)
    return name, hub_access.commit_of(name, revision, found), found is None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's global generator with `seed`, and leave the generator as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
