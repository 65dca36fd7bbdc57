"""A pretrained classifier with a new head, and the image processor or tokenizer it was trained with."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.hub import cached_file

from hf_transfer.data import hub_access
from hf_transfer.data.samples import is_sample
from hf_transfer.errors import UserError, user_error
from hf_transfer.models.determinism import refuse_random_outputs
from hf_transfer.models.encoders import BY_PILLOW, IMAGES, Pooling
from hf_transfer.models.fusion import FusionConfig, FusionModel
from hf_transfer.models.groups import Group, Inputs
from hf_transfer.models.head_inputs import Wanted, head_input, retyped_as
from hf_transfer.models.image_encoders import read_encoder, with_image_head
from hf_transfer.models.loading import loading_errors, quiet_loading, read_weights
from hf_transfer.models.locating import locate
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig
from hf_transfer.models.modeling_pair import PairConfig
from hf_transfer.models.modeling_pooled_image import PooledImageConfig
from hf_transfer.models.pooling import backbone_config, is_normalized, pooled_classifier, read_config, rule_of_type
from hf_transfer.models.recomputing import recompute
from hf_transfer.models.sentence_encoders import notes_on_lack
from hf_transfer.models.tasks import TASKS
from hf_transfer.models.timm_models import TimmProcessor, is_timm, refuse_equal_labels
from hf_transfer.models.towers import trace
from hf_transfer.models.trust import refuse_other_files
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import Target

HEAD_STANDARD_DEVIATION = 0.02
SIGLIP_TEXT = "siglip_text_model"


class ImageProcessor(Protocol):
    """The part of a transformers image processor that we use."""

    def __call__(self, images: Any, **kwargs: Any) -> Mapping[str, Any]:
        """`pixel_values` of one or several images."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write `preprocessor_config.json`."""


