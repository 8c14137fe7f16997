"""Charts show the numbers that they are given, at the size that these have."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.report.charts import Line, axis_ticks, heat_map, likeliest, line_chart, padded_range, thinned_points
from tpullm.report.language import ENGLISH, named
from tpullm.report.rendering import environment

bars = environment().get_template("bars.html").module
numbers = st.floats(-1e9, 1e9)


def widths(markup):
    return [float(width) for width in re.findall(r"width:([\d.]+)%", markup)]


def coordinates(markup):
    points = re.findall(r"(-?[\d.]+),(-?[\d.]+)", re.search(r'd="M([^"]+)"', markup)[1])
    return [(float(x), float(y)) for x, y in points]


few = settings(max_examples=30)


@few
@given(numbers, st.floats(1e-6, 1e9))
def test_ticks_are_few_evenly_spaced_and_within_the_range(low, size):
    found = axis_ticks(low, low + size, 5)
    if size > abs(low) * 1e-6:  # else floats cannot tell the ticks apart
        assert 1 <= len(found) <= 6
        steps = [b - a for a, b in zip(found, found[1:], strict=False)]
        assert max(steps, default=0) - min(steps, default=0) <= 1e-6 * size + 1e-9
        assert all(low - 1e-6 * size - 1e-9 <= tick <= low + size * (1 + 1e-6) + 1e-9 for tick in found)


@few
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=300), st.integers(1, 50))
def test_a_long_line_is_thinned_and_ends_where_it_ended(points, most):
    kept = thinned_points(points, most)
    assert len(kept) <= most or len(kept) == len(points) <= most
    assert tuple(kept[-1]) == points[-1]
    points = [(float(x), 10.0 * x) for x in range(100)]
    means = [(x + 4.5, 10 * x + 45.0) for x in range(0, 90, 10)]
    assert thinned_points(points, 10) == [*means, (99.0, 990.0)]


@few
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_a_chart_can_be_drawn_of_any_finite_values(values):
    chart = line_chart(ENGLISH, "loss", [Line("a", list(enumerate(values)))], "steps")
    assert len(coordinates(chart)) == max(2, len(values))
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in coordinates(chart))


@few
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40))
def test_the_values_can_be_read_from_the_path_and_the_ranges_as_the_script_does(values):
    points = [(100.0 * n, value) for n, value in enumerate(values)]
    chart = line_chart(ENGLISH, "loss", [Line("a <b>", points)], "steps")
    (left, right), (low, high) = (map(float, re.search(f'data-{axis}="(.+?) (.+?)"', chart).groups()) for axis in "xy")
    read = [(left + x / 1000 * (right - left), high - y / 1000 * (high - low)) for x, y in coordinates(chart)]
    for (x, y), (x_read, y_read) in zip(points, read, strict=True):
        assert abs(x - x_read) <= 1e-5 * (right - left) and abs(y - y_read) <= 1e-5 * (high - low)
    assert 'data-name="a &lt;b&gt;"' in chart


def test_the_legend_has_the_colours_of_the_lines_and_their_last_values():
    lines = [Line("a", [(0, 1.0), (1, 2.0)], 1), Line("b", [(0, 3.0), (1, 4.5)], 5, "faint"), Line("c", [(0, 0.5)], 0)]
    chart = line_chart(ENGLISH, "loss", lines, "steps", write="{:.2f}".format)
    drawn = re.findall(r'<path d="[^"]*" class="([^"]*)"', chart)
    assert drawn == ["c1 solid", "c5 faint", "c0 solid"] == re.findall(r'class="swatch ([^"]*)"', chart)
    assert re.findall(r'class="value">([^<]*)<', chart) == ["2.00", "4.50", "0.50"]


def test_ticks_stand_along_their_axis_in_order():
    chart = line_chart(ENGLISH, "loss", [Line("a", [(0, 0.0), (10, 100.0)])], "steps")
    across = re.findall(r'class="tick x" style="left:([\d.]+)%"><span>([\d.]+)<', chart)
    down = re.findall(r'class="tick y" style="top:([\d.]+)%"><span>([\d.]+)<', chart)
    assert [float(place) for place, _ in across] == [10 * float(label) for _, label in across] and len(across) == 6
    places = [float(place) for place, _ in down]
    assert places == sorted(places, reverse=True) and [float(label) for _, label in down] == [0, 25, 50, 75, 100]


def test_higher_values_stand_higher_and_one_point_stands_at_the_end_of_what_led_to_it():
    (left, top), (right, bottom) = coordinates(line_chart(ENGLISH, "loss", [Line("a", [(0, 5.0), (10, 1.0)])], "steps"))
    assert left == 0 and right == 1000 and top < bottom
    chart = line_chart(ENGLISH, "loss", [Line("a", [(10_240, 4.0)])], "tokens")
    assert {x for x, _ in coordinates(chart)} == {1000} and ">0<" in chart and ">10k<" in chart
    chart = line_chart(named("ja"), "速度", [Line("速度", [(0, 10_000.0), (10, 90_000.0)])], "ステップ")
    assert ">2万<" in chart and "--label:3" in chart, "the numbers of its language, and room for them"


def test_a_range_has_air_and_is_never_empty():
    for low, high in ((1.0, 2.0), (3.0, 3.0), (0.0, 0.0), (-1.0, 1.0)):
        bottom, top = padded_range(low, high)
        assert bottom <= low <= high < top
    assert padded_range(0.1, 9.0)[0] >= 0  # a loss is never negative
    assert padded_range(50.0, 50.0) == (45.0, 55.0) and padded_range(2.0, 3.0) == pytest.approx((1.94, 3.06))


def test_bars_are_as_long_as_their_numbers_and_one_or_all_rows_have_the_accent_colour():
    assert widths(bars.share_bar([("a", 1), ("b", 3)])) == [25, 75]
    assert widths(bars.single_bars([("x", 2, "2"), ("y", 4, "4")])) == [50, 100]
    assert widths(bars.single_bars([("x", 0.5, "50%")], whole=1.0)) == [50]
    assert widths(bars.share_bar([])) == widths(bars.word_bars([], "others")) == widths(bars.single_bars([])) == []
    made = [bars.single_bars([("a", 1.0, "1"), ("b", 2.0, "2")], accent) for accent in (None, "b")]
    assert [re.findall('class="bar (\\w+)"', one) for one in made] == [["model", "model"], ["truth", "model"]]


def test_words_are_in_the_order_of_the_larger_probability_and_the_others_are_added_up():
    words = [("a", 0.1, 0.3), ("b", 0.25, 0.0), ("c", 0.2, 0.2), *((name, 0.05, 0.05) for name in "defghijkl")]
    made = str(bars.word_bars(words, "others"))
    assert re.findall("<dt><span[^>]*>([^<]*)<", made) == ["a", "b", "c", "d", "e", "f", "others"]
    assert made.endswith("0.30<span>0.35</span></dd></dl>") and widths(made)[:4] == [33.33, 100, 83.33, 0]
    assert likeliest([("a", 0.5, 0.4), ("b", 0.5, 0.6)])[1] is None


def test_a_heat_map_has_a_cell_for_each_value_above_0_and_the_largest_is_the_strongest():
    rows = [("embedding", [1.0, None, 10.0]), ("layer_0", [100.0, 0.0, 1.0])]
    made = heat_map(ENGLISH, "norms", [100, 200, 300], rows, "tokens")
    first, second = re.findall(r"<svg.*?</svg>", made)
    cells = re.compile(r'x="([\d.]+)".*?width="([\d.]+)".*?opacity="([\d.]+)"')
    assert cells.findall(first) == [("0.0", "333.3", "0.08"), ("666.7", "333.3", "0.54")], "halfway, in logarithms"
    assert cells.findall(second) == [("0.0", "333.3", "1.00"), ("666.7", "333.3", "0.08")]
    assert re.findall(r"<dt>.*?>(\w+)<", made) == ["embedding", "layer_0"]
    assert all(label in made for label in (">1<", ">100<", ">300<"))
    for count in (1, 80, 81, 1000):  # that of a long training stays small
        made = heat_map(ENGLISH, "norms", range(count), [("layer_0", [1.0] * count)], "tokens")
        assert 40 <= made.count("<rect") <= 80 or made.count("<rect") == count == 1
    assert "<rect" not in heat_map(ENGLISH, "norms", [1.0], [("layer_0", [None])], "tokens")
