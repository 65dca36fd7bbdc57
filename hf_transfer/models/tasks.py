"""The tasks of models, and which models transformers has for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_transfer.errors import user_error
from hf_transfer.models.encoders import IMAGES, TEXTS, Kind, Rule
from hf_transfer.models.fusion import FusionConfig, FusionModel
from hf_transfer.models.modeling_deep_probe import (
    DeepProbeConfig,
    DeepProbeForImageClassification,
    DeepProbeForSequenceClassification,
)
from hf_transfer.models.modeling_pair_probe import PairProbeConfig, PairProbeModel
from hf_transfer.models.modeling_pooled import PooledConfig, PooledForSequenceClassification
from hf_transfer.models.modeling_pooled_image import PooledForImageClassification, PooledImageConfig
from hf_transfer.models.modeling_pooled_probe import (
    PooledProbeConfig,
    PooledProbeForImageClassification,
    PooledProbeForSequenceClassification,
)


@dataclass(frozen=True)
class Task:
    """How a checkpoint is loaded for a task.

    Attributes:
        classifier: the class that loads it.
        model_types: the types of models that it can load.
        expected: what these models are called in error messages.
        advice: what to do if the model is of another type; {setting} is the setting that names the model.
        own_classifiers: our classes for models that transformers has none for, by their type.
        encoders: what is read by the encoders that get a head of ours; None: none of them do.
    """

    classifier: Any
    model_types: Mapping[str, Any]
    expected: str
    advice: str
    own_classifiers: Mapping[str, Any] = field(default_factory=dict)
    encoders: Kind | None = None

    def classifier_of(self, model_type: str) -> Any:
        """The class that loads a finished model of this type."""
        return self.own_classifiers.get(model_type, self.classifier)

    def takes(self, model_type: str) -> bool:
        """Whether a model of this type can be used for the task, finished or not."""
        if model_type in self.model_types or model_type in self.own_classifiers:
            return True
        try:
            return model_type in CONFIG_MAPPING and self._is_encoder(CONFIG_MAPPING[model_type])
        except (ImportError, ValueError):
            # transformers cannot import its class, as it needs another package.
            return False

    def _is_encoder(self, config: PretrainedConfig | type[PretrainedConfig]) -> bool:
        return self.encoders is not None and self.encoders.is_encoder(config)

    def rule_of(self, config: PretrainedConfig) -> Rule | None:
        """What is done with models of this type; None: nothing special."""
        return self.encoders.rules.get(config.model_type) if self.encoders else None

    def lacks_class(self, config: PretrainedConfig) -> bool:
        """Whether a model of this type gets a head of ours, as transformers has no classifier for it."""
        return self.encoders is not None and config.model_type not in self.model_types

    def refuse_unsuitable(self, name: str, config: PretrainedConfig, setting: str) -> None:
        """Refuse a model that is not for this task.

        Args:
            name: the checkpoint, as the user names it.
            config: of its backbone.
            setting: the setting in which the user names it.

        Raises:
            UserError: it is refused.
        """
        kind, rule = config.model_type, self.rule_of(config)
        if rule is not None and rule.instead:
            raise user_error(
                expected=self.expected,
                found=f"{name}, a {kind} model: {rule.reason}",
                do=f"{rule.instead} (--{setting})",
            )
        if kind not in self.model_types and not self._is_encoder(config):
            raise user_error(
                expected=self.expected, found=f"{name}, a {kind} model", do=self.advice.format(setting=setting)
            )


# Encoders with a head of ours, which are saved with its code.
WITH_OUR_HEAD = (PooledForImageClassification, PooledForSequenceClassification)
TASKS = {
    "image-classification": Task(
        AutoModelForImageClassification,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as a classifier or an encoder of images (ViT, ResNet, DINOv3, CLIP, ...)",
        "choose an image model in --{setting}",
        {
            PooledImageConfig.model_type: PooledForImageClassification,
            DeepProbeConfig.model_type: DeepProbeForImageClassification,
            PooledProbeConfig.model_type: PooledProbeForImageClassification,
        },
        IMAGES,
    ),
    "text-classification": Task(
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "a model that transformers can load as a classifier or an encoder of texts (BERT, RoBERTa, T5, GPT-2, ...)",
        "choose a text model in --{setting}",
        {
            PooledConfig.model_type: PooledForSequenceClassification,
            DeepProbeConfig.model_type: DeepProbeForSequenceClassification,
            PooledProbeConfig.model_type: PooledProbeForSequenceClassification,
        },
        TEXTS,
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
