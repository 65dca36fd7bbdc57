"""Which samples a run uses, and how they are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_transfer.settings.fields import REQUIRED, STEPS, TRAINS, Need, Topic, setting
from hf_transfer.settings.model import exists, on_the_hub
from hf_transfer.settings.ranges import (
    BELOW_ONE,
    DELIMITER,
    ENCODING,
    NAME,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SEPARATOR,
    SHARE,
    at_least,
)

ON_THE_HUB = on_the_hub("data", "dataset_name")
LOCAL_FILES = Need(
    "data in local files",
    lambda config: _is_path(config.data.dataset_name),
    lambda config: f"--dataset_name {config.data.dataset_name}",
)
ONE_DEPTH = Need(
    "a strategy other than deep_probe",
    lambda config: "deep_probe" not in config.strategy.names(),
    "--strategy deep_probe, which chooses what the head sees (--taps)",
)
FUSED = Need(
    "a head of several layers",
    lambda config: config.strategy.names() != ["deep_probe"],
    "--strategy deep_probe, whose head is one layer",
)
AUGMENTED = Need("augmented training images", lambda config: config.image.augmentation != "none", "--augmentation none")


@dataclass(frozen=True)
class DataSettings(Topic):
    """The data set, its columns and its splits."""

    dataset_name: str = setting(
        "Hub id, local folder, zip or tar archive of one, CSV/JSON/Parquet file or folder of them, or sample:NAME.",
        REQUIRED,
        NAME,
    )
    dataset_config_name: str | None = setting(
        "Configuration of a data set on the Hub that has several.", None, ON_THE_HUB
    )
    dataset_revision: str = setting("Branch, tag or commit of a data set on the Hub.", "main", ON_THE_HUB)
    encoding: str = setting("Encoding of CSV and JSON files.", "utf-8", ENCODING, LOCAL_FILES)
    delimiter: str | None = setting(
        "Separator of fields in CSV and TSV files: a sign, or tab, comma, semicolon, pipe (default: as the first lines "
        "show).", None, DELIMITER, LOCAL_FILES,
    )  # fmt: skip
    label_column_name: str | None = setting("Column with the labels (default: chosen by name and type).", None)
    label_column_names: list[str] = setting(
        "Several columns with labels instead: of 0 and 1, one for each label, or of numbers.", []
    )
    label_separator: str | None = setting(
        "Sign between the labels of a text, and between label names in tables of answers (default: semicolon, bar or "
        "comma, as the column has it).", None, SEPARATOR,
    )  # fmt: skip
    problem_type: str | None = setting(
        "What is predicted: single_label_classification, multi_label_classification or regression (default: inferred "
        "from the label column).", None,
    )  # fmt: skip
    validation_fraction: float = setting(
        "Share of the training split to split off if there is no validation split.", 0.15, SHARE, TRAINS
    )
    test_fraction: float = setting(
        "Share of the training split to split off if there is no test split.", 0.15, SHARE, TRAINS
    )
    group_column_name: str | None = setting(
        "Column that tells which samples belong together, such as a patient, a session or an author: splits that are "
        "split off keep them on one side.", None,
    )  # fmt: skip
    split_seed: int = setting(
        "Seed of that split; leave it when --seed varies, and all runs share one test split.", 0, SEED
    )
    max_train_samples_per_class: int | None = setting(
        "Keep at most this many training samples of each class.", None, at_least(1), TRAINS
    )
    on_missing_label: Literal["error", "drop"] = setting(
        "A row without a label: stop, or drop it and count it in the report.", "error"
    )
    on_bad_sample: Literal["error", "skip"] = setting(
        "An unreadable sample: stop, or mask it (up to 1 %% of the rows).", "error"
    )
    verify_samples: int = setting(
        "Decode this many samples before training; headers are read of all.", 10_000, at_least(0)
    )

    def read_with(self) -> dict[str, str]:
        """The settings with which files were read, where they are not the default: the model remembers them."""
        encoding = {} if self.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else {"encoding": self.encoding}
        return encoding | ({"delimiter": self.delimiter} if self.delimiter else {})


@dataclass(frozen=True)
class ImageSettings(Topic):
    """Samples that are images, or have one."""

    image_column_name: str | None = setting("Column with the images (default: chosen by name and type).", None)
    largest_pixel_value: float | None = setting(
        "The value that is white in pictures of more than 8 bits for each channel (default: the largest value in "
        "training, rounded up to 8, 10, 12, 14 or 16 bits; of floats also up to 1).", None, POSITIVE,
    )  # fmt: skip
    augmentation: Literal["none", "light", "standard", "trivial"] = setting(
        "Random changes to training images: small shifts; crops and colour; or one strong operation each.",
        "light", TRAINS,
    )  # fmt: skip
    horizontal_flip: bool | None = setting(
        "Let augmentation mirror images (default: yes, except for samples whose classes it would change).",
        None, TRAINS, AUGMENTED,
    )  # fmt: skip
    cache_views: int | None = setting(
        "Augmented views of a sample; 0: a new one in every epoch (default: 4 behind a frozen prefix, else 0; for a "
        "solved head 4 if there are at most 8 training samples for each class, else none).",
        None, at_least(0), TRAINS, AUGMENTED,
    )  # fmt: skip
    cache_pixels_gb: float = setting(
        "Gigabytes of resized pictures that are kept in --cache_dir, for later epochs and runs; 0: none.",
        8.0, NOT_NEGATIVE, "speed",
    )  # fmt: skip


@dataclass(frozen=True)
class TextSettings(Topic):
    """Samples that are texts, or have one."""

    text_column_name: str | None = setting("Column with the texts (default: chosen by name and type).", None)
    text_prefix: str | None = setting(
        "Put this before every text, as in --text_prefix 'query: ' (default: the prompt that the checkpoint names as "
        "its default; an empty text: nothing).", None, TRAINS,
    )  # fmt: skip
    # In fewer than 3, a model's special tokens leave no room for a text.
    max_seq_length: int | None = setting(
        "Truncate texts to this many tokens (default: the model's limit).", None, at_least(3)
    )
    train_sampling_strategy: Literal["group_by_length", "random"] = setting(
        "Fill a batch with texts of similar length, or with any.", "group_by_length", STEPS
    )


@dataclass(frozen=True)
class SentenceSettings(TextSettings):
    """Samples that are texts or pairs of texts."""

    text_pair_column_name: str | None = setting("Column with a second text, for pairs of sentences.", None)
    pooling: Literal["own", "cls", "mean", "auto"] = setting(
        "What the head sees of a text: what the checkpoint was trained with, if its files name it, and else what the "
        "model's own class takes (own); the first token; the mean of all; or what suits the training samples best "
        "(auto).",
        "own", TRAINS, ONE_DEPTH,
    )  # fmt: skip


@dataclass(frozen=True)
class CaptionSettings(TextSettings):
    """Texts that belong to images."""

    # By length, pairs without a text would fill whole batches.
    train_sampling_strategy: Literal["group_by_length", "random"] = setting(
        "Fill a batch with texts of similar length, or with any.", "random", STEPS
    )


@dataclass(frozen=True)
class FusionSettings(Topic):
    """How an image and its text are combined."""

    fusion: Literal["concat", "gated", "product", "attention"] = setting(
        "How image and text are combined: concatenated, weighted, multiplied, or by cross-attention.",
        "concat",
        TRAINS,
        FUSED,
    )
    modality_dropout: float = setting(
        "Share of the training pairs whose image or text is hidden, never both, so that either may be missing.",
        0.2, BELOW_ONE, STEPS,
    )  # fmt: skip
    auxiliary_weight: float = setting(
        "Weight of the losses of two more heads, one on the image and one on the text alone; 0: none.",
        0.1, NOT_NEGATIVE, STEPS,
    )  # fmt: skip


def _is_path(name: str) -> bool:
    """Whether a data set is a path on this machine, or looks like one that does not exist, which loading it says."""
    return exists(name) or name.startswith((".", "/", "~")) or Path(name).suffix != ""
