"""The rows of a Parquet file: only the columns that are asked for are read, and stay as compact as Arrow holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from llmc.errors import InputError, MachineError
from llmc.extras import install
from llmc.files import open_regular


class ParquetRows(Sequence[dict[str, Any]]):
    """One dictionary per row, made when it is asked for."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        """InputError for a file that is no Parquet; it may have others than these columns, and need not have all."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise MachineError(
                f"text {path}: pyarrow, which reads it, is not installed; {install('pyarrow')}"
            ) from error
        self.path = path
        with open_regular(path) as file:
            try:
                reader = parquet.ParquetFile(file)
                names = reader.schema_arrow.names
                self._table = reader.read(columns=[name for name in names if name in set(columns)] or None)
            except (pyarrow.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"text {path}: cannot be read as Parquet ({reason}); download it again") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        row: dict[str, Any] = self._table.slice(at, 1).to_pylist()[0]
        return row
