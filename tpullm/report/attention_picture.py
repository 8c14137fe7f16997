"""The attention weights as a picture: HTML with SVG in it, for a page of its own, the report or a notebook.

Labels are text, so the reader's fonts show them, Japanese too. Colours follow the page (`currentColor`, and `--accent`
if the page sets it), in light and dark. Without JavaScript the averaged grid still shows.

Shapes: T tokens, N heads, L layers.
"""

import hashlib
import html
import json
import unicodedata

import numpy as np

from tpullm.report.language import ENGLISH, Language

CELL = 30  # pixels
_FONT = 14
_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def attention_html(tokens: list[str], weights_LNTT: np.ndarray, text: Language = ENGLISH) -> str:
    """A `<figure>` that shows how much each token attends to each earlier one: a grid, and arcs over the text.

    The reader chooses a layer and a head, or the average. A token under the pointer shows its shares in words.

    Args:
        tokens: the text of each token, T of them.
        weights_LNTT: `[l, n, t, s]` is how much token t attends to token s; each row sums to 1.
        text: the language of the picture.
    """
    shown = ["".join(_SHOWN.get(character, character) for character in token) for token in tokens]
    L, N, T, _ = weights_LNTT.shape
    rows, columns = np.tril_indices(T)
    per_mille = np.rint(weights_LNTT[:, :, rows, columns] * 1000).astype(int).tolist()
    words = {
        "share": text("{token} {share}", token="{token}", share="{share}"),
        "many": text("{token} looks at: {others}", token="{token}", others="{others}"),
        "one": text("{token} looks at {other}: {share}", token="{token}", other="{other}", share="{share}"),
        "comma": text(", "),
    }
    held = {"tokens": shown, "weights": per_mille, "cell": CELL, "words": words}
    data = json.dumps(held, ensure_ascii=False).replace("<", "\\u003c")
    identity = "attention-" + hashlib.sha256(data.encode()).hexdigest()[:10]
    average = weights_LNTT.mean(axis=(0, 1))
    caption = text(
        "Each row is a token that looks, each column a token that it looks at. The stronger the colour, the larger the "
        "share. Point at a token to read its shares."
    )
    return f"""<figure class="attention" id="{identity}">
<style>{_STYLE}</style>
<div class="controls">
<label>{text("View")} {_select("view", {"grid": text("grid"), "arcs": text("arcs")})}</label>
<label>{text("Layer")} {_select("layer", _numbered(text, L))}</label>
<label>{text("Head")} {_select("head", _numbered(text, N))}</label>
</div>
<p class="said" aria-live="polite">{html.escape(_sentence(text, shown, average, _first_choice(average)))}</p>
<div class="scroll">{_grid(text, shown, average)}{_arcs(shown)}</div>
<figcaption>{html.escape(caption)}</figcaption>
<script>({_SCRIPT})(document.getElementById("{identity}"), {data});</script>
</figure>"""


def attention_page(tokens: list[str], weights_LNTT: np.ndarray) -> str:
    """`attention_html` as a page of its own."""
    text = html.escape("".join(tokens[1:]))
    return f"""<!doctype html>
<html lang="ja"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Attention: {text}</title>
<style>:root{{color-scheme:light dark}}body{{margin:1.5rem auto;max-width:64rem;padding:0 1rem}}</style></head>
<body>
<h1 style="font:600 1.25rem {_FAMILY}">Where each token looks: {text}</h1>
{attention_html(tokens, weights_LNTT)}
</body></html>
"""


def _select(name: str, choices: dict[str, str]) -> str:
    options = "".join(f'<option value="{value}">{shown}</option>' for value, shown in choices.items())
    return f'<select class="{name}">{options}</select>'


def _numbered(text: Language, count: int) -> dict[str, str]:
    """The choices of a menu: the average, then the layers or heads, counted from 1."""
    return {"all": text("average")} | {str(index): str(index + 1) for index in range(count)}


def _width(text: str) -> float:
    """The approximate width of a label in pixels: an East Asian character is as wide as it is high."""
    return sum(_FONT if unicodedata.east_asian_width(character) in "WF" else 0.62 * _FONT for character in text)


def _first_choice(weights_TT: np.ndarray) -> int:
    """The token that is chosen at first: it attends most to a token that is neither its neighbour nor the start."""
    afar = np.tril(weights_TT, -2)
    afar[:, :1] = 0
    return int(np.unravel_index(afar.argmax(), afar.shape)[0]) if afar.any() else len(weights_TT) - 1


def _sentence(text: Language, tokens: list[str], weights_TT: np.ndarray, t: int) -> str:
    most = np.argsort(-weights_TT[t, : t + 1], kind="stable")[:5]
    others = text(", ").join(text("{token} {share}", token=tokens[s], share=f"{weights_TT[t, s]:.0%}") for s in most)
    return text("{token} looks at: {others}", token=tokens[t], others=others)


