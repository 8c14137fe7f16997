"""How numbers are written in English; `language.py` has the Japanese ways."""

from collections.abc import Sequence

Sizes = Sequence[tuple[float, str]]
_WORDS: Sizes = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))
_LETTERS: Sizes = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """`20779` as `20,779`."""
    return f"{value:,.0f}"


def compact(value: float, sizes: Sizes = _WORDS) -> str:
    """`9580921` as `9.58 million`; `sizes` are names of large numbers, the largest first."""
    for size, name in sizes:
        if value >= size:
            return f"{_digits(value / size, 3)}{name}"
    return count(value)


def short(value: float, sizes: Sizes = _LETTERS) -> str:
    """A number on an axis: `2500000` as `2.5M`, `0.003` as `0.003`."""
    for size, name in sizes:
        if abs(value) >= size:
            return f"{_digits(value / size, 4)}{name}"
    return f"{value:.4g}"


def _digits(value: float, most: int) -> str:
    """A number with at most `most` significant digits and without an exponent: `1234` with three is `1,230`."""
    return f"{float(f'{value:.{most}g}'):,.12g}"


def three_decimals(value: float) -> str:
    """`0.0171` as `0.017`."""
    return f"{value:.3f}"


def percent(share: float) -> str:
    """`0.983` as `98.3%`. A share below 1 is never written as `100%`, and one above 0 never as `0%`."""
    return f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.001), 0.999):.1%}"


def probability(value: float) -> str:
    """A probability with two decimals, or `<0.01`."""
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"
