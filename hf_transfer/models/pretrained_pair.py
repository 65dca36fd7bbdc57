"""Two pretrained models, or a dual encoder, found and made into a classifier of images with texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data import hub_access
from hf_transfer.data.inputs import ImageProcessor, PixelPipeline
from hf_transfer.data.tokens import TokenPipeline
from hf_transfer.models.explained import explained, quietly
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import Group
from hf_transfer.models.modeling_pooled import without_pooler
from hf_transfer.models.pooling import check_pooling, load_pooled, pooling_of, read_config
from hf_transfer.models.pretrained import Checkpoint, fresh_in_words, labels_of, outlined, seeded
from hf_transfer.models.towers import Tower, fuse, image_pooling_of

TASK = "image-text-classification"
# Where a configuration names no size, any will do.
ANY_SIZE = 64


def find_pair(config: MultimodalConfig) -> "PairCheckpoint | Checkpoint":
    """What the settings name: what both towers start from or, to be judged as it is, a finished model.

    Raises:
        UserError: see `PairCheckpoint`.
    """
    if config.evaluate_only:
        return Checkpoint(str(config.model_name_or_path), config.model_revision, TASK)
    return PairCheckpoint(config)


def pipelines_of(
    checkpoint: "PairCheckpoint | Checkpoint", *, max_seq_length: int | None = None
) -> tuple[PixelPipeline, TokenPipeline]:
    """The image processor and the tokenizer of a checkpoint, made ready.

    Args:
        checkpoint: of a classifier of both, or of its towers.
        max_seq_length: cut texts behind so many tokens; None: behind what the model takes.
    """
    limit = checkpoint.longest_input
    pixels = PixelPipeline(checkpoint.processor())
    return pixels, TokenPipeline(checkpoint.tokenizer(), model_limit=limit, max_seq_length=max_seq_length)


class PairCheckpoint:
    """The checkpoints of both towers, which have been found and can be towers; no weights are read yet.

    Args:
        config: names them, and says how they are fused.

    Attributes:
        image: the checkpoint of the tower for images.
        text: that of the tower for texts; the same, if it is a dual encoder's.
        name: what they are called, together.
        path: likewise; a classifier of both has no single base.
        commit: None, for the same reason.
        commits: on the Hub, by the setting that names a checkpoint.
        task: what the classifier is for.

    Raises:
        UserError: one does not exist, cannot be reached or read, or cannot be such a tower.
    """

    def __init__(self, config: MultimodalConfig) -> None:
        self._config, self._fresh = config, frozenset[str]()
        if config.model_name_or_path is not None:
            self.image = self.text = Checkpoint(config.model_name_or_path, config.model_revision, "dual-encoder")
        else:
            self.image = Checkpoint(
                str(config.image_model_name_or_path), config.image_model_revision, "image-classification",
                setting="image_model_name_or_path",
            )  # fmt: skip
            self.text = Checkpoint(
                str(config.text_model_name_or_path), config.text_model_revision, "text-classification",
                setting="text_model_name_or_path",
            )  # fmt: skip
            check_pooling(self.text.name, self.text.config, "mean")
        self.name = self.path = " + ".join(part.name for part in self.parts)
        self.commit: str | None = None
        self.commits = self.image.commits | self.text.commits
        self.task = TASK

    @property
    def parts(self) -> tuple[Checkpoint, ...]:
        """The single checkpoints."""
        return (self.image,) if self.image is self.text else (self.image, self.text)

    def processor(self) -> ImageProcessor:
        """The image processor of the tower for images."""
        return self.image.processor()

    def tokenizer(self) -> Any:
        """The tokenizer of the tower for texts."""
        return self.text.tokenizer()

    @property
    def longest_input(self) -> int | None:
        """How many tokens the tower for texts has positions for."""
        return self.text.longest_input

    def outline(self, label_names: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[PreTrainedModel, list[Group]]:
        """See `Checkpoint.outline`."""
        return outlined(lambda: self._fused(label_names, fresh_weights=True), inputs)

    def classifier(self, label_names: Sequence[str], *, seed: int, fresh_weights: bool) -> FusionModel:
        """Both towers in float32, projections and a head; see `Checkpoint.classifier`."""
        with seeded(seed), quietly():
            return self._fused(label_names, fresh_weights=fresh_weights)

    def describe_fresh(self, groups: Sequence[Group]) -> list[str]:
        """See `Checkpoint.describe_fresh`."""
        return fresh_in_words(self.name, groups, self._fresh)

    def _fused(self, label_names: Sequence[str], *, fresh_weights: bool) -> FusionModel:
        config = self._config
        load = self._halves if self.image is self.text else self._two
        image, text = load(fresh_weights)
        size = getattr(image.backbone.config, "image_size", None) or ANY_SIZE
        return fuse(
            image, text, image_size=max(size) if isinstance(size, list | tuple) else size,
            labels=labels_of(label_names), fusion=config.fusion, modality_dropout=config.modality_dropout,
        )  # fmt: skip

    def _two(self, fresh_weights: bool) -> tuple[Tower, Tower]:
        """Two models, each with what its checkpoint lacks."""
        image, lacking = _loaded(self.image, fresh_weights)
        pooling = image_pooling_of(image, lacking)
        if pooling != "pooler" and hasattr(image, "pooler"):
            setattr(image, "pooler", None)  # noqa: B010 - transformers declares it as what it is otherwise
        text, lacking_text = _loaded(self.text, fresh_weights, pooler=False)
        if not fresh_weights:
            self._note({"image": lacking, "text": lacking_text})
        return Tower(image, pooling), Tower(text, "mean")

    def _halves(self, fresh_weights: bool) -> tuple[Tower, Tower]:
        """The halves of a dual encoder, with the projections into the space that they share."""
        dual: Any
        dual, lacking = _loaded(self.image, fresh_weights)
        if not fresh_weights:
            halves = {"image": "vision_model.", "text": "text_model."}
            self._note(
                {
                    tower: frozenset(name.removeprefix(prefix) for name in lacking if name.startswith(prefix))
                    for tower, prefix in halves.items()
                }
            )
        if self.image.config.model_type == "siglip":
            # Its own pooling of a text is its last place, which it expects to be padding up to a fixed length.
            return Tower(dual.vision_model, "pooler"), Tower(dual.text_model, "mean")
        return (
            Tower(dual.vision_model, "pooler", dual.visual_projection.weight),
            Tower(dual.text_model, "pooler", dual.text_projection.weight),
        )

    def _note(self, lacking: Mapping[str, frozenset[str]]) -> None:
        self._fresh = frozenset(f"{tower}_tower.{name}" for tower, names in lacking.items() for name in names)


def _loaded(
    checkpoint: Checkpoint, fresh_weights: bool, *, pooler: bool = True
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A checkpoint's backbone, and the names of its weights that it lacks; of fresh weights, all."""
    make = (lambda load, *names, **more: load(*names, **more)) if pooler else without_pooler
    with explained(checkpoint.name), hub_access.local_files_only(checkpoint.offline):
        if pooling_of(checkpoint.config) is not None:
            own: Any = load_pooled(checkpoint.path, revision=checkpoint.revision)
            return own.backbone, frozenset()
        if fresh_weights:
            config = read_config(checkpoint.path, revision=checkpoint.revision)
            model = make(AutoModel.from_config, config, dtype=torch.float32, trust_remote_code=False)
            return model, frozenset(name for name, _ in model.named_parameters())
        model, found = make(
            AutoModel.from_pretrained, checkpoint.path, revision=checkpoint.revision, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True, use_safetensors=True, trust_remote_code=False,
        )  # fmt: skip
    return model, frozenset(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
