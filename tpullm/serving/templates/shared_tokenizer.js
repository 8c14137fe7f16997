"use strict";
// Text to token ids and back, as `tpullm/tokenizer` does it: pieces with scores, or pairs of bytes.

const SPACE = "\u2581"; // no piece has this character: pieces have a space where SentencePiece has it
const WHITE = "\\p{White_Space}";
const CUT = new RegExp( // `tpullm/tokenizer/byte_pairs.py`; JavaScript's own \s is other white space
  `'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|` +
    ` ?[^${WHITE}\\p{L}\\p{N}]+[\\r\\n]*|${WHITE}*[\\r\\n]+|${WHITE}+(?!\\P{White_Space})|${WHITE}+`,
  "gu",
);

function utf8(text) {
  return new TextEncoder().encode(text);
}

/** A decoder of UTF-8; with `fatal` it refuses other bytes. */
function decoder(fatal = false) {
  return new TextDecoder("utf-8", { fatal, ignoreBOM: true });
}

class Tokenizer {
  constructor({ tokens, scores, special }) {
    this.bytes = tokens.map((token) => (typeof token === "string" ? utf8(token) : Uint8Array.from(token)));
    Object.assign(this, { scores, special, pieces: new Map(), ofByte: [], longest: 0 });
    for (const [id, held] of this.bytes.entries()) {
      if (!held.length) continue;
      const piece = scores ? tokens[id] : letters(held);
      if (typeof piece !== "string") this.ofByte[piece[0]] = id;
      else this.pieces.set(piece, id);
      this.longest = Math.max(this.longest, piece.length);
    }
    this.unknown = scores && Math.min(...[...this.pieces.values()].map((id) => scores[id])) - 10;
  }

  encode(text) {
    text = decoder().decode(utf8(text)); // half of a surrogate pair becomes U+FFFD
    if (!this.scores) return [...text.matchAll(CUT)].flatMap(([part]) => this.joined(part));
    const newline = this.pieces.get("\n");
    const space = [...utf8(SPACE)].map((byte) => this.ofByte[byte]);
    const ofLine = (line) => line.split(SPACE).flatMap((part, n) => [...(n ? space : []), ...this.split(part)]);
    return text.split("\n").flatMap((line, n) => [...(n ? [newline] : []), ...ofLine(line)]);
  }

  /** The pieces of the highest sum of scores; of equal ones the longest at the end. */
  split(text) {
    const signs = [...text];
    const best = new Float64Array(signs.length + 1).fill(-Infinity);
    const chosen = [];
    best[0] = 0;
    for (let start = 0; start < signs.length; start++) {
      const reach = (end, score, id) => {
        if (best[start] + score <= best[end]) return;
        best[end] = best[start] + score;
        chosen[end] = { start, id };
      };
      let piece = "";
      for (let end = start + 1; end <= signs.length && piece.length < this.longest; end++) {
        piece += signs[end - 1];
        const id = this.pieces.get(piece);
        if (id !== undefined) reach(end, this.scores[id], id);
        else if (end === start + 1) reach(end, this.unknown, -1);
      }
    }
    const ids = [];
    for (let end = signs.length; end > 0; end = chosen[end].start) {
      const { start, id } = chosen[end];
      if (id >= 0) ids.push(id);
      else for (const byte of utf8(signs[start]).reverse()) ids.push(this.ofByte[byte]);
    }
    return ids.reverse();
  }

  /** Pairs of bytes are joined, the token of the lowest id first. */
  joined(text) {
    const parts = [...letters(utf8(text))];
    const whole = this.pieces.get(parts.join(""));
    if (whole !== undefined) return [whole];
    for (;;) {
      let [place, lowest] = [-1, Infinity];
      for (let n = 0; n + 1 < parts.length; n++) {
        const id = this.pieces.get(parts[n] + parts[n + 1]) ?? Infinity;
        if (id < lowest) [place, lowest] = [n, id];
      }
      if (place < 0) return parts.map((part) => this.pieces.get(part));
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  bytesOf(id) {
    return this.bytes[id] ?? new Uint8Array();
  }

  /** The name of a token as the server has it: its text, `bytes:\xe7` of a part of a character. */
  name(id) {
    const held = this.bytesOf(id);
    if (!held.length) return this.special[id] ?? `<${id}>`;
    try {
      return decoder(true).decode(held);
    } catch {
      return `bytes:${[...held].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
    }
  }
}

/** A character for each byte, so that bytes can be looked up. */
function letters(bytes) {
  return String.fromCharCode(...bytes);
}
