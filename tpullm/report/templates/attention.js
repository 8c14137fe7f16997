(figure) => {
  const data = JSON.parse(figure.dataset.held);
  const all = (query) => [...figure.querySelectorAll(query)], one = (query) => figure.querySelector(query);
  const T = data.tokens.length, arcs = one(".arcs"), base = +arcs.dataset.base;
  const words = all(".word"), x = words.map((word) => +word.getAttribute("x"));
  let chosen = null, weights = null;
  const share = (t, s) => weights[t * (t + 1) / 2 + s] / 1000;
  const percent = (share) => Math.round(share * 100) + "%";
  const fill = (template, values) => template.replace(/{(\w+)}/g, (_, name) => values[name]);
  const mix = () => {
    const pick = (list, name) => one(name).value === "all" ? list : [list[+one(name).value]];
    const maps = pick(data.weights, ".layer").flatMap((layer) => pick(layer, ".head"));
    weights = maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
  };
  const drawArcs = () => {
    const paths = [];
    for (let t = 0; t < T; t++) for (let s = 0; s < t; s++) {
      const strong = t === chosen;
      if (share(t, s) < (strong ? 0.01 : 0.1)) continue;
      const high = Math.min(base - 8, 14 + (x[t] - x[s]) / 2);
      const path = document.createElementNS(arcs.namespaceURI, "path");
      path.setAttribute("d", `M${x[t]} ${base} C${x[t]} ${base - high} ${x[s]} ${base - high} ${x[s]} ${base}`);
      path.setAttribute("stroke-width", (1 + 9 * share(t, s)).toFixed(1));
      path.setAttribute("stroke-opacity", strong ? 0.9 : 0.25);
      paths.push(path);
    }
    arcs.querySelector("g").replaceChildren(...paths);
    all(".share").forEach((text, s) => { text.textContent = s <= chosen ? percent(share(chosen, s)) : ""; });
  };
  const choose = (t) => {
    chosen = t;
    const order = [...Array(t + 1).keys()].sort((a, b) => share(t, b) - share(t, a)).slice(0, 5);
    const others = order.map((s) => fill(data.words.share, { token: data.tokens[s], share: percent(share(t, s)) }));
    one(".said").textContent = fill(data.words.many, { token: data.tokens[t], others: others.join(data.words.comma) });
    all("text.row, .word").forEach((text) => text.classList.toggle("on", +text.dataset.t === t));
    all(".cell").forEach((cell) => cell.classList.toggle("on", +cell.dataset.t === t));
    drawArcs();
  };
  const draw = () => {
    mix();
    all(".cell").forEach((cell) => {
      const t = +cell.dataset.t, s = +cell.dataset.s;
      cell.setAttribute("fill-opacity", Math.pow(share(t, s), 0.7).toFixed(3));
      cell.firstChild.textContent =
        fill(data.words.one, { token: data.tokens[t], other: data.tokens[s], share: percent(share(t, s)) });
    });
    choose(chosen);
  };
  const view = () => { arcs.toggleAttribute("hidden", one(".view").value !== "arcs");
    one(".grid").toggleAttribute("hidden", one(".view").value !== "grid"); };
  const firstChoice = () => {
    let best = T - 1, most = 0;
    for (let t = 2; t < T; t++) for (let s = 1; s < t - 1; s++)
      if (share(t, s) > most) { most = share(t, s); best = t; }
    return best;
  };
  for (const event of ["pointerover", "click"]) figure.addEventListener(event, ({ target }) => {
    if (target.dataset && target.dataset.t !== undefined && target.closest("svg")) choose(+target.dataset.t);
  });
  all(".layer, .head").forEach((select) => select.addEventListener("change", draw));
  one(".view").addEventListener("change", view);
  mix(); chosen = firstChoice(); draw(); view();
}
