"""A pretrained classifier with a new head, and the image processor or tokenizer it was trained with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from hf_transfer.config import RunConfig, mistake
from hf_transfer.data import hub_access, samples
from hf_transfer.data.inputs import ImageProcessor
from hf_transfer.models.groups import Group, trace_groups
from hf_transfer.models.pooling import (
    Pooling,
    backbone_config,
    check_pooling,
    load_pooled,
    pooled_classifier,
    pooling_of,
    read_config,
)

HEAD_STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class _Task:
    """What transformers has for a task."""

    classifier: Any
    model_types: Mapping[str, Any]
    expected: str
    advice: str


TASKS = {
    "image-classification": _Task(
        AutoModelForImageClassification,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as an image classifier (ViT, ResNet, ConvNeXt, Swin, ...)",
        "choose an image model in --model_name_or_path",
    ),
    "text-classification": _Task(
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as a text classifier (BERT, RoBERTa, DeBERTa, DistilBERT, GPT-2, ...)",
        "choose a text model in --model_name_or_path",
    ),
}


class Checkpoint:
    """A checkpoint that has been found and can do the task; no weights are read yet.

    Args:
        name: a Hub id, a local folder, or sample:NAME.
        revision: branch, tag or commit on the Hub.
        task: image-classification or text-classification.
        pooling: what the head sees of a text: as the checkpoint has it, the first token, or the mean of all.

    Attributes:
        path: where it is loaded from.
        commit: on the Hub, of which all its files are; None for a folder here.

    Raises:
        UserError: it does not exist, cannot be reached or read, or is no classifier of that kind.
    """

    def __init__(
        self, name: str, revision: str = "main", task: str = "image-classification",
        pooling: Literal["own", "cls", "mean"] = "own",
    ) -> None:  # fmt: skip
        self.name = name
        self.task, self._task = task, TASKS[task]
        self._fresh: frozenset[str] = frozenset()
        self.path, self.commit, self._offline = _locate(name, revision)
        self._revision = self.commit or revision
        with _explained(name), hub_access.local_files_only(self._offline):
            self.config: PretrainedConfig = read_config(self.path, revision=self._revision)
        kind = backbone_config(self.config).model_type
        if kind not in self._task.model_types:
            raise mistake(expected=self._task.expected, found=f"{name}, a {kind} model", do=self._task.advice)
        self._pooling: Pooling | None = pooling_of(self.config) if pooling == "own" else pooling
        if self._pooling is not None:
            check_pooling(name, self.config, self._pooling)
        if getattr(self.config, "num_channels", 3) != 3:
            raise mistake(
                expected="a model that takes images of 3 channels",
                found=f"{name} with {self.config.num_channels}",
                do="choose another --model_name_or_path",
            )

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint, downloaded if need be; None if it has none of that name."""
        with _explained(self.name), hub_access.local_files_only(self._offline):
            found = cached_file(
                self.path, name, revision=self._revision, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
        return Path(found) if found else None

    def processor(self) -> ImageProcessor:
        """The checkpoint's own image processor: its size, interpolation, mean and standard deviation."""
        with _explained(self.name), hub_access.local_files_only(self._offline):
            # The same pixels with and without torchvision.
            processor: ImageProcessor = AutoImageProcessor.from_pretrained(
                self.path, revision=self._revision, backend="pil"
            )
        return processor

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        with _explained(self.name), hub_access.local_files_only(self._offline):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path, revision=self._revision, config=backbone_config(self.config)
            )
        return tokenizer

    @property
    def longest_input(self) -> int | None:
        """How many tokens the model has positions for; None if its config does not say."""
        stated = getattr(backbone_config(self.config), "max_position_embeddings", None)
        if not stated or stated < 0:
            return None
        model = self._skeleton(["a", "b"])
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
        # Without the mask: masks are made by looking at its values, and on this device there are none.
        main = {name: value.to("meta") for name, value in inputs.items() if name != "attention_mask"}
        model = self._skeleton(label_names)
        try:
            return model, trace_groups(model, main)
        except (RuntimeError, NotImplementedError):
            # Some look at the values of their inputs: these need real, if random, weights.
            model = self._from_config(label_names)
            return model, trace_groups(model, inputs)

    def _skeleton(self, label_names: Sequence[str]) -> PreTrainedModel:
        with torch.device("meta"):
            return self._from_config(label_names)

    def _from_config(self, label_names: Sequence[str]) -> PreTrainedModel:
        with _explained(self.name), hub_access.local_files_only(self._offline):
            if self._pooling is not None:
                return self._pooled(label_names, fresh_weights=True)[0]
            config = AutoConfig.from_pretrained(self.path, revision=self._revision, **self._settings(label_names))
            model: PreTrainedModel = self._task.classifier.from_config(config, dtype=torch.float32)
        return model

    def _pooled(self, label_names: Sequence[str], *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        assert self._pooling is not None
        return pooled_classifier(
            self.path, pooling=self._pooling, labels=_labels(label_names), revision=self._revision,
            fresh_weights=fresh_weights,
        )  # fmt: skip

    def _settings(self, label_names: Sequence[str]) -> dict[str, Any]:
        """What the model's config is to say: its classes and, for texts, which token is padding."""
        settings = _labels(label_names)
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
        with seeded(seed), _explained(self.name), hub_access.local_files_only(self._offline), _quietly():
            if fresh_weights:
                return self._from_config(label_names)
            model: PreTrainedModel
            if self._pooling is not None:
                model, self._fresh = self._pooled(label_names, fresh_weights=False)
                return model
            model, found = self._task.classifier.from_pretrained(
                self.path, revision=self._revision, dtype=torch.float32, ignore_mismatched_sizes=True,
                output_loading_info=True, use_safetensors=True, **self._settings(label_names),
            )  # fmt: skip
        self._fresh = frozenset(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
        return model

    def describe_fresh(self, groups: Sequence[Group]) -> list[str]:
        """A sentence on what the checkpoint lacks behind the blocks, other than the head: a norm or a pooler, say.

        Raises:
            UserError: it lacks weights of the backbone itself, which would be random without a word.
        """
        lacking = [name for group in groups[:-1] for name in group.parameters if name in self._fresh]
        backbone = [name for group in groups[:-1] if group.name != "final" for name in group.parameters]
        if holes := [name for name in lacking if name in set(backbone)]:
            raise mistake(
                expected=f"in {self.name} all weights of its backbone, in the shapes that its config.json says",
                found=f"{len(holes)} missing or of another shape: {', '.join(holes[:3])}, ...",
                do="use a complete checkpoint of this architecture, or --strategy scratch",
            )
        return [f"Not in the checkpoint, and drawn anew: {', '.join(lacking)}."] if lacking else []

    def finished_classifier(self, label_names: Sequence[str] | None = None) -> PreTrainedModel:
        """The model with its own head, for evaluation.

        Args:
            label_names: the classes it must have, in their order; None takes any.

        Raises:
            UserError: its classes are not those of the data.
        """
        self.class_names(label_names)
        with _explained(self.name), hub_access.local_files_only(self._offline):
            if pooling_of(self.config) is not None:
                return load_pooled(self.path, revision=self._revision)
            model: PreTrainedModel = self._task.classifier.from_pretrained(
                self.path, revision=self._revision, dtype=torch.float32, use_safetensors=True
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


def load_classifier(
    checkpoint: Checkpoint, label_names: Sequence[str], config: RunConfig, inputs: dict[str, Tensor],
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
    groups = trace_groups(model, inputs)
    checkpoint.describe_fresh(groups)
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


def _labels(label_names: Sequence[str]) -> dict[str, Any]:
    """What a model's config says of its classes."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        # A checkpoint of another kind of task would lend the pipeline its sigmoid.
        "problem_type": "single_label_classification",
    }


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


def _locate(name: str, revision: str) -> tuple[str, str | None, bool]:
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
            do="correct --model_name_or_path",
        )
    found = hub_access.ask_hub(name, kind="model", revision=revision)
    return name, hub_access.commit_of(name, revision, found), found is None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint into a message to the user."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        if "use_safetensors=True" in str(error) or _only_pickles(Path(name).expanduser()):
            raise mistake(
                expected=f"weights in safetensors in {name}",
                found="only pickles (pytorch_model.bin), which can run any code when they are read",
                do="where you trust them, convert them with transformers: load the model and save_pretrained it",
            ) from error
        if samples.is_sample(name) or Path(name).expanduser().is_dir() or "outgoing traffic" not in _chain(error):
            raise mistake(
                expected=f"a complete transformers checkpoint in {name}",
                found=str(error).splitlines()[0],
                do="check its config.json, model.safetensors, and preprocessor_config.json or tokenizer.json",
            ) from error
        raise hub_access.unreachable(name, kind="model", setting="model_name_or_path") from error


def _only_pickles(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))


def _chain(error: BaseException | None) -> str:
    words = ""
    while error is not None:
        words, error = f"{words} {error}", error.__cause__ or error.__context__
    return words


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' table of what a new head lacks: `describe_fresh` says what matters, in a line."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's global generator with `seed`, and leave the generator as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
