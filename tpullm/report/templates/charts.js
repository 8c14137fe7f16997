// Charts of the report: the values under the pointer; dragging shows a range of x alone. All is read from the paths.
const charts = (() => {
  const zooms = new Map(); // by the title of a chart, since a page that grows replaces its charts
  const make = (name, className, text) => Object.assign(document.createElement(name), { className, textContent: text });
  const pair = (text) => text.split(" ").map(Number);
  const short = (value) => { // as `short` in system/words.py
    const [size, name] = JSON.parse(document.body.dataset.sizes).find(([size]) => Math.abs(value) >= size) || [1, ""];
    return name ? (+(value / size).toPrecision(4)).toLocaleString("en") + name : String(+value.toPrecision(4));
  };
  const ticks = (low, high, most) => { // as `axis_ticks` in charts.py
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough)), found = [];
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => power * factor >= rough * 0.999);
    for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n++) found.push(+(n * step).toPrecision(12));
    return found;
  };
  const keyOf = (plot) => plot.closest(".chart").querySelector("b").textContent;
  const whole = (plot) => ({ x: pair(plot.dataset.x), y: pair(plot.dataset.y) });
  const lines = (plot) => {
    const { x: [left, right], y: [low, high] } = whole(plot);
    return [...plot.querySelectorAll("path")].map((path) => ({
      name: path.dataset.name, look: path.getAttribute("class"),
      points: path.getAttribute("d").slice(1).split(" ").map((point) => point.split(",").map(Number))
        .map(([x, y]) => [left + x / 1000 * (right - left), high - y / 1000 * (high - low)]),
    }));
  };
  const at = (points, x) => { // on the line between two points; undefined outside of the curve
    const after = points.findIndex((point) => point[0] >= x - 1e-9 * Math.abs(x));
    if (after <= 0) return after ? undefined : points[0][0] <= x * (1 + 1e-9) ? points[0][1] : undefined;
    const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
    return x1 > x0 ? y0 + (y1 - y0) * (x - x0) / (x1 - x0) : y1;
  };
  const shown = (plot) => {
    const all = whole(plot), zoom = zooms.get(keyOf(plot));
    const x = zoom && [Math.max(zoom[0], all.x[0]), Math.min(zoom[1], all.x[1])];
    if (!x || x[0] >= x[1]) return all;
    const ys = lines(plot).flatMap(({ points }) =>
      [...points.filter((point) => point[0] >= x[0] && point[0] <= x[1]).map((point) => point[1]),
        ...x.map((end) => at(points, end))]).filter((y) => y !== undefined);
    const low = Math.min(...ys), high = Math.max(...ys), margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return ys.length ? { x, y: [low - margin, high + margin] } : all;
  };
  const tick = (axis, share, label) => {
    const element = make("div", `tick ${axis}`, "");
    element.style[axis === "x" ? "left" : "top"] = `${share * 100}%`;
    element.append(make("span", "", label));
    return element;
  };
  const draw = (plot) => { // the range that is chosen, with its ticks
    const all = whole(plot), { x, y } = shown(plot), share = (value, [from, to]) => (value - from) / (to - from);
    const across = x.map((value) => 1000 * share(value, all.x)), up = y.map((value) => 1000 * share(value, all.y));
    const box = [across[0], 1000 - up[1], across[1] - across[0], up[1] - up[0]];
    plot.querySelector("svg").setAttribute("viewBox", box.join(" "));
    plot.querySelectorAll(".tick").forEach((each) => each.remove());
    plot.prepend(...ticks(...y, 5).map((value) => tick("y", 1 - share(value, y), short(value))),
      ...ticks(...x, 5).map((value) => tick("x", share(value, x), short(value))));
    const head = plot.closest(".chart").querySelector(".chart-head");
    head.querySelector("button")?.remove();
    if (x.join() !== all.x.join()) head.append(make("button", "whole", document.body.dataset.whole));
  };
  const hide = () => document.querySelectorAll(".plot > .tip, .plot > .cursor").forEach((each) => each.remove());
  const show = (plot, share) => {
    const { x: [from, to], y: [low, high] } = shown(plot), all = lines(plot), wanted = from + share * (to - from);
    const xs = all.flatMap(({ points }) => points.map((point) => point[0])).filter((x) => x >= from && x <= to);
    hide();
    if (!xs.length) return;
    const x = xs.reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best);
    const tip = make("div", "tip", ""), cursor = make("div", "cursor", ""), place = (x - from) / (to - from);
    tip.append(make("b", "", `${short(x)} ${plot.closest(".chart").querySelector(".x-name").textContent}`));
    for (const { name, look, points } of all) {
      const y = at(points, x);
      if (y === undefined || y < low || y > high) continue;
      const row = make("div", "", "");
      row.append(make("i", `swatch ${look}`, ""), `${name} `, make("span", "value", short(y)));
      tip.append(row);
    }
    cursor.style.left = `${place * 100}%`;
    tip.style[place < 0.5 ? "left" : "right"] = `calc(${(place < 0.5 ? place : 1 - place) * 100}% + 0.7rem)`;
    plot.append(cursor, tip);
  };
  let begun = null; // where a drag began: the plot, and the share of its width
  const where = (plot, event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const zoom = (plot, range) => {
    range ? zooms.set(keyOf(plot), range) : zooms.delete(keyOf(plot));
    hide();
    draw(plot);
  };
  document.addEventListener("pointermove", (event) => {
    const plot = begun ? begun.plot : event.target.closest?.(".plot");
    if (!plot) return hide();
    show(plot, where(plot, event));
    plot.querySelector(".band")?.remove();
    if (!begun) return;
    const band = make("div", "band", ""), ends = [begun.at, where(plot, event)].sort((a, b) => a - b);
    band.style.left = `${ends[0] * 100}%`;
    band.style.width = `${(ends[1] - ends[0]) * 100}%`;
    plot.append(band);
  });
  document.addEventListener("pointerdown", (event) => {
    const plot = event.target.closest?.(".plot");
    if (!plot || event.button) return;
    event.preventDefault();
    begun = { plot, at: where(plot, event) };
    show(plot, begun.at);
  });
  document.addEventListener("pointerup", (event) => {
    if (!begun) return;
    const { plot } = begun, ends = [begun.at, where(plot, event)].sort((a, b) => a - b), { x } = shown(plot);
    plot.querySelector(".band")?.remove();
    begun = null;
    if (ends[1] - ends[0] > 0.02) zoom(plot, ends.map((share) => x[0] + share * (x[1] - x[0])));
  });
  document.addEventListener("pointercancel", () => { begun?.plot.querySelector(".band")?.remove(); begun = null; });
  document.addEventListener("dblclick", ({ target }) => target.closest?.(".plot") && zoom(target.closest(".plot")));
  document.addEventListener("click", ({ target }) =>
    target.matches?.("button.whole") && zoom(target.closest(".chart").querySelector(".plot")));
  return { redraw: () => document.querySelectorAll(".plot").forEach((plot) => zooms.has(keyOf(plot)) && draw(plot)) };
})();
