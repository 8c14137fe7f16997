// Asks the model that is in this page, and gets what a server would answer. No text leaves the page.

const SHARED = JSON.parse(document.getElementById("shared").textContent);
const TOKENIZER = new Tokenizer(SHARED.tokenizer);
const CONTEXT = SHARED.config.context_length;
const TOO_LONG = { context: CONTEXT, code: "context_length_exceeded" };
const LIKELIEST_TOLD = 20;
const BASE = document.getElementById("weights-chat") ? `${SHARED.name}/base` : ""; // the model before its tuning
const stages = {};

function startAsking() {
  const parameters = Object.values(SHARED.arrays).reduce((sum, [rows, columns = 1]) => sum + rows * columns, 0);
  const values = { parameters: parameters.toLocaleString("en"), context: CONTEXT };
  by("about").replaceChildren(translated(BASE ? "inside_both" : "inside", values));
  by("about").hidden = false;
}

function stageOf(model) {
  return model === BASE ? "text" : "chat";
}

/** A new reading of a text by a stage: `text`, or `chat` if another one answers. */
function reader(stage, longest) {
  const name = document.getElementById(`weights-${stage}`) ? stage : "text";
  stages[name] ??= unpacked(SHARED.arrays, document.getElementById(`weights-${name}`).textContent);
  return new Reading(SHARED.config, stages[name], Math.min(longest, CONTEXT));
}

/** A whole answer. */
async function whole(path, body, signal) {
  if (path === "v1/completions") return { choices: [await told(body, signal)] };
  const ends = SHARED.stops.map((id) => TOKENIZER.name(id));
  const knows = { talks: Boolean(SHARED.chat), ends, infills: true, system: false, questions: SHARED.questions, base: BASE };
  return { data: [{ id: SHARED.name, identity: by("identity").textContent, ...knows }] };
}

/** The tokens of a text and those that may follow; with a `suffix` also the words that may stand between the two. */
async function told({ model, prompt, suffix }, signal) {
  const ids = textIds(prompt);
  const reading = reader(stageOf(model), CONTEXT);
  const names = [], chances = [], top = [], places = [];
  const characters = decoder();
  let made = 0;
  await reading.read(ids, signal);
  for (let at = SHARED.begin.length; at <= ids.length; at++) {
    const next = at ? reading.next(at - 1) : null;
    const likeliest = next && most(next, LIKELIEST_TOLD);
    const id = ids[at] ?? likeliest[0];
    names.push(TOKENIZER.name(id));
    chances.push(next && next[id]);
    top.push(next && Object.fromEntries(likeliest.map((one) => [TOKENIZER.name(one), next[one]])));
    places.push(made);
    made += [...characters.decode(TOKENIZER.bytesOf(id), { stream: true })].length;
    await breathe(signal);
  }
  const logprobs = { tokens: names, token_logprobs: chances, top_logprobs: top, text_offset: places };
  if (suffix === undefined) return { text: prompt, logprobs };
  if (textIds(prompt + suffix).length + LONGEST > CONTEXT) throw new Trouble("too_long", TOO_LONG);
  const words = await fillBlank(reading, TOKENIZER, SHARED.begin, prompt, suffix, signal);
  if (!words.length) throw new Trouble("no_words");
  return { text: prompt, logprobs, words };
}

/** The choices of a stream, as they come. */
async function* choices(path, body, signal) {
  const talks = path === "v1/chat/completions";
  const { ids, dropped } = talks ? chatIds(body.messages, body.max_tokens) : { ids: textIds(body.prompt), dropped: 0 };
  const longest = Math.min(body.max_tokens, CONTEXT - ids.length);
  const reading = reader(stageOf(body.model), ids.length + longest);
  const part = (text, ends = null) => ({ text, delta: { content: text }, finish_reason: ends });
  const characters = decoder();
  if (dropped) yield { ...part(""), leftOut: dropped / 2 };
  await reading.read(ids, signal);
  for (let n = 0; n < longest; n++) {
    const id = chosen(reading.next(), body);
    if (SHARED.stops.includes(id)) return yield part(characters.decode(), "stop");
    yield part(characters.decode(TOKENIZER.bytesOf(id), { stream: true }));
    if (n + 1 < longest) await reading.read([...reading.ids, id], signal);
  }
  yield part(characters.decode(), "length");
}

function textIds(text) {
  if (text.length > CONTEXT * TOKENIZER.longest) throw new Trouble("too_long", TOO_LONG);
  const ids = [...SHARED.begin, ...TOKENIZER.encode(text)];
  if (ids.length >= CONTEXT) throw new Trouble("too_long", TOO_LONG);
  return ids;
}

/** The ids of a conversation with room for an answer. Its oldest turns are dropped if it is too long. */
function chatIds(messages, tokens) {
  const room = CONTEXT - Math.min(tokens, Math.floor(CONTEXT / 2));
  const said = messages.filter(({ role }, n) => role !== messages[n + 1]?.role).map(({ content }) => content);
  for (let dropped = 0; dropped < said.length; dropped += 2) {
    const { first, answer, question, asks } = SHARED.chat;
    const before = (n) => (n % 2 ? answer : n ? question : first);
    const turn = (content, n) => [...before(n), ...textIds(content).slice(SHARED.begin.length)];
    const ids = [...said.slice(dropped).flatMap(turn), ...asks];
    if (ids.length <= room) return { ids, dropped };
  }
  throw new Trouble("too_long", TOO_LONG);
}

/** A token by the rules of `tpullm/engine/sampling.py`. */
function chosen(logP, { temperature, min_p }) {
  const [likeliest] = most(logP, 1);
  if (!temperature) return likeliest;
  const share = (id) => Math.exp((logP[id] - logP[likeliest]) / temperature);
  const kept = [...logP.keys()].filter((id) => share(id) >= min_p);
  let left = Math.random() * kept.reduce((sum, id) => sum + share(id), 0);
  return kept.find((id) => (left -= share(id)) < 0) ?? likeliest;
}

/** The places of the highest values, the first of equal ones first. */
function most(values, count) {
  const found = [];
  for (let n = 0; n < values.length; n++) {
    if (found.length === count && values[n] <= values[found[count - 1]]) continue;
    let place = found.length;
    while (place && values[found[place - 1]] < values[n]) place--;
    found.splice(place, 0, n);
    found.length = Math.min(found.length, count);
  }
  return found;
}
