"""Which checkpoints are loaded otherwise than by transformers' own classifier for their type, and why.

A type of models that is in no table here is loaded by that classifier. Where transformers has none, every encoder that
`AutoModel` loads gets a head of ours: see `modeling_pooled.py` and `modeling_pooled_image.py`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

Pooling = Literal["cls", "mean", "last"]


@dataclass(frozen=True)
class Rule:
    """What is done with one type of models.

    Attributes:
        reason: why, in a part of a sentence.
        loaded_as: the type as which it is loaded and saved; empty: its own.
        pooling: what the head of a text model reads of its encoder, which is taken alone; None: see `loaded_as`.
        instead: what to do, as the type is refused; empty: it is not.
    """

    reason: str
    loaded_as: str = ""
    pooling: Pooling | None = None
    instead: str = ""


_ENCODER_ALONE = Rule(
    "the decoder is left out, as the mean of the encoder's tokens makes better vectors of texts (Ni et al., "
    "Sentence-T5, ACL Findings 2022, https://arxiv.org/abs/2108.08877)",
    pooling="mean",
)
_PICTURES_OF_ANY_SHAPE = Rule(
    "it reads patches of pictures of any shape with a mask, and here all pictures of a run have one size",
    instead="choose a SigLIP 2 checkpoint of one size, whose type is siglip, such as google/siglip2-base-patch16-224",
)
IMAGE_RULES: Mapping[str, Rule] = {
    "vit_mae": Rule(
        "the class for vit_mae leaves out patches at random, also in evaluation "
        "(https://github.com/huggingface/transformers/issues/20328), and a vit has the same layers",
        loaded_as="vit",
    ),
    "siglip2": _PICTURES_OF_ANY_SHAPE,
    "siglip2_vision_model": _PICTURES_OF_ANY_SHAPE,
    "timm_backbone": Rule(
        "transformers makes it from the name of a timm model, and reads no weights of the checkpoint",
        instead="name the model of timm itself, such as timm/resnet50.a1_in1k",
    ),
    "imagegpt": Rule(
        "it reads numbers of colour clusters (input_ids) in place of pixels", instead="choose another image model"
    ),
}
TEXT_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), _ENCODER_ALONE),
    "clip_text_model": Rule(
        "it sees all others, and is the vector of a text that this model was trained with (Radford et al., CLIP, ICML "
        "2021, https://arxiv.org/abs/2103.00020)",
        pooling="last",
    ),
}
# Image processors that exist for torchvision alone. Here the same steps with the same values are made by Pillow, on
# pixels of 8 bits: DINOv3's own scales before it resizes, so that it does not round.
BY_PILLOW: Mapping[str, Any] = dict.fromkeys(
    ("DINOv3ViTImageProcessor", "DINOv3ViTImageProcessorFast"), ViTImageProcessorPil
)
# How `AutoModelForTextEncoding` differs from `AutoModel`: it takes the encoder alone.
WITHOUT_DECODER = frozenset(kind for kind, rule in TEXT_RULES.items() if rule is _ENCODER_ALONE)


@dataclass(frozen=True)
class Kind:
    """What encoders read, and rules for some of them.

    Attributes:
        rules: by the type of the model.
        reads: name of its inputs.
        not_reads: names of inputs that only models of other samples have.
    """

    rules: Mapping[str, Rule]
    reads: str
    not_reads: tuple[str, ...]

    def is_encoder(self, config: PretrainedConfig | type[PretrainedConfig]) -> bool:
        """Whether `AutoModel` loads it as a model with one stack of layers that reads such inputs alone.

        Args:
            config: of a model, or the class of its configuration.
        """
        kind = config if isinstance(config, type) else type(config)
        if kind not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
            return False
        listed: Any = MODEL_MAPPING[kind]
        architecture = listed[0] if isinstance(listed, tuple | list) else listed
        names = inspect.signature(architecture.forward).parameters
        return self.reads in names and not names.keys() & set(self.not_reads)


SOUNDS = ("input_features", "input_values")
IMAGES = Kind(IMAGE_RULES, reads="pixel_values", not_reads=("input_ids", *SOUNDS))
TEXTS = Kind(TEXT_RULES, reads="input_ids", not_reads=("pixel_values", *SOUNDS))


def retyped(values: Mapping[str, Any]) -> tuple[dict[str, Any], Rule | None]:
    """The values of a configuration, of the type as which the model is loaded; and the rule, if that is another one.

    Args:
        values: as they stand in `config.json`.
    """
    before = values.get("model_type")
    rule = IMAGE_RULES.get(str(before))
    if rule is None or not rule.loaded_as:
        return dict(values), None
    former, latter = (vars(CONFIG_MAPPING[kind]()) for kind in (str(before), rule.loaded_as))
    dropped = {*(former.keys() - latter.keys()), "architectures"}
    return {name: value for name, value in values.items() if name not in dropped} | {"model_type": rule.loaded_as}, rule
