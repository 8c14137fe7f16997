// What comes next: the tokens of a text, the probability that each had, and the likeliest tokens at a place.

const BLANK = /【[?？]】/;
const LIKELIEST = 20; // what the server tells at most
const SHOWN = 10;
const AT_A_TIME = 40; // tokens that the model writes on
const PAUSE = 500; // ms after the last key

let reading = null; // stops what is being asked
let writing = false; // whether that is a continuation
let pause = 0;
let shown = null; // what was told: {tokens, place, text, left, right}, and words for a blank if the model finds them

function startNext() {
  by("text").addEventListener("input", (event) => event.isComposing || readSoon());
  by("text").addEventListener("compositionend", readSoon);
  by("clear").addEventListener("click", () => setText(""));
  by("blank").addEventListener("click", addBlank);
  by("go-on").addEventListener("click", goOn);
  by("halt").addEventListener("click", () => reading?.abort());
  by("reader").addEventListener("change", () => {
    forget();
    read();
  });
}

/** Who reads the text: what was trained on texts comes first. */
function chooseReaders() {
  const names = [baseOf(by("model").value), by("model").value].filter(Boolean);
  by("reader").replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
  by("readers").hidden = names.length < 2;
}

/** What another model said of the text. */
function forget() {
  reading?.abort();
  reading = shown = null;
  writing = false;
}

function setText(text) {
  by("text").value = text;
  read();
}

function addBlank() {
  const { value, selectionStart, selectionEnd } = by("text");
  const blank = document.documentElement.lang === "ja" ? "【？】" : "【?】";
  setText(value.slice(0, selectionStart) + blank + value.slice(selectionEnd));
}

function readSoon() {
  clearTimeout(pause);
  pause = setTimeout(read, PAUSE);
}

/** Ask for the tokens of the text, up to its blank, and for those that may follow. */
async function read() {
  clearTimeout(pause);
  reading?.abort();
  const text = by("text").value;
  const blank = BLANK.exec(text);
  const left = blank ? text.slice(0, blank.index) : text;
  const right = blank ? text.slice(blank.index) : "";
  const fills = Boolean(right && chosenModel()?.infills);
  showError(null);
  if (!left && !fills) {
    forget();
    return showNext();
  }
  const stop = (reading = new AbortController());
  writing = false;
  const body = { model: by("reader").value, prompt: left, max_tokens: 1, temperature: 0, echo: true };
  if (fills) body.suffix = right.replace(BLANK, "");
  showNext();
  try {
    const told = await whole("v1/completions", { ...body, logprobs: LIKELIEST }, stop.signal);
    const tokens = tokensOf(told.choices[0].logprobs);
    const [{ text, words }] = told.choices;
    shown = { tokens, place: tokens.length - 1, text, left, right, words };
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = null;
    showError(error, read);
  }
  if (reading !== stop) return;
  reading = null;
  showNext();
}

/** The tokens that were told; the last is the one after the text. */
function tokensOf({ tokens, token_logprobs, top_logprobs, text_offset }) {
  return tokens.map((name, n) => ({
    name,
    offset: text_offset[n],
    p: token_logprobs[n] === null ? null : Math.exp(token_logprobs[n]),
    top: Object.entries(top_logprobs[n] ?? {})
      .map(([name, value]) => [name, Math.exp(value)])
      .sort((a, b) => b[1] - a[1]), // an object has digits before all other names
  }));
}

/** Have the model write on, token by token. */
async function goOn() {
  reading?.abort();
  const stop = (reading = new AbortController());
  writing = true;
  const { temperature } = settings();
  const asked = { model: by("reader").value, prompt: by("text").value };
  const body = { ...asked, max_tokens: AT_A_TIME, min_p: 0.05, temperature };
  showNext();
  try {
    for await (const choice of choices("v1/completions", body, stop.signal)) {
      by("text").value += choice.text;
      by("text").scrollTop = by("text").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      forget();
      showNext();
      return showError(error, goOn);
    }
  }
  if (reading === stop) read();
}

