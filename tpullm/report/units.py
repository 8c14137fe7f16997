"""How numbers are written on the page, and how they are found in what a run left."""

import math
from typing import Any


def find(value: Any, *keys: str) -> Any:
    """The value under nested keys, or None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any, *keys: str) -> float | None:
    """The finite number under nested keys, or None."""
    found = find(value, *keys)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return found if usable else None


def count(value: float) -> str:
    """`20779` as `20,779`."""
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """`9580921` as `9.6 million`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return count(value)


def short(value: float) -> str:
    """A number on an axis: `2500000` as `2.5M`, `0.003` as `0.003`."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{name}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    """`0.983` as `98.3%`; what is not all is never written as `100%`."""
    return f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.001), 0.999):.1%}"


def probability(value: float) -> str:
    """A probability in two digits; `<0.01` for what is hardly ever."""
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """`372` as `6 min 12 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
