"""The different values of a column, of any type, are those that Python has."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_transfer.targets.distinct import distinct, has_single_values

VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "texts": (pa.string(), ["b", None, "a", "b", ""]),
    "numbers": (pa.int64(), [3, -1, None, 3]),
    "fractions": (pa.float64(), [0.5, 2.0, 0.5]),
    "half precision": (pa.float16(), [np.float16(0.5), None, np.float16(0.5)]),
    "truth values": (pa.bool_(), [True, None, False, True]),
    "no rows": (pa.string(), []),
}


@pytest.mark.parametrize("name", VALUES)
def test_each_row_has_its_value(name: str) -> None:
    kind, values = VALUES[name]
    rows = datasets.Dataset(pa.table({"other": [0] * len(values), "column": pa.array(values, kind)}), fingerprint=name)
    for chosen in (rows, rows.select(range(0, len(rows), 2)), datasets.concatenate_datasets([rows, rows])):
        different = distinct(chosen, "column")
        assert [different.values[number] for number in different.numbers.tolist()] == chosen["column"][:]
        assert len(set(different.values)) == len(different.values)
        assert different.each(lambda value: value is None).tolist() == [value is None for value in chosen["column"][:]]


@pytest.mark.parametrize(
    ("feature", "single"),
    [
        (datasets.Value("string"), True),
        (datasets.ClassLabel(names=["a"]), True),
        (datasets.Value("timestamp[s]"), False),
        (datasets.List(datasets.Value("string")), False),
        ({"a": datasets.Value("string")}, False),
    ],
)
def test_lists_dates_and_nested_values_are_not_single(feature: Any, single: bool) -> None:
    assert has_single_values(feature) == single
