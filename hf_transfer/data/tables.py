"""Tables on this machine: CSV, JSON and Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_transfer.data import columns, files
from hf_transfer.errors import user_error
from hf_transfer.settings.data import DataSettings

TABLE_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


def load_tables(
    source: Path, tables: Sequence[Path], settings: DataSettings, text_columns: Sequence[str]
) -> datasets.DatasetDict:
    """Tables of one kind; a file whose name begins with a split's name belongs to that split."""
    builders = {TABLE_BUILDERS.get(file.suffix.lower()) for file in tables}
    builder = builders.pop()
    if builders or builder is None:
        raise user_error(
            expected=f"files of one kind among {', '.join(TABLE_BUILDERS)}",
            found=f"{', '.join(sorted({file.suffix or file.name for file in tables}))} in {source}",
            do="name one of them, or a folder that has one kind",
        )
    files.refuse_patterns(source)
    files.refuse_compressed(tables)
    options: dict[str, Any] = {} if builder == "parquet" else {"encoding": settings.encoding}
    if builder == "csv":
        # Only an empty field is missing: pandas would also drop texts and labels such as None, NA, null or nan.
        as_text = dict.fromkeys([*text_columns, *columns.LABEL_NAMES, *columns.TEXT_NAMES], files.text_or_none)
        options |= {"keep_default_na": False, "na_values": [""], "converters": as_text}
    if builder == "json":
        options["parse_agent_traces"] = False
    if all(file.suffix.lower() == ".tsv" for file in tables):
        options["sep"] = "\t"
    where = {"data_dir": str(source)} if source.is_dir() else {"data_files": str(source)}
    loaded = datasets.load_dataset(builder, **where, **options)
    files.refuse_surplus_fields(loaded, source)
    return loaded


def refuse_other_encoding(path: Path, encoding: str) -> None:
    """Name the first bytes of CSV and JSON files that are not valid in `encoding`."""
    for file in files.files_below(path) if path.is_dir() else [path]:
        if TABLE_BUILDERS.get(file.suffix.lower()) not in ("csv", "json") or not file.is_file():
            continue
        try:
            # Not line by line: in UTF-16 the byte of a line feed is half of a character.
            file.read_bytes().decode(encoding)
        except UnicodeDecodeError as error:
            lines = error.object[: error.start].split(b"\n")
            raise user_error(
                expected=f"text in {encoding} in {file}",
                found=f"line {len(lines)}: byte 0x{error.object[error.start]:02x} at column {len(lines[-1]) + 1}",
                do="name the file's encoding, for example --encoding latin-1 or cp1252, or save it as UTF-8",
            ) from error
