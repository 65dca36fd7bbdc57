"""Samples that are texts, or pairs of texts: columns, loaders, R-Drop, prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_transfer.data import columns
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.data.sample_columns import Selected
from hf_transfer.data.sources import Loaded, read_files
from hf_transfer.data.splits import Split, Splits
from hf_transfer.data.tables import TABLE_BUILDERS
from hf_transfer.data.text_checks import bad_texts, refuse_half_pairs
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import (
    TEXT_PREFIX,
    LocatedSample,
    Modality,
    Regularisation,
    Saved,
    Typed,
    Wanted,
    saved_description,
)
from hf_transfer.modalities.sample_tables import (
    STANDARD_INPUT,
    TEXT_SUFFIXES,
    SampleTable,
    chosen_columns,
    columns_of,
    expanded,
    file_text,
    input_lines,
    is_table,
    refuse_missing,
    table_at,
)
from hf_transfer.settings.data import DataSettings
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig
from hf_transfer.settings.strategy import ADAPTERS
from hf_transfer.targets.target import Target

if TYPE_CHECKING:
    import datasets

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from hf_transfer.data.batches import Loaders
    from hf_transfer.modalities.tokens import TokenPreprocessing
    from hf_transfer.models.pretrained import AnyCheckpoint, Checkpoint


class TextModality(Modality[TextConfig]):
    """Texts, and pairs of texts."""

    name: ClassVar[str] = "text"
    config: ClassVar[type[RunConfig]] = TextConfig
    samples: ClassVar[str] = "texts"
    usable: ClassVar[str] = "a text in every row"
    unusable: ClassVar[str] = "without one"
    kind: ClassVar[str] = "A text"
    task: ClassVar[str] = "text-classification"
    larger_head: ClassVar[bool] = True

    def read(self, path: Path, config: TextConfig) -> Loaded:
        """See `Modality.read`; files of text may be samples."""
        return read_files(path, config.data, self.text_columns(config), samples_are_texts=True)

    def bad_rows(self, split: Split, config: TextConfig) -> dict[int, str]:  # noqa: ARG002
        """See `Modality.bad_rows`."""
        return bad_texts(split)

    def suits(self, features: datasets.Features) -> bool:
        """See `Modality.suits`."""
        return any(columns.is_text(kind) for name, kind in features.items() if not columns.may_be(columns.LABEL, name))

    def select(self, loaded: datasets.DatasetDict, config: TextConfig) -> Selected:
        """See `Modality.select`."""
        train = columns.first_split(loaded)
        chosen = [columns.text_column(train, config.text.text_column_name, config.data)]
        columns.refuse_other_values(train, chosen[0])
        if (pair := config.text.text_pair_column_name) is not None:
            chosen.append(columns.text_pair_column(train, pair, chosen[0]))
        texts = {name: columns.texts(split, chosen) for name, split in loaded.items()}
        settings = ("text_column_name", "text_pair_column_name")
        return Selected(texts, dict(zip(settings, chosen, strict=False)))

    def checkpoint(self, config: TextConfig) -> Checkpoint:
        """See `Modality.checkpoint`."""
        from hf_transfer.models.pretrained import Checkpoint

        # A run has chosen before; what only looks at a model takes it as it is.
        wanted = "own" if config.text.pooling == "auto" else config.text.pooling
        pooling = "class" if wanted == "own" and not _reads_its_own_way(config) else wanted
        return Checkpoint(
            config.model.model_name_or_path, config.model.model_revision, self.task, pooling,
            is_solved=config.trains() and not config.trains_stepwise(),
        )  # fmt: skip

    def preprocessing(self, checkpoint: AnyCheckpoint, config: TextConfig | None, saved: Saved) -> TokenPreprocessing:
        """See `Modality.preprocessing`."""
        return tokens_of(checkpoint.parts[0], config, saved)

    def as_trained(self, config: TextConfig, preprocessing: Any) -> TextConfig:
        """See `Modality.as_trained`; whether a sample is a pair is also as in the training.

        Raises:
            UserError: the model takes single texts, and the settings name pairs.
        """
        pair = config.text.text_pair_column_name
        if preprocessing.pair is False and pair is not None:
            raise user_error(
                expected=f"single texts, as {config.model.model_name_or_path} was trained on",
                found=f"pairs, by --text_pair_column_name {pair}",
                do="leave --text_pair_column_name out",
            )
        return super().as_trained(config, preprocessing)

    def loaders(
        self, splits: Splits, preprocessing: TokenPreprocessing, config: TextConfig, accelerator: Accelerator,
        *, frozen_prefix: bool,  # noqa: ARG002
    ) -> Loaders:  # fmt: skip
        """See `Modality.loaders`; notes report truncated texts."""
        from hf_transfer.data.batches import loaders_of
        from hf_transfer.data.processors import workers_for
        from hf_transfer.modalities.text_batches import (
            TextRows,
            TokenInputs,
            collate_texts,
            describe_truncation,
            orders_of,
        )

        cache = cache_folder(config.store.cache_dir)
        rows = {name: TextRows(split, preprocessing, cache) for name, split in splits.items()}
        # Tokens are in memory or mapped already: workers would only copy them.
        workers = workers_for(config.store.dataloader_num_workers or 0, splits.longest())
        return loaders_of(
            rows, orders_of(rows, config.text, config.training), config.training, workers, accelerator,
            partial(collate_texts, preprocessing), target=splits.target, to_inputs=TokenInputs(rows),
            notes=(*preprocessing.notes, *describe_truncation(rows, preprocessing)),
        )  # fmt: skip

    def regularisation(self, config: TextConfig, model: nn.Module, target: Target, samples: int) -> Regularisation:
        """R-Drop: as set, or else the default of the strategy with so many samples.

        The default is 0 for a model without dropout, and for a target that does not support R-Drop.

        Raises:
            UserError: it is set, and the model has no dropout.
        """
        from hf_transfer.models.dropout import has_dropout, suits_rdrop

        if config.training.rdrop_alpha and not has_dropout(model):
            raise user_error(
                expected="for --rdrop_alpha a model with dropout, so that two passes differ",
                found=f"none in {config.model.model_name_or_path}",
                do="leave --rdrop_alpha out",
            )
        suits = suits_rdrop(model, target)
        alpha = config.training.rdrop_weight(config.strategy.strategy, samples) if suits else 0.0
        note = f"R-Drop: a step passes each text twice through the model (--rdrop_alpha {alpha:g})."
        return Regularisation(rdrop_alpha=alpha, notes=(note,) if alpha else ())

    def sample_of(self, value: Any, saved: Any = None) -> tuple[str, ...]:  # noqa: ARG002
        """A text, a pair of texts, or a mapping with `text` and `text_pair`, as a tuple."""
        if isinstance(value, Mapping):
            value = tuple(value[name] for name in ("text", "text_pair") if name in value)
        texts = (value,) if isinstance(value, str) else value
        are_texts = isinstance(texts, tuple | list) and all(isinstance(text, str) for text in texts)
        if not are_texts or len(texts) not in (1, 2):
            raise user_error(
                expected="a text, or two texts in a tuple", found=f"{value!r:.200}", do="correct this sample"
            )
        refuse_half_pairs(texts)
        return tuple(texts)

    def samples_in(self, files: Sequence[Path], wanted: Wanted, saved: TokenPreprocessing) -> Iterator[LocatedSample]:
        """Each row of a table is a text, or a pair if the model takes pairs; each file of text is one, too."""
        paths = expanded(files, [TABLE_BUILDERS, TEXT_SUFFIXES], expected="tables or files of text")
        for path in paths:
            if path != STANDARD_INPUT and not is_table(path) and path.suffix.lower() not in TEXT_SUFFIXES:
                raise user_error(
                    expected=f"tables ({', '.join(TABLE_BUILDERS)}) or files of text ({', '.join(TEXT_SUFFIXES)})",
                    found=str(path),
                    do="name such a file, or give texts in --text",
                )
            if not is_table(path):
                saved.refuse_other(1, found=f"a single text in {path}", do="name a table with a column for each text")
        tables = {path: _table_of_texts(path, wanted, saved) for path in paths if is_table(path)}
        return _located(paths, tables, wanted, saved)

    def typed(self, samples: Typed, saved: TokenPreprocessing) -> list[LocatedSample]:
        """See `Modality.typed`: texts, or as many pairs."""
        counts = {len(samples.texts)} | ({len(samples.text_pairs)} if samples.text_pairs else set())
        if samples.image is not None or len(counts) > 1:
            raise user_error(
                expected="--text for a model of texts, or as many --text_pair as --text",
                found=samples.given() if samples.image else " and ".join(map(str, sorted(counts))),
                do="correct the command",
            )
        texts = list(zip(samples.texts, *([samples.text_pairs] if samples.text_pairs else []), strict=True))
        do = "add --text_pair" if saved.pair else "leave --text_pair out"
        saved.refuse_other(len(texts[0]), found=samples.given(), do=do)
        return [LocatedSample(None, None, one, saved.fault_of(one), text=" | ".join(one)) for one in texts]


def _reads_its_own_way(config: TextConfig) -> bool:
    """Whether a head can read what the checkpoint was trained with, if that is not what transformers' classifier reads.

    An adapter that is saved alone belongs to that classifier.
    """
    strategy = config.strategy
    is_alone = strategy.strategy in ADAPTERS and not strategy.merge_adapter
    return config.trains() and not is_alone


def _table_of_texts(path: Path, wanted: Wanted, saved: TokenPreprocessing) -> tuple[SampleTable, list[str]]:
    """A table, and its columns of texts."""
    table = table_at(path, wanted, saved.columns)
    existing = table.data.column_names
    usual: dict[str, Sequence[str]] = {"text_column_name": (), "text_pair_column_name": ()}
    chosen = chosen_columns(existing, usual, wanted, saved.columns)
    if "text_column_name" not in chosen:
        labels = DataSettings(dataset_name=str(path), label_column_name=saved.columns.get("label_column_name"))
        with columns_of(path):
            chosen = {"text_column_name": columns.text_column(table.data, None, labels), **chosen}
    names = list(chosen.values())
    refuse_missing(
        path, names, existing, expected="of texts", do="name it in --text_column_name (and --text_pair_column_name)"
    )
    for name in names:
        columns.refuse_other_values(table.data, name)
    do = "name the second one in --text_pair_column_name" if saved.pair else "leave --text_pair_column_name out"
    saved.refuse_other(len(names), found=f"{'one column' if saved.pair else 'two columns'} of {path}", do=do)
    return table, names


def _located(
    paths: Sequence[Path], tables: Mapping[Path, tuple[SampleTable, list[str]]], wanted: Wanted,
    saved: TokenPreprocessing,
) -> Iterator[LocatedSample]:  # fmt: skip
    for path in paths:
        if path in tables:
            table, names = tables[path]
            for row, line, values in table.rows(names):
                texts = tuple(values[name] for name in names)
                yield LocatedSample(path, row, texts, saved.fault_of(texts), line)
        elif path == STANDARD_INPUT:
            for row, text in input_lines():
                yield LocatedSample(path, row, (text,), saved.fault_of((text,)))
        else:
            text, fault = file_text(path, wanted, saved.columns)
            yield LocatedSample(path, None, (text,), fault or saved.fault_of((text,)))


def tokens_of(checkpoint: Checkpoint, config: TextConfig | MultimodalConfig | None, saved: Saved) -> TokenPreprocessing:
    """The preprocessing with a checkpoint's tokenizer; it truncates as set, or else as saved, or else at the limit."""
    from hf_transfer.modalities.text_prefixes import chosen_prefix, with_prefix
    from hf_transfer.modalities.tokens import TokenPreprocessing

    description = saved_description(checkpoint)
    asked = config.text.text_prefix if config is not None else None
    prefix, notes = chosen_prefix(checkpoint, asked, description.get(TEXT_PREFIX, "") if description else None)
    tokenizer = checkpoint.tokenizer()
    tokenizer = with_prefix(tokenizer, prefix, checkpoint.tokenizer_in, has=description.get(TEXT_PREFIX, ""))
    # A run saves its own length as the tokenizer's limit. The next run that starts from its model may use longer texts.
    tokenizer.model_max_length = description.get("tokenizer_limit", tokenizer.model_max_length)
    length = (config.text.max_seq_length if config else None) or saved.get("max_length")
    # A new run finds out again what its model needs.
    padded_length = checkpoint.padded_length or (getattr(checkpoint.config, "padded_length", None) if saved else None)
    tokens = TokenPreprocessing(
        tokenizer, model_limit=checkpoint.longest_input, max_seq_length=length, columns=saved.get("columns"),
        takes_mask=checkpoint.takes_mask, padded_length=padded_length, text_prefix=prefix,
    )  # fmt: skip
    tokens.notes += notes
    pair = config.text.text_pair_column_name if isinstance(config, TextConfig) else None
    tokens.refuse_no_room(2 if tokens.pair or pair else 1)
    return tokens
