"""Numbers, sizes and times in words, in English; `report/language.py` has the Japanese ways."""

import difflib
from collections.abc import Iterable, Sequence

Sizes = Sequence[tuple[float, str]]  # names of large numbers, the largest first
_WORDS: Sizes = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))
LETTERS: Sizes = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES: Sizes = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (0, "kB"))


def nearest(name: object, known: Iterable[str], least: float = 0.6) -> str:
    """What may have been meant by a wrong name: `the nearest is fsdp`, or all that there are."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1, least)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(known) or 'none'}"


def count(value: float) -> str:
    """`20779` as `20,779`."""
    return f"{value:,.0f}"


def compact(value: float, sizes: Sizes = _WORDS) -> str:
    """`9580921` as `9.58 million`."""
    for size, name in sizes:
        if value >= size:
            return f"{_significant_digits(value / size, 3)}{name}"
    return count(value)


def short(value: float, sizes: Sizes = LETTERS) -> str:
    """A number on an axis: `2500000` as `2.5M`, `0.003` as `0.003`."""
    for size, name in sizes:
        if abs(value) >= size:
            return f"{_significant_digits(value / size, 4)}{name}"
    return f"{value:.4g}"


def _significant_digits(value: float, most: int) -> str:
    """A number with at most `most` significant digits and without an exponent: `1234` with three is `1,230`."""
    return f"{float(f'{value:.{most}g}'):,.12g}"


def three_decimals(value: float) -> str:
    """`0.0171` as `0.017`."""
    return f"{value:.3f}"


def percent(share: float) -> str:
    """`0.983` as `98.3%`. A share below 1 is never written as `100%`, and one above 0 never as `0%`."""
    return f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.001), 0.999):.1%}"


def relative(change: float) -> str:
    """How much more or less than something: `0.2` as `20.0%`, and `4.18`, which no share can be, as `418%`."""
    return percent(change) if change < 1 else f"{change:,.0%}"


def probability(value: float) -> str:
    """A probability with two decimals, or `<0.01`."""
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def size(bytes_: float) -> str:
    """Bytes on a disk or a wire: `1200000000000` as `1.2 TB`."""
    unit, name = next(pair for pair in _BYTES if bytes_ >= pair[0])
    return f"{_significant_digits(bytes_ / (unit or 1e3), 3)} {name}"


def memory(bytes_: float) -> str:
    """Bytes of memory: `1610612736` as `1.5 GiB`."""
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 1 << 30 else f"{bytes_ / 2**20:.0f} MiB"


def moment(seconds: float) -> str:
    """A time with three digits, in seconds or milliseconds: `57.5 ms`."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def clock(seconds: float) -> str:
    """`3725` as `1:02:05`, `65` as `1:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def long_time(days: float) -> str:
    """Days, or hours or minutes if it is less than one."""
    if days >= 1:
        return f"{days:,.2f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 1440:.1f} minutes"