function showNext() {
  const empty = !by("text").value;
  by("halt").hidden = !writing;
  by("go-on").hidden = writing;
  by("found").classList.toggle("stale", Boolean(reading));
  by("go-on").disabled = empty || BLANK.test(by("text").value);
  by("clear").disabled = empty;
  by("blank").disabled = BLANK.test(by("text").value);
  const found = shown?.tokens.slice(0, -1) ?? [];
  by("pieces").replaceChildren(...found.map(piece));
  const unread = shown?.words ? "" : translated("unread"); // words are found from both sides
  if (shown?.right) by("pieces").append(element("span", { className: "unread" }, unread, shown.right));
  by("summary").replaceChildren(summary(found));
  showCandidates();
  if (!reading) showAttention();
}

function summary(found) {
  if (!shown) return reading ? translated("waiting") : by("text").value ? "" : translated("write");
  const bits = found.filter(({ p }) => p !== null).map(({ p }) => -Math.log2(p));
  const mean = bits.reduce((sum, value) => sum + value, 0) / Math.max(1, bits.length);
  return translated("summary", { tokens: found.length, bits: mean.toFixed(1) });
}

function piece({ name, p }, n) {
  const chance = p === null ? translated("first") : percent(p);
  const made = element("button", { type: "button", className: "piece" }, visible(name), element("small", {}, chance));
  if (p !== null) made.style.setProperty("--p", `${Math.round(100 * shade(p))}%`);
  made.disabled = p === null;
  made.setAttribute("aria-pressed", shown.place === n);
  made.addEventListener("click", () => {
    if (reading) return;
    shown.place = shown.place === n ? shown.tokens.length - 1 : n;
    showNext();
    by("pieces").children[n].focus();
  });
  return made;
}

/** How strong the colour of a probability is, 0 to 1: by its logarithm, from 1/1000 on. */
function shade(p) {
  return Math.max(0, 1 + Math.log10(p) / 3);
}

function showCandidates() {
  const at = shown?.tokens[shown.place];
  const last = shown?.place === shown?.tokens.length - 1;
  const words = last ? shown?.words : null;
  const kind = !last && at ? "instead" : words ? "words" : shown?.right ? "in_blank" : "after";
  by("place").replaceChildren(translated(kind, { token: at ? visible(at.name) : "" }));
  by("place-note").replaceChildren(at ? translated(`${kind}_note`) : "");
  const top = (words ?? at?.top ?? []).slice(0, SHOWN);
  const rest = Math.max(0, 1 - top.reduce((sum, [, p]) => sum + p, 0));
  const chose = by("candidates").contains(document.activeElement);
  by("candidates").replaceChildren(...top.map(([name, p]) => candidate(name, p, at, last)));
  if (at) by("candidates").append(row(translated("others"), rest, "others"));
  if (chose) by("candidates").querySelector("button:enabled")?.focus({ preventScroll: true });
}

function candidate(name, p, at, last) {
  const reader = models.find(({ id }) => id === by("reader").value) ?? chosenModel();
  const ends = reader.ends.includes(name);
  const made = element("button", { type: "button" }, ends ? translated("end") : visible(name));
  made.disabled = ends || name.startsWith("bytes:"); // no text, or part of a character
  made.addEventListener("click", () => {
    if (reading) return;
    const before = last ? shown.left : [...shown.text].slice(0, at.offset).join("");
    setText(before + name + (last ? shown.right.replace(BLANK, "") : ""));
  });
  return row(made, p, !last && name === at.name ? "given" : "");
}

function row(first, p, className) {
  const bar = element("i", {});
  bar.style.width = `${100 * p}%`;
  const track = element("span", { className: "bar" }, bar);
  return element("li", { className }, element("span", {}, first), track, element("span", {}, percent(p)));
}

/** A token as it can be seen: white space as signs, part of a character and what controls devices as bytes. */
function visible(name) {
  if (name.startsWith("bytes:")) return name.slice("bytes:".length).replaceAll("\\x", " ").trim().toUpperCase();
  const seen = name.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣").replaceAll("　", "□");
  return seen.replace(/\p{Cc}/gu, (sign) => sign.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0"));
}

/** As in the report: never 100 % of what is less, nor 0 % of what is more. */
function percent(p) {
  if (p < 0.001) return "<0.1%";
  return `${(100 * Math.min(p, 0.999)).toFixed(1)}%`;
}
