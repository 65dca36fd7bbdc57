"""What a modality is: one object that holds everything that depends on what a sample is."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from hf_transfer.data.levels import LARGEST_PIXEL_VALUE
from hf_transfer.data.pictures import DECODED_SIDE
from hf_transfer.data.sample_columns import Config, SampleColumns
from hf_transfer.data.splits import Splits
from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.target import Target
from hf_transfer.versions import versions

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from torch import Tensor, nn

    from hf_transfer.data.batches import Batch, Loaders
    from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint

# Saved beside the weights: everything else that predictions depend on.
PREPROCESSING_FILE = "preprocessing.json"
SCHEMA = 1
# Numbers of tokens and of pixels in that file.
LENGTHS = ("max_length", "tokenizer_limit", DECODED_SIDE)
# What is put before each text; the name is that of the setting.
TEXT_PREFIX = "text_prefix"
# Of the settings with which the training data were read, those of one file.
READ_WITH = ("encoding", "delimiter")
# The content of such a file, and the settings that name columns, by name; None where they are left open.
Saved = Mapping[str, Any]
Wanted = Mapping[str, str | None]


class Mixer(Protocol):
    """Mixes the samples of a batch with each other; see `mixing.Mixing`."""

    def __call__(
        self, inputs: Batch, targets: Tensor, counted: Tensor, index: Tensor, epoch: int, /
    ) -> tuple[Batch, Tensor]:
        """Mixed inputs and targets, by inputs, targets, mask, row numbers and epoch."""


class Preprocessing(ABC):
    """From samples to model inputs; the same object serves training, evaluation and prediction.

    Attributes:
        columns: of a finished model: the columns of its training data, by the setting that names them, and the
            settings with which they were read.
    """

    columns: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def inputs(self, samples: Sequence[Any]) -> Batch:
        """Model inputs of samples that belong to no split."""

    @abstractmethod
    def example(self) -> Batch:
        """Model inputs of two samples that differ, to trace a model with."""

    def drawn(self, rows: int, words: int, seed: int) -> Batch:  # noqa: ARG002
        """Model inputs of random samples, to compare two forms of a model; by default the example, repeated.

        Args:
            rows: how many samples.
            words: how many the longest text has; without effect on pictures.
            seed: of the random numbers.
        """
        return {name: one.repeat(rows, *[1] * (one.ndim - 1))[:rows] for name, one in self.example().items()}

    def portable(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        """Write what a program without torch and transformers needs for the same inputs; the rest comes back as JSON.

        Args:
            folder: to write into.

        Raises:
            UserError: only torch or transformers can make these inputs.
        """
        raise user_error(
            expected="a model of images, of texts, or of images with texts",
            found=f"{type(self).__name__}, which needs torch",
            do="predict with hf-transfer predict",
        )

    def adapt_to(self, model: nn.Module) -> list[str]:  # noqa: ARG002
        """Choose what depends on how the model itself behaves, before the first batch; sentences on that."""
        return []

    def fault_of(self, sample: Any) -> str:  # noqa: ARG002
        """Why there can be no answer to a sample, such as an empty text; empty: there can be one."""
        return ""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files of transformers' own processors."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Everything else that predictions depend on, as JSON."""


@dataclass(frozen=True)
class Regularisation:
    """What a modality adds to the loss of a step.

    Attributes:
        auxiliary_weight: weight of the losses of further heads, each of which sees a part of a sample alone.
        rdrop_alpha: weight of the agreement of two passes with different dropout; 0: one pass.
        mixer: mixes the samples of a batch; None: they are not mixed.
        notes: sentences on this for the report.
    """

    auxiliary_weight: float = 0.0
    rdrop_alpha: float = 0.0
    mixer: Mixer | None = None
    notes: tuple[str, ...] = ()


class LocatedSample(NamedTuple):
    """A sample outside of a data set.

    Attributes:
        path: the picture, or the table that the sample is in; None: it is in no file.
        row: its row in a table, counted from 1 below the header; None: the file is the sample.
        sample: as `Preprocessing.inputs` takes it.
        fault: why there can be no answer; empty: there can be one.
        line: of the file, as an editor counts it; None: unknown, or the file has no lines.
        text: by which people know a sample that is in no file.
    """

    path: Path | None
    row: int | None
    sample: Any
    fault: str = ""
    line: int | None = None
    text: str | None = None


