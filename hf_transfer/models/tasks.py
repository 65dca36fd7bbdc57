"""The tasks of models, and which models transformers has for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_transfer.models.fusion import FusionConfig, FusionModel
from hf_transfer.models.modeling_deep_probe import (
    DeepProbeConfig,
    DeepProbeForImageClassification,
    DeepProbeForSequenceClassification,
)
from hf_transfer.models.modeling_pair_probe import PairProbeConfig, PairProbeModel
from hf_transfer.models.modeling_pooled import PooledConfig, PooledForSequenceClassification


@dataclass(frozen=True)
class Task:
    """How a checkpoint is loaded for a task.

    Attributes:
        classifier: the class that loads it.
        model_types: the types of models that it can load.
        expected: what these models are called in error messages.
        advice: what to do if the model is of another type; {setting} is the setting that names the model.
        own_classifiers: our classes for models that transformers has none for, by their type.
    """

    classifier: Any
    model_types: Mapping[str, Any]
    expected: str
    advice: str
    own_classifiers: Mapping[str, Any] = field(default_factory=dict)

    def classifier_of(self, model_type: str) -> Any:
        """The class that loads a finished model of this type."""
        return self.own_classifiers.get(model_type, self.classifier)


TASKS = {
    "image-classification": Task(
        AutoModelForImageClassification,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as an image classifier (ViT, ResNet, ConvNeXt, Swin, ...)",
        "choose an image model in --{setting}",
        {DeepProbeConfig.model_type: DeepProbeForImageClassification},
    ),
    "text-classification": Task(
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as a text classifier (BERT, RoBERTa, DeBERTa, DistilBERT, GPT-2, ...)",
        "choose a text model in --{setting}",
        {
            PooledConfig.model_type: PooledForSequenceClassification,
            DeepProbeConfig.model_type: DeepProbeForSequenceClassification,
        },
    ),
    "dual-encoder": Task(
        AutoModel,
        dict.fromkeys(("clip", "siglip")),
        "a model with a tower for images and one for texts (CLIP, SigLIP)",
        "name two models, in --image_model_name_or_path and --text_model_name_or_path",
    ),
    "image-text-classification": Task(
        FusionModel,
        {FusionConfig.model_type: FusionModel, PairProbeConfig.model_type: PairProbeModel},
        "a classifier of images with texts, trained by recipes/multimodal.py",
        "name the folder OUT/model of a run in --{setting}",
        {PairProbeConfig.model_type: PairProbeModel},
    ),
}
