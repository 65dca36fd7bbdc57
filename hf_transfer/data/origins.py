"""Where each row of a data set comes from: its file, and its line in it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Origins:
    """The file and the line of each row of a data set.

    Attributes:
        files: paths.
        file_numbers: of each row the position of its file in `files` [rows].
        lines: of each row the line at which it starts, as an editor counts; 0: the file is the sample, or has no
            lines [rows].
    """

    files: tuple[str, ...]
    file_numbers: npt.NDArray[np.int32]
    lines: npt.NDArray[np.int64]

    def of(self, row: int) -> tuple[str, int | None]:
        """The file of a row, and its line; None: the file has no lines."""
        return self.files[int(self.file_numbers[row])], int(self.lines[row]) or None

    def whole_file(self, row: int) -> str | None:
        """The file that is a row; None: it has other rows, or lines."""
        file, line = self.of(row)
        return file if line is None and np.count_nonzero(self.file_numbers == self.file_numbers[row]) == 1 else None

    def describe(self, row: int) -> str:
        """The file and line of a row, for messages; its place, from 1, in a file of several rows without lines."""
        file, line = self.of(row)
        if line:
            return f"{file}, line {line}"
        of_file = np.flatnonzero(self.file_numbers == self.file_numbers[row])
        return f"{file}, row {np.searchsorted(of_file, row) + 1}" if len(of_file) > 1 else file
