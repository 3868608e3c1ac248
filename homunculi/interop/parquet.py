"""Rows of a .parquet file, read in batches with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from homunculi.errors import InputError, optional

ROWS = 256  # in memory at a time; a row may be a whole book


def records(file: IO[bytes], path: Path, field: str) -> Iterator[dict[str, Any]]:
    """Rows of `file` with the columns `field` and, where there is one, ``split``.

    Args:
        file: seekable, positioned at its start.
        path: what messages call the file.

    Raises:
        InputError: pyarrow is not installed, the file is no parquet file, or it has no column `field`.
    """
    pyarrow = optional("pyarrow", extra="data")
    parquet = optional("pyarrow.parquet", extra="data")
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if field not in columns:
            raise InputError(f"{path} has no column {field!r} (it has {', '.join(columns[:8])}): set text.field")
        wanted = [name for name in (field, "split") if name in columns]
        for batch in table.iter_batches(batch_size=ROWS, columns=wanted):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged or no parquet file ({reason}): copy or download it again") from error
