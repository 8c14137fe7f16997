"""One child for each process that reads what strangers wrote: pages and Parquet may cost hours, memory or a crash."""

import functools
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited

_WHAT = "\0"


class ReadingError(Exception):
    """The child could not read something, within its limits; the message goes on after the name of it."""


def call(function: str, *arguments: Any) -> Any:
    """The result of `module:name`, called in the child; it starts with the first call, and again after an end."""
    try:
        return _child().call(_WHAT, function, *arguments)
    except UserError as error:
        raise ReadingError(str(error).replace(f"{_WHAT}: ", "").replace(", do not use it", "")) from None


def close() -> None:
    """End the child, if there is one; for a process that goes on after it has read."""
    if _child.cache_info().currsize:
        _child().close()


@functools.cache
def _child() -> Limited:
    return Limited()
