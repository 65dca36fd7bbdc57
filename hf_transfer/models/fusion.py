"""A model of images with texts: two pretrained towers, each with a projection, and a head that sees both.

This file is saved with the weights, beside the one that it imports, and needs only torch and transformers. An image or
a text may be missing:

    model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
    model.predict(image="cup.jpg", text="blue, holds 300 ml")
    model.predict(text="blue, holds 300 ml")

References: projections, late fusion and their sizes are those of Tang et al., "AutoGluon-Multimodal", AutoML 2024,
https://arxiv.org/abs/2404.16233; the gate is that of Arevalo et al., "Gated multimodal units for information fusion",
ICLR workshop 2017, https://arxiv.org/abs/1702.01992; learned vectors for missing modalities, and modality dropout in
training, are those of Shi et al., "Bag of tricks for multimodal AutoML with image, text, and tabular data", 2024,
https://arxiv.org/abs/2412.16243.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

from .modeling_pair import MODALITIES, PairConfig, PairModel, as_sequence, mean_of, pooled, present_of

FUSIONS = ("concat", "gated", "product", "attention")


class FusionConfig(PairConfig):
    """The configurations of both towers, and how their outputs are combined.

    Attributes:
        image_width: width of the image tower's vectors.
        text_width: width of the text tower's vectors.
        fusion: `concat` concatenates both vectors, `gated` takes a learned weighted sum, `product` adds their product
            and their absolute difference to `concat`, `attention` adds attention of the tokens to the patches.
        hidden_size: width of both projections.
        head_size: width of the head's inner layer.
        dropout: before the head's last layer.
        modality_dropout: share of the complete samples whose image or text is hidden in training.
        attention_heads: number of heads of `attention`.
    """

    model_type = "image_text_classifier"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        image_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        image_width: int = 768,
        text_width: int = 768,
        fusion: str = "concat",
        hidden_size: int = 768,
        head_size: int = 128,
        dropout: float = 0.1,
        modality_dropout: float = 0.2,
        attention_heads: int = 4,
        **kwargs: Any,
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is one of {FUSIONS}, not {fusion!r}")
        self.image_width, self.text_width = image_width, text_width
        self.fusion, self.hidden_size, self.head_size = fusion, hidden_size, head_size
        self.dropout, self.modality_dropout, self.attention_heads = dropout, modality_dropout, attention_heads
        super().__init__(image_config, text_config, **kwargs)


@dataclass
class FusionOutput(ModelOutput):
    """Outputs of the model.

    Attributes:
        loss: of `logits`, if labels were given.
        logits: of image and text together [batch, labels].
        image_logits: of the image alone [batch, labels]; meaningless where it is missing.
        text_logits: of the text alone [batch, labels]; meaningless where it is missing.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_logits: Tensor | None = None
    text_logits: Tensor | None = None