def _grid(text: Language, tokens: list[str], weights_TT: np.ndarray) -> str:
    """The heat map: each row is a token that attends, each column a token that it attends to."""
    margin = round(max(map(_width, tokens))) + 12
    size = margin + len(tokens) * CELL
    parts = [f'<svg class="grid" width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img">']
    for t, token in enumerate(tokens):
        middle, label = margin + (t + 0.5) * CELL, html.escape(token)
        at = f'x="{margin - 8}" y="{middle + 5}" text-anchor="end"'
        parts.append(f'<text class="row" data-t="{t}" {at}>{label}</text>')
        turned = f'transform="translate({middle + 5} {margin - 8}) rotate(-90)"'
        parts.append(f'<text class="column" data-t="{t}" {turned}>{label}</text>')
        for s in range(t + 1):
            at = f'x="{margin + s * CELL + 1}" y="{margin + t * CELL + 1}" width="{CELL - 2}" height="{CELL - 2}"'
            share = f"{weights_TT[t, s]:.0%}"
            said = html.escape(text("{token} looks at {other}: {share}", token=token, other=tokens[s], share=share))
            opacity = f"{max(float(weights_TT[t, s]), 0) ** 0.7:.3f}"
            parts.append(f'<rect class="frame" {at}/><rect class="cell" data-t="{t}" data-s="{s}" {at} ')
            parts.append(f'fill-opacity="{opacity}"><title>{said}</title></rect>')
    return "".join(parts) + "</svg>"


def _arcs(tokens: list[str]) -> str:
    """The text on a line; the script draws the arcs."""
    widths = [max(_width(token), 2 * _FONT) + 18 for token in tokens]
    starts = np.cumsum([0.0, *widths])
    high = round(min(30 + starts[-1] / 4, 260))
    size = f'width="{starts[-1]:.0f}" height="{high + 54}" data-base="{high}"'
    parts = [f'<svg class="arcs" hidden {size} role="img"><g></g>']
    for t, token in enumerate(tokens):
        at = f'data-t="{t}" x="{starts[t] + widths[t] / 2:.1f}" text-anchor="middle"'
        parts.append(f'<text class="word" {at} y="{high + 20}">{html.escape(token)}</text>')
        parts.append(f'<text class="share" {at} y="{high + 40}"></text>')
    return "".join(parts) + "</svg>"


_FAMILY = (
    'system-ui,-apple-system,"Segoe UI","Hiragino Sans","Hiragino Kaku Gothic ProN","Yu Gothic UI","Yu Gothic",Meiryo,'
    '"Noto Sans CJK JP","Noto Sans JP",sans-serif'
).replace('"', "'")
_STYLE = f"""
.attention{{margin:0;font:15px/1.5 {_FAMILY}}}
.attention .controls{{display:flex;flex-wrap:wrap;gap:.5rem 1rem}}
.attention select{{font:inherit;color:inherit;background:transparent;border:1px solid currentColor;border-radius:4px}}
.attention option{{color:CanvasText;background:Canvas}}
.attention .said{{min-height:1.5em;margin:.6rem 0;font-weight:600}}
.attention .scroll{{overflow-x:auto}}
.attention svg{{display:block}} .attention svg[hidden]{{display:none}}
.attention svg text{{font-size:{_FONT}px;fill:currentColor;cursor:pointer}}
.attention .share{{opacity:.75}}
.attention .frame{{fill:currentColor;fill-opacity:.06}}
.attention .cell{{fill:var(--accent,#2f7de1);cursor:pointer}}
.attention .cell.on{{stroke:currentColor;stroke-width:1.5}}
.attention text.on{{font-weight:700;text-decoration:underline}}
.attention path{{fill:none;stroke:var(--accent,#2f7de1)}}
.attention figcaption{{opacity:.75;margin-top:.5rem;font-size:.85em}}
"""
_SCRIPT = """(figure, data) => {
  const all = (query) => [...figure.querySelectorAll(query)], one = (query) => figure.querySelector(query);
  const T = data.tokens.length, arcs = one(".arcs"), base = +arcs.dataset.base;
  const words = all(".word"), x = words.map((word) => +word.getAttribute("x"));
  let chosen = null, weights = null;
  const share = (t, s) => weights[t * (t + 1) / 2 + s] / 1000;
  const percent = (share) => Math.round(share * 100) + "%";
  const fill = (template, values) => template.replace(/{(\\w+)}/g, (_, name) => values[name]);
  const mix = () => {
    const pick = (list, name) => one(name).value === "all" ? list : [list[+one(name).value]];
    const maps = pick(data.weights, ".layer").flatMap((layer) => pick(layer, ".head"));
    weights = maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
  };
  const drawArcs = () => {
    let paths = "";
    for (let t = 0; t < T; t++) for (let s = 0; s < t; s++) {
      const strong = t === chosen;
      if (share(t, s) < (strong ? 0.01 : 0.1)) continue;
      const high = Math.min(base - 8, 14 + (x[t] - x[s]) / 2);
      paths += `<path d="M${x[t]} ${base} C${x[t]} ${base - high} ${x[s]} ${base - high} ${x[s]} ${base}"` +
        ` stroke-width="${(1 + 9 * share(t, s)).toFixed(1)}" stroke-opacity="${strong ? 0.9 : 0.25}"/>`;
    }
    arcs.querySelector("g").innerHTML = paths;
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
}"""
