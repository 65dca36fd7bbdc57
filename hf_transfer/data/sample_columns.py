"""How a modality finds its samples in the rows of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from hf_transfer.data import verification
from hf_transfer.data.groups import Keys
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.levels import Levels
from hf_transfer.data.rows import gathered
from hf_transfer.data.sources import Loaded, load, read_files
from hf_transfer.data.splits import Split
from hf_transfer.settings.run import RunConfig

if TYPE_CHECKING:
    import datasets

# The settings that name columns which are read as they are written, of all modalities.
TEXT_SETTINGS = (
    "label_column_name", "text_column_name", "text_pair_column_name", "image_column_name", "group_column_name"
)  # fmt: skip


class Selected(NamedTuple):
    """The samples of a data set.

    Attributes:
        splits: the columns of the samples alone.
        columns: the columns that were chosen, by the setting that names each.
    """

    splits: dict[str, datasets.Dataset]
    columns: dict[str, str]


Config = TypeVar("Config", bound=RunConfig)


class SampleColumns(ABC, Generic[Config]):
    """How a modality finds its samples in the rows of a data set; see `modalities.modality.Modality`.

    Attributes:
        samples: what a sample is, in the plural.
        usable: what all rows are expected to be, for messages ("images that can be read").
        unusable: what bad rows are, for messages ("that cannot be read").
    """

    samples: ClassVar[str]
    usable: ClassVar[str]
    unusable: ClassVar[str]

    def read(self, path: Path, config: Config) -> Loaded:
        """The data set in a file or folder on this machine."""
        return read_files(path, config.data, self.text_columns(config))

    def text_columns(self, config: Config) -> list[str]:
        """The columns that the settings name and that are read as text even if their values look like numbers."""
        values = config.flat()
        return [str(values[name]) for name in TEXT_SETTINGS if values.get(name)]

    @abstractmethod
    def select(self, loaded: datasets.DatasetDict, config: Config) -> Selected:
        """Only the columns of the samples, for each split."""

    @abstractmethod
    def bad_rows(self, split: Split, config: Config) -> dict[int, str]:
        """Rows that cannot be used, each with the reason."""

    def levels(self, split: Split, config: Config) -> Mapping[int, Levels]:  # noqa: ARG002
        """The values of the pictures that have more than 8 bits for each channel, by row."""
        return {}

    def measured(self, train: Split, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """Settings that are saved with the model: as they are given or, if left open, as training samples tell."""
        return {}

    def checked(self, split: Split, name: str, config: Config) -> Split:
        """The split with its bad rows masked.

        Raises:
            UserError: there are some, and they are not to be masked, or they are too many.
        """
        bad = self.bad_rows(split, config)
        verification.refuse_bad_rows(bad, split, name, config.data, usable=self.usable, unusable=self.unusable)
        return replace(split, unreadable=bad, levels=self.levels(split, config))

    def notes_on_samples(self, splits: Mapping[str, Split], columns: Mapping[str, Any]) -> list[str]:  # noqa: ARG002
        """Notes on the checked samples.

        Args:
            splits: of the data set.
            columns: the columns that were chosen, by the setting that names each, and what was `measured`.

        Raises:
            UserError: together they are no data to train on.
        """
        return []

    def copies(self, splits: Mapping[str, Split]) -> dict[str, int]:
        """For validation and test, if there is training: how many rows have an exact copy in it."""
        return verification.copies(splits)

    def keys(self, split: Split, config: Config) -> list[Keys]:
        """By what rows belong together when a split is cut: those that share a key of a column stay together.

        The first column has a key for each row: of its content. A modality that knows near-duplicates adds a column.
        """
        return [verification.content_keys(split, config)]


def read_data(config: RunConfig, modality: SampleColumns[Any], given: datasets.DatasetDict | None) -> Loaded:
    """The data set that the settings name, or data in memory.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    if given is not None:
        import datasets

        return Loaded(datasets.DatasetDict({name: gathered(rows) for name, rows in given.items()}))
    return load(config.data, lambda path: modality.read(path, config), cache_folder(config.store.cache_dir))