class Typed(NamedTuple):
    """Samples as they are typed on a command line.

    Attributes:
        image: the path of a picture.
        texts: one or several.
        text_pairs: a second text for each of them.
    """

    image: Path | None = None
    texts: Sequence[str] = ()
    text_pairs: Sequence[str] = ()

    def given(self) -> str:
        """Which of them there are, for messages."""
        flags = {"--image": self.image, "--text": self.texts, "--text_pair": self.text_pairs}
        return " and ".join(flag for flag, value in flags.items() if value) or "none of them"


class Modality(SampleColumns[Config]):
    """What a sample is.

    A new modality is a subclass in a file of its own, its settings, and a line in `table.MODALITIES`.

    Attributes:
        name: of the modality.
        config: the settings of its runs.
        kind: what a classifier of it is called ("An image").
        task: what the Hub and pipelines call the task.
        has_pipeline: whether `transformers.pipeline` knows the task.
        larger_head: whether a new head starts with larger weights when all of the model learns.
    """

    name: ClassVar[str]
    config: ClassVar[type[RunConfig]]
    kind: ClassVar[str]
    task: ClassVar[str]
    has_pipeline: ClassVar[bool] = True
    larger_head: ClassVar[bool] = False

    @abstractmethod
    def suits(self, features: datasets.Features) -> bool:
        """Whether a data set with these columns has such samples."""

    def checkpoint(self, config: Config) -> AnyCheckpoint:
        """The pretrained model that the settings name; no weights are read yet.

        Raises:
            UserError: it does not exist, cannot be read, or is not a model of this modality.
        """
        from hf_transfer.models.pretrained import Checkpoint

        return Checkpoint(config.model.model_name_or_path, config.model.model_revision, self.task)

    @abstractmethod
    def preprocessing(self, checkpoint: AnyCheckpoint, config: Config | None, saved: Saved) -> Preprocessing:
        """The checkpoint's own processors, with the changes that the settings ask for, or else those that were saved.

        Args:
            checkpoint: pretrained, or of a finished model.
            config: settings of the run; None: there are none.
            saved: of a finished model: `saved_description`; empty for a run that trains.
        """

    def for_run(self, preprocessing: Any, config: Config) -> Modality[Config]:  # noqa: ARG002
        """The modality in a run: what its checks make of samples may be kept for the loaders.

        Args:
            preprocessing: of the run.
            config: settings of the run.
        """
        return self

    def saved_preprocessing(self, checkpoint: Checkpoint) -> Any:
        """The preprocessing that was saved with a finished model; without one, the checkpoint's own."""
        return self.preprocessing(checkpoint, None, saved_description(checkpoint))

    def as_trained(self, config: Config, preprocessing: Any) -> Config:
        """The settings for the evaluation of a finished model: columns that are left open are those of its training.

        Args:
            config: the settings.
            preprocessing: as it was saved with the model.
        """
        values = config.flat()
        return config.replaced(
            **{
                name: column
                for name, column in preprocessing.columns.items()
                if name not in READ_WITH and values.get(name, "") in (None, [])
            }
        )

    @abstractmethod
    def loaders(
        self, splits: Splits, preprocessing: Any, config: Config, accelerator: Accelerator, *, frozen_prefix: bool
    ) -> Loaders:
        """Loaders for all three splits.

        Args:
            splits: checked splits.
            preprocessing: of the run.
            config: batch sizes, order, augmentation, workers.
            accelerator: the processes that share the batches.
            frozen_prefix: whether the first layers stay frozen: then a sample has few views, which can be stored.
        """

    def parts(self, loaders: Loaders) -> dict[str, Loaders]:  # noqa: ARG002
        """The same batches with only one part of each sample, by its name; empty where samples have one part."""
        return {}

    def regularisation(self, config: Config, model: nn.Module, target: Target, samples: int) -> Regularisation:  # noqa: ARG002
        """Additions to the loss of a step.

        Args:
            config: the settings of the run.
            model: that is trained.
            target: what is predicted.
            samples: of the training split.

        Raises:
            UserError: the settings ask for one that this model or target does not support.
        """
        return Regularisation()

    @abstractmethod
    def sample_of(self, value: Any, saved: Any = None) -> Any:
        """A sample as `Preprocessing.inputs` takes it, from the value that a Python program passes.

        Args:
            value: the sample.
            saved: the preprocessing of the model; None: there is none.

        Raises:
            UserError: it is not such a sample, or cannot be read.
        """

    @abstractmethod
    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: Any) -> Iterable[LocatedSample]:
        """The samples in files, one by one; a sample that cannot be read has a fault.

        Args:
            files: files that hold samples, tables of them, folders of either, or - for lines of standard input.
            wanted: the settings that name columns, and `encoding` and `delimiter`, by name; None where they are left
                open.
            saved: the preprocessing of the model.

        Raises:
            UserError: a file that has no such samples, or a table that cannot be read.
        """

    def typed(self, samples: Typed, saved: Any) -> list[LocatedSample]:  # noqa: ARG002
        """The samples on a command line.

        Args:
            samples: as they are typed.
            saved: the preprocessing of the model.

        Raises:
            UserError: these are no such samples.
        """
        raise user_error(
            expected=f"files, for a model of {self.samples}",
            found=samples.given(),
            do="name files, or a folder of them",
        )


