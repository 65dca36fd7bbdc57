"""The settings of a run on images and texts together."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_transfer.config import ImageSettings, Strategy, TextSettings, mistake, setting

TOWERS = ("image_model_name_or_path", "text_model_name_or_path")


@dataclass
class MultimodalConfig(TextSettings, ImageSettings):
    """The settings of `recipes/multimodal.py`."""

    recipe: ClassVar[str] = "multimodal"
    never_empty: ClassVar[tuple[str, ...]] = ("dataset_name", "output_dir")

    # Two towers have no name in common, so here it may be left out.
    model_name_or_path: str | None = setting(  # type: ignore[assignment]
        None, help="A dual encoder (CLIP, SigLIP) instead of two models; with --evaluate_only: a finished model."
    )
    image_model_name_or_path: str | None = setting(
        None, help="Pretrained model for the images: a Hub id, a local folder, or sample:NAME."
    )
    text_model_name_or_path: str | None = setting(
        None, help="Pretrained model for the texts: a Hub id, a local folder, or sample:NAME."
    )
    image_model_revision: str = setting("main", help="Branch, tag or commit of the model for the images on the Hub.")
    text_model_revision: str = setting("main", help="Branch, tag or commit of the model for the texts on the Hub.")
    image_strategy: Strategy | None = setting(None, help="What learns of the image tower (default: as --strategy).")  # noqa: RUF009
    text_strategy: Strategy | None = setting(None, help="What learns of the text tower (default: as --strategy).")  # noqa: RUF009
    # Both towers frozen cost little, and show what there is to gain.
    strategy: Strategy = setting("linear_probe", help="What learns, and when, beside the head: README says it of each.")  # noqa: RUF009
    # Two towers have no base in common, beside which peft could load an adapter.
    merge_adapter: bool = setting(True, help="Adapters are worked into the weights, as they are always for pairs.")
    fusion: Literal["concat", "gated", "product", "attention"] = setting(
        "concat", help="How image and text meet: side by side, weighed, multiplied, or attending to each other."
    )
    modality_dropout: float = setting(
        0.2,
        help="Share of the training pairs whose image or text is hidden, never both, so that either may be missing.",
    )
    auxiliary_weight: float = setting(
        0.1, help="Weight of the losses of two more heads, one on the image and one on the text alone; 0: none."
    )
    # By length, pairs without a text would make up whole batches.
    train_sampling_strategy: Literal["group_by_length", "random"] = setting(
        "random", help="Fill a batch with texts of like length, or with any."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model_name_or_path", *TOWERS):
            value = getattr(self, name)
            self.require(name, "a name or a path", value is None or bool(value.strip()))
        self.require("modality_dropout", "a number from 0 to below 1", 0 <= self.modality_dropout < 1)
        self.require("auxiliary_weight", "a number of at least 0", 0 <= self.auxiliary_weight < float("inf"))
        self._check_models()
        self._check_revisions()
        self._check_what_has_no_effect()

    def strategies(self) -> list[str]:
        """That of the tower for images and, if it is another, that of the tower for texts."""
        return list(dict.fromkeys(self.by_tower().values()))

    def by_tower(self) -> dict[str, str]:
        """The tower for images and that for texts, each with what learns of it."""
        return {"image": self.image_strategy or self.strategy, "text": self.text_strategy or self.strategy}

    def _check_models(self) -> None:
        given = [name for name in TOWERS if getattr(self, name) is not None]
        if self.model_name_or_path is not None and given:
            raise mistake(
                expected="one dual encoder, or two models, one for the images and one for the texts",
                found=f"--model_name_or_path {self.model_name_or_path} together with --{given[0]}",
                do="leave --model_name_or_path out, or name a dual encoder there and nothing else",
            )
        if self.model_name_or_path is None and len(given) < len(TOWERS):
            missing = [f"--{name}" for name in TOWERS if name not in given]
            raise mistake(
                expected=f"{' and '.join(f'--{name}' for name in TOWERS)}, or a dual encoder as --model_name_or_path",
                found=f"--{given[0]} alone" if given else "none of them",
                do=f"add {' and '.join(missing)}",
            )
        if self.evaluate_only and given:
            raise mistake(
                expected="with --evaluate_only a finished model as --model_name_or_path",
                found="two models to start from",
                do="name the folder OUT/model of a run there, and leave the two out",
            )

    def _check_what_has_no_effect(self) -> None:
        if not self.merge_adapter:
            raise mistake(
                expected="--merge_adapter true: a model of two towers is saved whole",
                found="false",
                do="leave it out",
            )
        for name, given in (("probe", self.probe != "logistic"), ("feature_layers", bool(self.feature_layers))):
            if given:
                raise mistake(
                    expected=f"--{name} where the head is one layer, which can be solved",
                    found="images and texts together, whose head is trained",
                    do="leave it out, or use recipes/vision.py or text.py",
                )

    def _check_revisions(self) -> None:
        two = self.model_name_or_path is None
        unused = ("model_revision",) if two else ("image_model_revision", "text_model_revision")
        for name in unused:
            if getattr(self, name) != "main":
                raise mistake(
                    expected=f"--{name} with --{name.replace('revision', 'name_or_path')}",
                    found=f"--{name} {getattr(self, name)} without it",
                    do="name the revision of a model that is used, or leave it out",
                )
