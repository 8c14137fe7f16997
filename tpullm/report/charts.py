"""Charts: SVG for lines and HTML for words, so that a chart may be of any width and its words keep their size."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpullm.report.html import Markup, join, phrase, tag
from tpullm.report.language import Language
from tpullm.report.units import percent, probability

Points = Sequence[tuple[float, float]]
COLOURS = 6  # .c0 to .c5 in style.css, .c0 is the accent
_MOST_POINTS = 400  # of one line: more cannot be seen, and the page stays small
_SIZE = 1000  # of the SVG's own coordinates, stretched to the width of the page


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend; the last value stands beside it.
        points: (x, y), x ascending.
        colour: 0 is the accent.
        style: `solid`, `faint` (the noise behind what matters) or `dashed` (a constant to compare with).
    """

    name: str
    points: Points
    colour: int = 0
    style: str = "solid"


def line_chart(
    text: Language,
    title: str,
    lines: Sequence[Line],
    x_name: str,
    y_range: tuple[float, float] | None = None,
    write: Callable[[float], str] | None = None,
    large: bool = False,
) -> Markup:
    """Lines over a common x axis, with a legend if they are several; what lies outside of `y_range` is cut off.

    `write` writes the last values in the legend; without it they look like the numbers on the axes.
    """
    lines = [Line(line.name, thinned(line.points), line.colour, line.style) for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    left, right = (min(xs), max(xs)) if min(xs) < max(xs) else (0.0, max(xs[0], 1.0))  # one place: from the start to it
    low, high = y_range or padded(min(ys), max(ys))

    def across(x: float) -> float:
        return (x - left) / (right - left)

    def down(y: float) -> float:
        return (high - y) / (high - low)

    x_ticks = [_tick("x", across(x), text.short(x)) for x in ticks(left, right, 5)]
    y_labels = {y: text.short(y) for y in ticks(low, high, 5)}
    y_ticks = [_tick("y", down(y), label) for y, label in y_labels.items()]
    paths = [_path(line, across, down) for line in lines]
    svg = tag("svg", *paths, viewBox=f"0 0 {_SIZE} {_SIZE}", preserveAspectRatio="none", aria_hidden="true")
    room = f"--label:{max(map(_letters, y_labels.values()))}"  # of the longest label, which stands beside the plot
    plot = tag("div", *y_ticks, *x_ticks, svg, class_="plot large" if large else "plot", style=room)
    legend = (
        tag("div", *(_legend(line, write or text.short) for line in lines), class_="legend") if len(lines) > 1 else None
    )
    head = tag("div", tag("b", title), legend, class_="chart-head")
    return tag("div", head, plot, tag("div", x_name, class_="x-name"), class_="chart")


def padded(low: float, high: float) -> tuple[float, float]:
    """A range with some air around it; never empty, and not below 0 unless `low` is."""
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(low - air, 0.0) if low >= 0 else low - air), high + air


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers within a range."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """At most `most` points: means of equal stretches, and the last point as it is."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    means = [tuple(sum(values) / len(stretch) for values in zip(*stretch, strict=True)) for stretch in stretches]
    return [*means[:-1], points[-1]]


def _path(line: Line, across: Callable, down: Callable) -> Markup:
    points = line.points
    if len(points) == 1:  # a dot: a round cap makes a line without length visible
        points = [points[0], points[0]]
    data = "M" + " ".join(f"{across(x) * _SIZE:.1f},{down(y) * _SIZE:.1f}" for x, y in points)
    return tag("path", d=data, class_=f"c{line.colour % COLOURS} {line.style}", vector_effect="non-scaling-stroke")


def _tick(axis: str, share: float, label: str) -> Markup:
    side = "left" if axis == "x" else "top"
    return tag("div", tag("span", label), class_=f"tick {axis}", style=f"{side}:{share:.2%}")


def _letters(label: str) -> int:
    """How wide a label is, in letters: a Japanese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in label)


def _legend(line: Line, write: Callable[[float], str]) -> Markup:
    last = tag("span", write(line.points[-1][1]), class_="value")
    swatch = tag("i", class_=f"swatch c{line.colour % COLOURS} {line.style}")
    return tag("span", swatch, phrase(line.name), " ", last)


def share_bar(parts: Sequence[tuple[str, float]], write: Callable[[float], str] = percent) -> Markup:
    """One bar cut in shares, with a legend; `parts` are (name, amount)."""
    total = sum(amount for _, amount in parts) or 1.0
    shares = [(name, amount / total, amount) for name, amount in parts]
    segments = [
        tag("i", class_=f"c{i % COLOURS}", style=f"width:{share:.3%}", title=f"{name}: {percent(share)}")
        for i, (name, share, _) in enumerate(shares)
    ]
    legend = [
        tag(
            "span",
            tag("i", class_=f"swatch c{i % COLOURS}"),
            phrase(name),
            " ",
            tag("span", write(amount), class_="value"),
        )
        for i, (name, _, amount) in enumerate(shares)
    ]
    return join([tag("div", *segments, class_="shares", aria_hidden="true"), tag("div", *legend, class_="legend")])


def paired_bars(rows: Sequence[tuple[str, float, float]], rest: tuple[str, float, float] | None = None) -> Markup:
    """Words with two probabilities each: the model's in the accent colour, the true one below it in grey.

    `rest` is the sum of the words left out: it stands below them, without bars, which would dwarf the others.
    """
    longest = max([value for _, *values in rows for value in values] or [1.0]) or 1.0

    def bar(kind: str, value: float) -> Markup:
        return tag("i", class_=f"bar {kind}", style=f"width:{value / longest:.2%}")

    cells = []
    for word, model, truth in [*rows, *([rest] if rest else [])]:
        bars = () if (word, model, truth) == rest else (bar("model", model), bar("truth", truth))
        numbers = tag("dd", probability(model), tag("span", probability(truth)), class_="pair")
        cells += [tag("dt", phrase(word)), tag("dd", *bars, class_="bars"), numbers]
    return tag("dl", *cells, class_="paired")


def single_bars(
    rows: Sequence[tuple[str, float, str]], accent: str | None = None, whole: float | None = None
) -> Markup:
    """Names with a bar and the number as it is to be written.

    Args:
        rows: (name, value, written).
        accent: the row with the accent colour; all of them if None.
        whole: the value of a full bar; the largest if None.
    """
    longest = whole or max([value for _, value, _ in rows] or [1.0]) or 1.0
    cells = [
        (
            tag("dt", phrase(name)),
            tag("dd", tag("i", class_=_kind(name, accent), style=f"width:{value / longest:.2%}"), class_="bars"),
            tag("dd", written, class_="pair"),
        )
        for name, value, written in rows
    ]
    return tag("dl", *(cell for row in cells for cell in row), class_="paired single")


def _kind(name: str, accent: str | None) -> str:
    return "bar model" if accent in (None, name) else "bar truth"
