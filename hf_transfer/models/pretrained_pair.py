"""Classifiers of images with texts, made of two pretrained models or of a dual encoder."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, PreTrainedModel

from hf_transfer.data import hub_access
from hf_transfer.errors import user_error
from hf_transfer.models.image_encoders import image_pooling
from hf_transfer.models.loading import loading_errors, read_weights
from hf_transfer.models.modeling_pooled import PooledConfig, without_pooler
from hf_transfer.models.modeling_pooled_image import PooledImageConfig
from hf_transfer.models.pooling import check_pooling, read_config
from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint
from hf_transfer.models.tasks import TASKS
from hf_transfer.models.timm_models import is_timm
from hf_transfer.models.towers import Tower, fuse
from hf_transfer.settings.model import PairModelSettings
from hf_transfer.settings.run import MODEL, TOWERS
from hf_transfer.targets.target import Target

# Height and width of the images that a tower is tested with, if its configuration names no size.
DEFAULT_SIZE = 64


class TowerSettings(NamedTuple):
    """The settings in which the user names checkpoints: a dual encoder, or one for each tower."""

    dual: str
    image: str
    text: str


OF_A_RUN = TowerSettings(MODEL, *TOWERS)


def dual_checkpoint(name: str, revision: str, settings: TowerSettings = OF_A_RUN) -> Checkpoint:
    """The checkpoint of a dual encoder; see `PairCheckpoint`."""
    return Checkpoint(name, revision, "dual-encoder", setting=settings.dual)


def image_checkpoint(name: str, revision: str, settings: TowerSettings = OF_A_RUN) -> Checkpoint:
    """The checkpoint of an image tower; see `PairCheckpoint`."""
    checkpoint = Checkpoint(name, revision, "image-classification", setting=settings.image)
    if checkpoint.config.model_type in TASKS["dual-encoder"].model_types:
        raise user_error(
            expected=f"in --{settings.image} a model of images alone",
            found=f"{name}, a {checkpoint.config.model_type} model with a tower for each",
            do=f"name it in --{settings.dual}, for both towers",
        )
    if is_timm(checkpoint.config):
        raise user_error(
            expected="for images with texts an image model that transformers has the layers of",
            found=f"{name}, a model of timm",
            do=f"choose another --{settings.image}",
        )
    return checkpoint


def text_checkpoint(name: str, revision: str, settings: TowerSettings = OF_A_RUN) -> Checkpoint:
    """The checkpoint of a text tower; see `PairCheckpoint`."""
    checkpoint = Checkpoint(name, revision, "text-classification", setting=settings.text)
    check_pooling(name, checkpoint.config, "mean", may_split=False)
    return checkpoint


class PairCheckpoint(AnyCheckpoint):
    """The checkpoints of both towers, which were found and are suitable; no weights are read yet.

    Args:
        models: the names of the checkpoints.
        fusion: how image and text are combined; see `FusionConfig`.
        modality_dropout: share of the training pairs whose image or text is hidden.

    Attributes:
        image: the checkpoint of the image tower.
        text: the checkpoint of the text tower; the same one for a dual encoder.
        name: the names of the checkpoints.
        path: the same; the classifier has no single base model.
        commit: None; the classifier has no single base model.
        commits: the commits on the Hub, by the setting that names a checkpoint.
        task: the task of the classifier.

    Raises:
        UserError: a checkpoint does not exist, cannot be reached or read, or cannot be used as this tower.
    """

    task = "image-text-classification"

    def __init__(self, models: PairModelSettings, *, fusion: str = "concat", modality_dropout: float = 0.0) -> None:
        self._fusion, self._modality_dropout = fusion, modality_dropout
        if models.model_name_or_path is not None:
            self.image = self.text = dual_checkpoint(models.model_name_or_path, models.model_revision)
        else:
            self.image = image_checkpoint(str(models.image_model_name_or_path), models.image_model_revision)
            self.text = text_checkpoint(str(models.text_model_name_or_path), models.text_model_revision)
        self.parts = (self.image,) if self.image is self.text else (self.image, self.text)
        # What is said of heads concerns classifiers of one tower.
        self.notes = tuple(note for part in self.parts for note in part.notes_on_type)
        self.name = self.path = " + ".join(part.name for part in self.parts)
        self.commits = self.image.commits | self.text.commits

    def _build(self, target: Target, *, fresh_weights: bool) -> tuple[PreTrainedModel, frozenset[str]]:
        load = self._dual_encoder if self.image is self.text else self._two_models
        image, text, missing = load(fresh_weights)
        size = getattr(image.backbone.config, "image_size", None) or DEFAULT_SIZE
        model = fuse(
            image, text, image_size=max(size) if isinstance(size, list | tuple) else size,
            labels=target.model_settings(), fusion=self._fusion, modality_dropout=self._modality_dropout,
        )  # fmt: skip
        return model, frozenset() if fresh_weights else missing

    def _two_models(self, fresh_weights: bool) -> tuple[Tower, Tower, frozenset[str]]:
        """The towers of two models, and the names of the classifier's weights that are missing there."""
        image, image_missing = _load_backbone(self.image, fresh_weights)
        pooling = self._image_pooling(image, frozenset() if fresh_weights else image_missing)
        if pooling != "pooler" and hasattr(image, "pooler"):
            setattr(image, "pooler", None)  # noqa: B010 - the types of transformers do not allow None
        text, text_missing = _load_backbone(self.text, fresh_weights, pooler=False)
        missing = [f"image_tower.{name}" for name in image_missing] + [f"text_tower.{name}" for name in text_missing]
        return Tower(image, pooling), Tower(text, "mean"), frozenset(missing)

    def _image_pooling(self, image: PreTrainedModel, missing: frozenset[str]) -> str:
        """What is read of the image tower; of the result of an earlier run, what its head has read."""
        if isinstance(self.image.config, PooledImageConfig):
            return self.image.config.pooling
        return image_pooling(self.image.name, image, missing)

    def _dual_encoder(self, fresh_weights: bool) -> tuple[Tower, Tower, frozenset[str]]:
        """The halves of a dual encoder, with the projections into the space that they share; and what is missing."""
        dual: Any
        dual, names = _load_backbone(self.image, fresh_weights)
        missing = frozenset(
            name.replace("vision_model.", "image_tower.", 1).replace("text_model.", "text_tower.", 1) for name in names
        )
        if self.image.config.model_type == "siglip":
            # Its pooler reads the last position, behind padding to a fixed length: see `Checkpoint.padded_length`.
            return Tower(dual.vision_model, "pooler"), Tower(dual.text_model, "pooler"), missing
        image = Tower(dual.vision_model, "pooler", dual.visual_projection.weight)
        return image, Tower(dual.text_model, "pooler", dual.text_projection.weight), missing


def _load_backbone(
    checkpoint: Checkpoint, fresh_weights: bool, *, pooler: bool = True
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The backbone of a checkpoint, and the names of its weights that are missing there; of fresh weights, all."""
    if isinstance(checkpoint.config, PooledConfig | PooledImageConfig):
        make: Any = TASKS[checkpoint.task].classifier_of(checkpoint.config.model_type)
        finished: Any = make(checkpoint.config) if fresh_weights else checkpoint.finished_classifier()
        backbone = finished.backbone
        return backbone, frozenset(name for name, _ in backbone.named_parameters() if fresh_weights)
    load: Callable[..., Any] = AutoModel.from_config if fresh_weights else AutoModel.from_pretrained
    if not pooler:
        load = partial(without_pooler, load)
    with loading_errors(checkpoint.name), hub_access.local_files_only(checkpoint.offline):
        # Of the type as which it is loaded: that in the checkpoint may be another.
        config = read_config(checkpoint.path, revision=checkpoint.revision)
        if not fresh_weights:
            return read_weights(load, checkpoint.path, checkpoint.revision, config=config)
        model = load(config, dtype=torch.float32, trust_remote_code=False)
    return model, frozenset(name for name, _ in model.named_parameters())