def save_preprocessing(
    preprocessing: Preprocessing, modality: str, columns: Mapping[str, Any], problem_type: str, folder: Path
) -> None:
    """Write transformers' own files, and `preprocessing.json`, into the folder of a model.

    Args:
        preprocessing: of the run.
        modality: its name.
        columns: of the training data, by the setting that names each.
        problem_type: of the target.
        folder: of the model.
    """
    preprocessing.save(folder)
    content = {
        "schema": SCHEMA,
        "modality": modality,
        "problem_type": problem_type,
        "columns": dict(columns),
        **preprocessing.description(),
        "versions": versions(),
    }
    (folder / PREPROCESSING_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def saved_description(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint's `preprocessing.json`, with at least `columns`; empty without such a file.

    Raises:
        UserError: it cannot be read, or was written by a later version.
    """
    path = checkpoint.file(PREPROCESSING_FILE)
    return {} if path is None else read_description(path, checkpoint.name)


def read_description(path: Path, model: str) -> dict[str, Any]:
    """The content of a `preprocessing.json`; see `saved_description`.

    Args:
        path: of the file.
        model: its name, for messages.

    Raises:
        UserError: it cannot be read, or was written by a later version.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        schema = int(content["schema"])
        content["columns"] = {
            str(name): list(map(str, column)) if isinstance(column, list) else str(column)
            for name, column in content["columns"].items()
        }
        if LARGEST_PIXEL_VALUE in content["columns"]:
            white = float(content["columns"][LARGEST_PIXEL_VALUE])
            if not 0 < white < math.inf:
                raise ValueError(f"{LARGEST_PIXEL_VALUE} is {white}")
            content["columns"][LARGEST_PIXEL_VALUE] = white
        content |= {name: int(content[name]) for name in LENGTHS if name in content}
        if not isinstance(prefix := content.get(TEXT_PREFIX, ""), str):
            raise TypeError(f"{TEXT_PREFIX} is {prefix!r}")
        if (side := content.get(DECODED_SIDE, 1)) < 1:
            raise ValueError(f"{DECODED_SIDE} is {side}")
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise user_error(
            expected=f"a {PREPROCESSING_FILE} in {model} as hf_transfer writes it",
            found=f"{type(error).__name__}: {error}",
            do="name the folder OUT/model of a run, or restore that file",
        ) from error
    if schema > SCHEMA:
        raise user_error(
            expected=f"a {PREPROCESSING_FILE} that this version can read (schema {SCHEMA})",
            found=f"schema {schema} in {model}",
            do="update hf-transfer-learning",
        )
    return content