class FusionModel(PairModel):
    """Two towers, a projection and a head for each, and a head for both; see `PairModel`."""

    config_class = FusionConfig

    def __init__(
        self,
        config: FusionConfig,
        image_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, image_tower, text_tower)
        labels, width = config.num_labels or 0, config.hidden_size
        self.image_projection = nn.Linear(config.image_width, width)
        self.text_projection = nn.Linear(config.text_width, width)
        self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        # In the order of `MODALITIES`: what replaces a missing vector.
        self.missing = nn.Embedding(len(MODALITIES), width)
        self.image_classifier = nn.Linear(width, labels)
        self.text_classifier = nn.Linear(width, labels)
        self.mixture = _Fusion(config)
        self.inner = nn.Sequential(
            nn.Linear(self.mixture.width, config.head_size),
            nn.LeakyReLU(),
            nn.LayerNorm(config.head_size),
            nn.Dropout(config.dropout),
        )
        self.classifier = nn.Linear(config.head_size, labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> FusionOutput | tuple[Tensor, ...]:
        """Logits of both together and of each alone, and the loss of the former if there are labels.

        Args:
            pixel_values: images [batch, channels, height, width]; a missing one is ignored; None if all are missing.
            input_ids: tokens [batch, length]; a missing text is ignored; None if all are missing.
            attention_mask: 1 for a token, 0 for padding [batch, length]; None if nothing is padded.
            token_type_ids: which text of a pair [batch, length], for a tower that takes it.
            image_present: whether a sample has an image [batch]; None if all have, or none has pixel values.
            text_present: whether a sample has a text [batch]; None if all have, or none has tokens.
            labels: classes [batch], or 0.0 and 1.0 or numbers [batch, labels], as `config.problem_type` says.
            return_dict: False for a tuple; None: as the configuration says.
        """
        given = pixel_values if pixel_values is not None else input_ids
        if given is None:
            raise ValueError("pixel_values or input_ids must be given, or both")
        has_image = present_of(image_present, pixel_values, given)
        has_text = present_of(text_present, input_ids, given)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        patches, image = self._vectors("image", has_image, pixel_values=pixel_values)
        tokens, text = self._vectors("text", has_text, input_ids=input_ids, attention_mask=attention_mask, **types)
        # Before modality dropout: the heads of single modalities learn from all samples.
        single_logits = self.image_classifier(image), self.text_classifier(text)
        if self.training and self.config.modality_dropout > 0.0:
            has_image, has_text = _dropped(has_image, has_text, self.config.modality_dropout)
            patches, image = self._masked("image", has_image, patches, image)
            tokens, text = self._masked("text", has_text, tokens, text)
        fused = self.mixture(image, text, has_image, has_text, patches, tokens, attention_mask)
        logits = self.classifier(self.inner(fused))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = FusionOutput(loss, logits, *single_logits)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return output if as_output else output.to_tuple()

    def _vectors(self, modality: str, present: Tensor, **inputs: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Vectors of the parts [batch, length, width], for attention only, and of images or texts [batch, width].

        Args:
            modality: image, whose parts are patches, or text, whose parts are tokens.
            present: whether a sample has an image or a text [batch].
            **inputs: of the tower; the first is None if all images or texts are missing.
        """
        if next(iter(inputs.values())) is None:
            return None, self.missing.weight[MODALITIES.index(modality)].expand(len(present), -1)
        tower, projection, norm = (self.get_submodule(f"{modality}_{part}") for part in ("tower", "projection", "norm"))
        output = tower(**inputs)
        hidden = as_sequence(output.last_hidden_state)
        pooling = getattr(self.config, f"{modality}_pooling")
        vector = norm(projection(pooled(pooling, output, hidden, inputs.get("attention_mask"))))
        parts = norm(projection(hidden)) if self.mixture.has_attention else None
        return self._masked(modality, present, parts, vector)

    def _masked(
        self, modality: str, present: Tensor, parts: Tensor | None, vector: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """The same vectors; those of missing images or texts are replaced by the learned one."""
        row = MODALITIES.index(modality)
        if parts is not None:
            parts = torch.where(present[:, None, None], parts, self.missing.weight[row])
        return parts, torch.where(present[:, None], vector, self.missing.weight[row])


class _Fusion(nn.Module):
    """Combines the vector of an image and the vector of a text into one vector.

    Args:
        config: the kind of fusion, and the widths.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, self.kind = config.hidden_size, config.fusion
        self.has_attention = config.fusion == "attention"
        # Two more numbers say whether image and text are present.
        self.width = {"concat": 2, "gated": 1, "product": 4, "attention": 3}[config.fusion] * width + 2
        if self.kind == "gated":
            self.gate = nn.Linear(2 * width + 2, width)
        if self.has_attention:
            self.attention = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
            self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, text: Tensor, has_image: Tensor, has_text: Tensor, patches: Tensor | None,
        tokens: Tensor | None, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """[batch, `self.width`] of two [batch, width]; only attention needs `patches` and `tokens`."""
        present = torch.stack([has_image, has_text], 1).to(image.dtype)
        if self.kind == "gated":
            gate = self.gate(torch.cat([image, text, present], 1)).sigmoid()
            return torch.cat([gate * image + (1 - gate) * text, present], 1)
        parts = [image, text]
        if self.kind == "product":
            parts += [image * text, (image - text).abs()]
        if self.has_attention:
            keys = image[:, None] if patches is None else patches
            queries = text[:, None] if tokens is None else tokens
            attended = self.norm(queries + self.attention(queries, keys, keys, need_weights=False)[0])
            parts.append(mean_of(attended, mask if tokens is not None else None))
        return torch.cat([*parts, present], 1)


def _dropped(has_image: Tensor, has_text: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Hide the image of some complete samples and the text of as many others."""
    drawn = torch.rand(len(has_image), device=has_image.device)
    complete = has_image & has_text
    return has_image & ~(complete & (drawn < share / 2)), has_text & ~(complete & (drawn >= 1 - share / 2))
