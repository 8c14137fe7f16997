"""The rows of a Parquet file, some at a time; a child with limits reads them (`system/process/limited.py`).

A Parquet file says itself how much memory each of its pages takes, and the library believes it.
"""

from collections.abc import Iterator
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.log import one_line

ROWS = 16  # at a time: each may have 4 MiB, and an answer of the child has 64
BUFFER_BYTES = 1 << 20  # read at once of a column: a group of rows may have gigabytes
_reading: dict[str, Iterator[list[dict]]] = {}  # in the child


def more(path: str, name: str) -> list[dict[str, Any]]:
    """In the child: the next rows of a file, none at its end.

    Raises:
        UserError: it is not Parquet; `name` begins the error.
    """
    import pyarrow

    try:
        return next(_reading.setdefault(path, _batches(path)), [])
    except (pyarrow.ArrowException, OSError) as error:
        why = one_line(str(error), 200)
        raise UserError(f"{name}: is not Parquet or is cut off ({why}); copy or download it again") from None


def _batches(path: str) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve memory that they never use
    with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
        for batch in table.iter_batches(batch_size=ROWS, use_threads=False):
            if batch.num_rows:
                yield [_plain(row) for row in batch.to_pylist()]


def _plain(value: Any) -> Any:
    """A value as JSON. A null is a key that a row does not have: in Parquet, all rows have all keys. Bytes are none."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not isinstance(item, bytes | None)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return None if isinstance(value, bytes) else str(value)
