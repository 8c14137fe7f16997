"""Charts: lines are SVG and words are HTML, so that a chart can have any width while its words keep their size.

`templates/charts.js` shows the values under the pointer and zooms, from the paths and the ranges that stand here.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tpullm.report.html import phrase, tag
from tpullm.report.language import Language

Points = Sequence[tuple[float, float]]
COLOURS = 6  # .c0 to .c5 in style.css; .c0 is the accent colour
WORDS = 6  # that have bars; the others are added up
_LEAST_REST = 0.005  # the others get no line if their probability together is less
_MOST_POINTS = 400  # of one line: nobody sees more, and the page stays small
_FAINTEST = 0.08  # the opacity of the smallest value: it is still seen
_SIZE = 1000  # the side of the SVG's own coordinate system, which is stretched to the width of the page


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: its name in the legend, where the last value stands beside it.
        points: (x, y), x ascending.
        colour: 0 is the accent colour.
        style: `solid`, `faint` (for a noisy line) or `dashed` (for a constant).
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
    values: bool = True,
) -> Markup:
    """Lines over a common x axis, with a legend if there are several lines.

    Args:
        y_range: the lowest and the highest y that is shown; else all of the lines is shown.
        write: writes the last values in the legend; else they are written like the numbers on the axes.
        large: a higher chart.
        values: the last value of each line stands in the legend.
    """
    lines = [Line(line.name, thinned_points(line.points), line.colour, line.style) for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    left, right = (min(xs), max(xs)) if min(xs) < max(xs) else (0.0, max(xs[0], 1.0))  # one point stands at the end
    low, high = y_range or padded_range(min(ys), max(ys))

    def across(x: float) -> float:
        return (x - left) / (right - left)

    def down(y: float) -> float:
        return (high - y) / (high - low)

    x_ticks = [_axis_tick("x", across(x), text.short(x)) for x in axis_ticks(left, right, 5)]
    y_labels = {y: text.short(y) for y in axis_ticks(low, high, 5)}
    y_ticks = [_axis_tick("y", down(y), label) for y, label in y_labels.items()]
    paths, entries = [], []
    for line in lines:
        look = f"c{line.colour % COLOURS} {line.style}"
        points = line.points if len(line.points) > 1 else [*line.points] * 2  # of length 0: its round cap makes a dot
        data = "M" + " ".join(f"{across(x) * _SIZE:.2f},{down(y) * _SIZE:.2f}" for x, y in points)
        paths.append(tag("path", d=data, class_=look, vector_effect="non-scaling-stroke", data_name=line.name))
        last = tag("span", (write or text.short)(points[-1][1]), class_="value") if values else None
        swatch = tag("i", class_=f"swatch {look}")
        entries.append(tag("span", swatch, phrase(line.name), " " if values else None, last))
    svg = tag("svg", *paths, viewBox=f"0 0 {_SIZE} {_SIZE}", preserveAspectRatio="none", aria_hidden="true")
    # Room beside the plot for the longest label, in letters. A Japanese character counts as two.
    room = max(sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in label) for label in y_labels.values())
    kind = "plot large" if large else "plot"
    ranges = {"data_x": f"{left!r} {right!r}", "data_y": f"{low!r} {high!r}"}  # for `templates/charts.js`
    plot = tag("div", *y_ticks, *x_ticks, svg, class_=kind, style=f"--label:{room}", **ranges)
    legend = tag("div", *entries, class_="legend") if len(entries) > 1 else None
    head = tag("div", tag("b", title), legend, class_="chart-head")
    return tag("div", head, plot, tag("div", x_name, class_="x-name"), class_="chart")


def padded_range(low: float, high: float) -> tuple[float, float]:
    """A range with a margin: never empty, and below 0 only if `low` is."""
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def axis_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers within a range."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thinned_points(points: Points, most: int = _MOST_POINTS) -> Points:
    """At most `most` points: the means of stretches of equal length, and the last point unchanged."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    means = [tuple(sum(values) / len(stretch) for values in zip(*stretch, strict=True)) for stretch in stretches]
    return [*means[:-1], points[-1]]


def _axis_tick(axis: str, share: float, label: str) -> Markup:
    side = "left" if axis == "x" else "top"
    return tag("div", tag("span", label), class_=f"tick {axis}", style=f"{side}:{share:.2%}")


def heat_map(
    text: Language,
    title: str,
    columns: Sequence[float],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    x_name: str,
) -> Markup:
    """A row of cells for each name: the stronger the colour, the larger the value, on a logarithmic scale.

    Args:
        columns: x of each column, ascending.
        rows: names, each with a value for every column: None, or one that is not above 0, has no cell.
    """
    every = -(-len(columns) // 80)  # at most so many cells in a row
    rows = [(name, values[::every]) for name, values in rows]
    logs = [math.log(value) for _, values in rows for value in values if value and value > 0]
    low, high = min(logs, default=0.0), max(logs, default=0.0)

    def opacity(log: float) -> str:
        return f"{_FAINTEST + (1 - _FAINTEST) * ((log - low) / ((high - low) or 1.0)):.2f}"

    lines = []
    for name, values in rows:
        width = _SIZE / len(values)
        cells = (
            tag("rect", x=f"{i * width:.1f}", y=0, width=f"{width:.1f}", height=1, opacity=opacity(math.log(v)))
            for i, v in enumerate(values)
            if v and v > 0
        )
        svg = tag("svg", *cells, viewBox=f"0 0 {_SIZE} 1", preserveAspectRatio="none", aria_hidden="true")
        lines += [tag("dt", phrase(name)), tag("dd", svg)]
    scale = [
        tag("span", tag("i", class_="swatch c0", style=f"opacity:{shown}"), text.short(float(f"{math.exp(log):.2g}")))
        for log, shown in ((low, f"{_FAINTEST:.2f}"), (high, "1.00"))
    ]
    head = tag("div", tag("b", title), tag("div", *scale, class_="legend"), class_="chart-head")
    ends = tag("div", tag("span", text.short(columns[0])), tag("span", text.short(columns[-1])), class_="ends")
    return tag("div", head, tag("dl", *lines, class_="heat"), ends, tag("div", x_name, class_="x-name"), class_="chart")


def likeliest(words: Sequence[tuple[str, float, float]]) -> tuple[Sequence, tuple[float, float] | None, float]:
    """The likeliest words of two distributions, the sums of all others if they count, and the largest probability.

    Args:
        words: (word, the model's probability, the true probability), in any order.
    """
    shown = sorted(words, key=lambda word: -max(word[1:]))[:WORDS]
    rest = tuple(max(0.0, 1.0 - sum(word[column] for word in shown)) for column in (1, 2))
    longest = max((value for _, *values in shown for value in values), default=0.0) or 1.0
    return shown, rest if max(rest) >= _LEAST_REST else None, longest