class AnyCheckpoint(ABC):
    """One checkpoint, or one for each tower of a classifier; no weights are read yet.

    Attributes:
        name: a Hub id, a local folder, or sample:NAME; of two towers, both.
        path: where it is loaded from.
        commit: the commit on the Hub of all its files; None for a local folder, and for two towers.
        commits: the same, by the setting that names the checkpoint.
        task: one of `TASKS`.
        parts: the single checkpoints.
        notes: sentences on what is done otherwise than by transformers' own classifier.
        is_read_at_depths: whether another head could read the same model at other depths, as a deep probe does.
        has_our_head: whether the classifier is none of transformers, so that an adapter must be merged into it.
        scaled_if_solved: the pooling whose vectors only a solved head reads scaled to one length; None: there is none.
    """

    name: str
    path: str
    commit: str | None = None
    commits: dict[str, str | None]
    task: str
    parts: "tuple[Checkpoint, ...]"
    notes: tuple[str, ...] = ()
    is_read_at_depths: bool = True
    has_our_head: bool = False
    scaled_if_solved: Pooling | None = None
    _missing: frozenset[str] = frozenset()
    # The shapes of the parameters of the outline, and its groups.
    _outlined: tuple[dict[str, torch.Size], list[Group]] | None = None

    @abstractmethod
    def _build(self, target: Target, *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        """The classifier, and the names of its weights that the checkpoint does not have; of fresh weights, none."""

    def outline(self, target: Target, inputs: Inputs) -> tuple[PreTrainedModel, list[Group]]:
        """The architecture, without weights if possible, which takes little time and memory, and its groups.

        Args:
            target: what is predicted.
            inputs: a small batch to trace the model with.
        """
        # Without the mask: models read its values, and tensors on the meta device have none.
        meta_inputs = {name: value.to("meta") for name, value in inputs.items() if name != "attention_mask"}
        try:
            model = self._without_weights(target)
            groups = trace(model, meta_inputs)
        except UserError:
            raise
        except Exception:
            # Some models read the values of their inputs, and fail in many ways: they need real weights, which may be
            # random. If that was not the reason, the same error comes again.
            model, _ = self._build(target, fresh_weights=True)
            groups = trace(model, inputs)
        self._outlined = _shapes(model), groups
        return model, groups

    def refuse_without_recomputing(self, inputs: Inputs) -> None:
        """Refuse, before weights are read, a model that cannot recompute activations: see `recompute`."""
        recompute(self.outline(Classes(("a", "b")), inputs)[0])

    def groups_of(self, model: PreTrainedModel, inputs: Inputs) -> list[Group]:
        """The groups of the model of this checkpoint; those of its outline, where that has the same parameters.

        Args:
            model: with weights.
            inputs: a small batch to trace the model with.
        """
        if self._outlined is not None and self._outlined[0] == _shapes(model):
            return self._outlined[1]
        return trace(model, inputs)

    def _without_weights(self, target: Target) -> PreTrainedModel:
        with torch.device("meta"):
            return self._build(target, fresh_weights=True)[0]

    def classifier(self, target: Target, *, seed: int, fresh_weights: bool) -> PreTrainedModel:
        """The backbone, or two towers, with a head for the target, in float32.

        Args:
            target: what is predicted; it is saved in the model's config.
            seed: seed of all weights that are not read from the checkpoint.
            fresh_weights: use only the architecture; no weights are read.
        """
        with seeded(seed), quiet_loading():
            model, self._missing = self._build(target, fresh_weights=fresh_weights)
        return model

    def describe_missing(self, groups: Sequence[Group]) -> list[str]:
        """A sentence on missing weights between the blocks and the head, such as those of a norm or a pooler.

        Raises:
            UserError: weights of the backbone itself are missing, and would be random.
        """
        missing = [name for group in groups[:-1] for name in group.parameters if name in self._missing]
        backbone = {name for group in groups[:-1] if group.name != "final" for name in group.parameters}
        if in_backbone := [name for name in missing if name in backbone]:
            raise user_error(
                expected=f"in {self.name} all weights of its backbone, in the shapes of its config.json",
                found=f"{len(in_backbone)} missing or of another shape: {', '.join(in_backbone[:3])}, ...",
                do="use a complete checkpoint of this architecture, or --strategy scratch",
            )
        return [f"Not in the checkpoint, and initialised randomly: {', '.join(missing)}."] if missing else []


class Checkpoint(AnyCheckpoint):
    """A checkpoint that was found and suits the task; no weights are read yet.

    Args:
        name: a Hub id, a local folder, or sample:NAME.
        revision: branch, tag or commit on the Hub.
        task: one of `TASKS`.
        pooling: the input of a text classifier's head: what transformers' classifier reads, if there is one (`class`);
            what the checkpoint was trained with, if its files or our table say that (`own`); the first token, the last
            one, or the mean of all.
        setting: the setting in which the user names the checkpoint.
        is_solved: whether the head is solved while all else stays; what it reads is then scaled to one length, if the
            files of the checkpoint name that.

    Attributes:
        revision: the revision of which files are requested: the commit, if it is known.
        offline: the Hub did not answer, and is not asked again.
        notes_on_type: those of `notes` that say as which type the model is loaded.

    Raises:
        UserError: it does not exist, cannot be reached or read, or cannot be loaded for the task.
    """

    def __init__(
        self, name: str, revision: str = "main", task: str = "image-classification",
        pooling: Wanted = "class", setting: str = "model_name_or_path", *, is_solved: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.parts = name, (self,)
        self.task, self._task = task, TASKS[task]
        self.path, self.commit, self.offline = locate(name, revision, setting)
        self.commits = {setting: self.commit}
        self.revision = self.commit or revision
        with loading_errors(name), hub_access.local_files_only(self.offline):
            self.config: PretrainedConfig = read_config(self.path, revision=self.revision)
            self._retyped = rule_of_type(self.path, revision=self.revision)
            backbone = backbone_config(self.config)
            self._task.refuse_unsuitable(name, backbone, setting)
        with loading_errors(name):
            # Of the samples, all measurements in docs/benchmarks.md are about another pooling than their files name.
            file = None if is_sample(name) else self.file
            head = head_input(name, self.config, self._task, pooling, file, is_solved=is_solved)
        self._pooling, self._normalized, self.is_read_at_depths = head.pooling, head.normalized, head.is_movable
        self.scaled_if_solved = head.pooling if head.normalized and not is_normalized(self.config) else None
        lacks_class = self._task.encoders is IMAGES and self._task.lacks_class(backbone)
        is_finished_probe = isinstance(self.config, DeepProbeConfig)
        self._is_image_encoder = not is_finished_probe and (lacks_class or isinstance(self.config, PooledImageConfig))
        self.has_our_head = self._pooling is not None or self._is_image_encoder
        self.notes_on_type = (retyped_as(backbone.model_type, self._retyped),) if self._retyped else ()
        not_known = notes_on_lack(self.path, self.revision) if head.is_by_files else ()
        self.notes = (*self.notes_on_type, *head.notes, *not_known)
        if getattr(self.config, "num_channels", 3) != 3:
            raise user_error(
                expected="a model that takes images of 3 channels",
                found=f"{name} with {self.config.num_channels}",
                do=f"choose another --{setting}",
            )

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint, downloaded if need be; None if it has none of that name."""
        with loading_errors(self.name), hub_access.local_files_only(self.offline):
            path = cached_file(
                self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
        return Path(path) if path else None

    def processor(self) -> ImageProcessor:
        """The checkpoint's own image processor: its size, interpolation, mean and standard deviation."""
        if (pretrained_cfg := getattr(self.config, "pretrained_cfg", None)) is not None:
            return TimmProcessor(self.name, pretrained_cfg)
        named = self._read(get_image_processor_config).get("image_processor_type")
        # The same pixels with and without torchvision.
        by_pillow = BY_PILLOW[named].from_pretrained if named in BY_PILLOW else None
        load = by_pillow or partial(AutoImageProcessor.from_pretrained, backend="pil")
        processor: ImageProcessor = self._read(load)
        return processor

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer."""
        refuse_other_files(self.name, self._read(get_tokenizer_config))
        tokenizer: PreTrainedTokenizerBase = self._read(AutoTokenizer.from_pretrained, config=self._text_config)
        return tokenizer

    def tokenizer_in(self, folder: str) -> PreTrainedTokenizerBase:
        """A tokenizer of the same model that was saved in a folder."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, config=self._text_config, trust_remote_code=False
        )
        return tokenizer

    @property
    def _text_config(self) -> PretrainedConfig:
        """The configuration of the part that reads texts."""
        has_towers = isinstance(self.config, PairConfig) or self._task is TASKS["dual-encoder"]
        config: PretrainedConfig = self.config.text_config if has_towers else backbone_config(self.config)
        return config

    @property
    def longest_input(self) -> int | None:
        """How many tokens a text may have, by the model's table of positions; None if its config does not say."""
        stated = getattr(self._text_config, "max_position_embeddings", None)
        if not stated or stated < 0:
            return None
        model = self._without_weights(Classes(("a", "b")))
        # RoBERTa and models like it number positions after the padding index: of 514 positions, 512 are for tokens.
        tables = (module for name, module in model.named_modules() if "position" in name)
        padding = (table.padding_idx for table in tables if isinstance(table, nn.Embedding))
        return int(stated) - max((index + 1 for index in padding if index is not None), default=0)

    @property
    def takes_mask(self) -> bool:
        """Whether the model is to be told which tokens are padding."""
        config = self._text_config
        if config.model_type == SIGLIP_TEXT:
            # It was pretrained without: see `padded_length`.
            return False
        # Our own modelling files take a mask, whatever the backbone does with it.
        architecture: Any = None if self._pooling else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
        return architecture is None or "attention_mask" in inspect.signature(architecture.forward).parameters

    @property
    def padded_length(self) -> int | None:
        """How many tokens each text had in pretraining, with padding; None: as many as it has itself.

        SigLIP reads a text from its last position, behind the padding: Zhai et al., "Sigmoid loss for language image
        pre-training", ICCV 2023, https://arxiv.org/abs/2303.15343; transformers documents `padding="max_length"`.
        """
        config = self._text_config
        return int(config.max_position_embeddings) if config.model_type == SIGLIP_TEXT else None

    def _build(self, target: Target, *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        with loading_errors(self.name), hub_access.local_files_only(self.offline):
            if self._pooling is not None:
                return pooled_classifier(
                    self.path, pooling=self._pooling, labels=target.model_settings(), normalized=self._normalized,
                    revision=self.revision, fresh_weights=fresh_weights,
                )  # fmt: skip
            if not self._is_image_encoder:
                return self._of_transformers(target, fresh_weights=fresh_weights)
            encoder, missing = read_encoder(
                self.path, self.revision, target.model_settings(), fresh_weights=fresh_weights
            )
        model, missing = with_image_head(self.name, encoder, missing, target.model_settings())
        return model, frozenset() if fresh_weights else missing

    def _of_transformers(self, target: Target, *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        if self.config.model_type in self._task.own_classifiers:
            return self._task.classifier_of(self.config.model_type)(self.config), frozenset()
        kind, settings = self._task.classifier, self._settings(target)
        config = read_config(self.path, revision=self.revision, **settings)
        if not fresh_weights:
            # Of a timm model the configuration as it was read: transformers fails on what some of them say.
            settings = {"config": config} if self._retyped or is_timm(config) else settings
            return read_weights(kind.from_pretrained, self.path, self.revision, **settings)
        if isinstance(config, FusionConfig):
            return FusionModel(config), frozenset()
        return kind.from_config(config, dtype=torch.float32, trust_remote_code=False), frozenset()

    def _settings(self, target: Target) -> dict[str, Any]:
        """Values of the model's config for the target and, for texts, the padding token."""
        settings = target.model_settings()
        if getattr(self.config, "pad_token_id", 0) is None and self._task is TASKS["text-classification"]:
            tokenizer = self.tokenizer()
            has_padding = tokenizer.pad_token is not None
            settings["pad_token_id"] = tokenizer.pad_token_id if has_padding else tokenizer.eos_token_id
        return settings

    def finished_classifier(self) -> PreTrainedModel:
        """The model with its own head, for evaluation and prediction."""
        kind = self._task.classifier_of(self.config.model_type)
        settings = {}
        if is_timm(self.config):
            refuse_equal_labels(self.name, self.config)
            settings["config"] = self.config
        model: PreTrainedModel = self._read(kind.from_pretrained, dtype=torch.float32, use_safetensors=True, **settings)
        return model

    def _read(self, load: Callable[..., Any], **settings: Any) -> Any:
        """Let transformers read a part of the checkpoint, without running code that is in it."""
        with loading_errors(self.name), hub_access.local_files_only(self.offline):
            return load(self.path, revision=self.revision, trust_remote_code=False, **settings)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def load_classifier(
    checkpoint: AnyCheckpoint, target: Target, inputs: Inputs, *, seed: int, fresh_weights: bool,
    gradient_checkpointing: bool = False,
) -> tuple[PreTrainedModel, list[Group]]:  # fmt: skip
    """A model with a new head, and its groups in depth order.

    Args:
        checkpoint: the pretrained model.
        target: what is predicted.
        inputs: a small batch to trace the model with.
        seed: seed of the head.
        fresh_weights: use only the architecture of the checkpoint.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: the checkpoint is not complete, its outputs are random, or the model does not support gradient
            checkpointing.
    """
    model = checkpoint.classifier(target, seed=seed, fresh_weights=fresh_weights)
    groups = checkpoint.groups_of(model, inputs)
    checkpoint.describe_missing(groups)
    if not isinstance(model, FusionModel):
        # A checkpoint with as many classes as the data would otherwise keep its old head.
        renew_head(model, groups[-1], seed)
    refuse_random_outputs(checkpoint.name, model, inputs)
    if gradient_checkpointing:
        recompute(model)
    return model, groups


def renew_head(model: nn.Module, head: Group, seed: int) -> None:
    """Draw the head's weights from N(0, 0.02²) with `seed`, and set its biases to 0."""
    generator = torch.Generator().manual_seed(seed)
    for name in head.modules:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, 0.0, HEAD_STANDARD_DEVIATION, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, and restore their states afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
