// Words for a blank, as `tpullm/evaluation/blank.py` finds them, with fewer candidates. A word fits by the probability
// of the whole text with it. What one word is in Japanese, the browser's dictionary says in the place of Sudachi's.

const BEGINNINGS = 256; // that are kept after each token
const CANDIDATES = 256; // that are put into the text
const LONGEST = 8; // tokens
const MORPHEMES = 5; // of a candidate: the dictionary of browsers cuts 聞き into two
const LEAST = Math.log(1e-5); // of the likeliest beginning
const WORD_SHARE = 0.05; // single words with less probability mean that the blank asks for a phrase
const AROUND = 500; // characters that decide what is one word
const JAPANESE = /[\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f]/;
const OF_WORDS = /^['’\-・ー\p{L}\p{M}\p{N}]*$/u;
const known = new Map(); // what it said
const segmenter = Intl.Segmenter && new Intl.Segmenter("ja", { granularity: "word" });

/** The words between two texts and their probabilities, the likeliest first. */
async function fillBlank(reading, tokenizer, begin, left, right, signal) {
  const words = await candidatesBetween(reading, tokenizer, begin, left, right, signal);
  const texts = words.map((word) => [...begin, ...tokenizer.encode(left + word + right)]);
  if (!words.length) return [];
  let first = 0; // what all begin with makes no difference
  while (texts.every((ids) => first < ids.length && ids[first] === texts[0][first])) first++;
  const scores = new Map();
  for (const n of [...words.keys()].sort((a, b) => compared(texts[a], texts[b]))) {
    await reading.read(texts[n], signal);
    let score = 0;
    for (let at = Math.max(first, 1); at < texts[n].length; at++) score += reading.next(at - 1)[texts[n][at]];
    scores.set(words[n], score);
  }
  const most = Math.max(...scores.values());
  const found = [...scores].map(([word, score]) => [word, Math.exp(score - most), isOneWord(left, word, right)]);
  const sum = (of) => of.reduce((total, [, p]) => total + p, 0);
  const single = found.filter(([, , one]) => one);
  const kept = sum(single) >= WORD_SHARE * sum(found) ? single : found;
  return kept.map(([word, p]) => [word, p / sum(kept)]).sort((a, b) => b[1] - a[1]);
}

/** In an order in which many begin like the one before. */
function compared(one, other) {
  for (let n = 0; ; n++) {
    if (one[n] !== other[n]) return (one[n] ?? -1) - (other[n] ?? -1);
    if (n >= one.length) return 0;
  }
}

/** The strings that fit, by what the model would write after `left`; those that `right` continues best come first. */
async function candidatesBetween(reading, tokenizer, begin, left, right, signal) {
  const continues = tokensAlong(tokenizer, utf8(right));
  const ids = tokenizer.encode(left.replace(/ +$/, "")).slice(0, -1); // a word may change how the last token is split
  const there = ids.reduce((sum, id) => sum + tokenizer.bytesOf(id).length, 0);
  let begun = [{ ids: [...begin, ...ids], owed: utf8(left).slice(there), written: [], score: 0 }];
  const found = new Map();
  for (let n = 0; n < LONGEST && begun.length; n++) {
    const longer = [];
    let most = -Infinity;
    for (const one of begun.sort((a, b) => compared(a.ids, b.ids))) {
      await reading.read(one.ids, signal);
      const chances = reading.next();
      const after = continues.length ? logSum(continues.map((id) => chances[id])) : 0;
      for (const [word, shared] of wordsIn(one, right)) {
        found.set(word, logSum([found.get(word) ?? -Infinity, one.score + (shared ? 0 : after)]));
      }
      for (const id of one.owed.length ? tokensAlong(tokenizer, one.owed) : chances.keys()) {
        const score = one.score + chances[id];
        if (score > most + LEAST - 4) longer.push([one, id, score]);
        most = Math.max(most, score);
      }
    }
    begun = likeliestBeginnings(tokenizer, longer.filter(([, , score]) => score > most + LEAST - 4));
    await breathe(signal);
  }
  return [...found].sort((a, b) => b[1] - a[1]).slice(0, CANDIDATES).map(([word]) => word);
}

function likeliestBeginnings(tokenizer, longer) {
  const kept = [];
  for (const [one, id, score] of longer.sort((a, b) => b[2] - a[2])) {
    if (kept.length === BEGINNINGS || (kept.length && score < kept[0].score + LEAST)) break;
    const data = tokenizer.bytesOf(id);
    const written = [...one.written, ...data.slice(one.owed.length)];
    const text = decoder().decode(Uint8Array.from(written), { stream: true }); // a character may be incomplete
    if (!data.length || !OF_WORDS.test(text) || segments(text).length > MORPHEMES) continue;
    kept.push({ ids: [...one.ids, id], owed: one.owed.slice(data.length), written, score });
  }
  return kept;
}

/** The tokens that these bytes may begin with, or that begin with them. */
function tokensAlong(tokenizer, bytes) {
  if (!bytes.length) return [];
  const along = (held) => held.length && held.every((byte, n) => n >= bytes.length || byte === bytes[n]);
  return [...tokenizer.bytes.keys()].filter((id) => along(tokenizer.bytes[id]));
}

/** The candidates in a beginning, and whether its last token has a part of the right side too. */
function wordsIn({ owed, written }, right) {
  let text;
  try {
    text = decoder(true).decode(Uint8Array.from(written));
  } catch {
    return []; // a part of a character
  }
  const signs = owed.length ? [] : [...text];
  return [...signs.keys()]
    .map((shared) => [signs.slice(0, signs.length - shared).join(""), signs.slice(signs.length - shared).join("")])
    .filter(([word, rest]) => right.startsWith(rest) && /[\p{L}\p{N}]/u.test(word))
    .map(([word, rest]) => [word, rest !== ""]);
}

function isOneWord(left, word, right) {
  if (!JAPANESE.test(word)) return true;
  const before = left.slice(-AROUND);
  const [start, end] = [before.length, before.length + word.length];
  const within = segments(before + word + right.slice(0, AROUND)).filter(([from, to]) => to > start && from < end);
  const apart = within.length && within[0][0] === start && within.at(-1)[1] === end;
  return (apart ? within : segments(word)).length <= 1;
}

/** Where the Japanese words of a text begin and end. */
function segments(text) {
  if (!segmenter || !JAPANESE.test(text)) return [];
  if (!known.has(text)) {
    if (known.size > 1e4) known.clear();
    known.set(text, [...segmenter.segment(text)].map(({ index, segment }) => [index, index + segment.length]));
  }
  return known.get(text);
}

function logSum(values) {
  const most = Math.max(...values);
  return most === -Infinity ? most : most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
}
