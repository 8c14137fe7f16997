// The Transformer of `tpullm/model`, a token at a time, in float32.

/** The matrices and norms of a stage, by name: `{data, rows, columns}`. */
function unpacked(arrays, text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = letters.charCodeAt(n);
  const count = Object.values(arrays).reduce((sum, [rows]) => sum + rows, 0); // a number for each row, or of a norm
  const floats = new Float32Array(bytes.buffer, 0, count);
  const codes = new Int16Array(bytes.buffer, 4 * count);
  const found = {};
  let [place, first] = [0, 0];
  for (const [name, [rows, columns]] of Object.entries(arrays)) {
    const scales = floats.subarray(place, (place += rows));
    if (columns === undefined) {
      found[name] = scales;
      continue;
    }
    const data = new Float32Array(rows * columns);
    for (let n = 0; n < data.length; n++) data[n] = codes[first + n] * scales[Math.floor(n / columns)];
    first += data.length;
    found[name] = { data, rows, columns };
  }
  return found;
}

/** `out = matrix x`, four rows at a time. */
function multiply({ data, rows, columns }, x, out) {
  let row = 0;
  for (; row + 3 < rows; row += 4) {
    let [a, b, c, d] = [0, 0, 0, 0];
    let i = row * columns;
    let [j, k, l] = [i + columns, i + 2 * columns, i + 3 * columns];
    for (let n = 0; n < columns; n++) {
      const value = x[n];
      a += data[i++] * value;
      b += data[j++] * value;
      c += data[k++] * value;
      d += data[l++] * value;
    }
    out[row] = a;
    out[row + 1] = b;
    out[row + 2] = c;
    out[row + 3] = d;
  }
  for (; row < rows; row++) {
    let sum = 0;
    for (let n = 0; n < columns; n++) sum += data[row * columns + n] * x[n];
    out[row] = sum;
  }
  return out;
}

/** `x` over its root mean square, times `scale`, for each `scale.length` numbers of `x`. */
function normalize(x, scale, epsilon, out) {
  const width = scale.length;
  for (let first = 0; first < x.length; first += width) {
    let sum = 0;
    for (let n = 0; n < width; n++) sum += x[first + n] ** 2;
    const factor = 1 / Math.sqrt(sum / width + epsilon);
    for (let n = 0; n < width; n++) out[first + n] = x[first + n] * factor * scale[n];
  }
  return out;
}

/** Turn the pairs of each head, which are its two halves, by the angles of a position. */
function rotate(x, position, width, theta) {
  const half = width / 2;
  for (let n = 0; n < half; n++) {
    const angle = position * Math.fround(theta ** (-n / half));
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    for (let i = n; i < x.length; i += width) {
      const [a, b] = [x[i], x[i + half]];
      x[i] = a * cos - b * sin;
      x[i + half] = b * cos + a * sin;
    }
  }
}

let rested = 0;

/** Let the browser draw and hear the reader, some 30 times a second. */
async function breathe(signal) {
  signal?.throwIfAborted();
  if (performance.now() - rested < 30) return;
  await new Promise((go) => setTimeout(go));
  rested = performance.now();
  signal?.throwIfAborted();
}

/** A text that a stage reads: keys, values and outputs of each of its tokens. */
class Reading {
  constructor(config, weights, longest) {
    const { layers, width, heads, kv_heads, head_width, mlp_width, vocabulary_size } = config;
    const made = (size) => new Float32Array(size);
    Object.assign(this, { config, weights, ids: [], x: made(width), normed: made(width), part: made(width) });
    [this.query, this.mixed] = [made(heads * head_width), made(heads * head_width)];
    [this.gate, this.up, this.logits] = [made(mlp_width), made(mlp_width), made(vocabulary_size)];
    const cache = () => Array.from({ length: layers }, () => made(longest * kv_heads * head_width));
    Object.assign(this, { keys: cache(), values: cache(), outputs: made(longest * width), chances: made(longest) });
  }

  /** Read these ids; what they begin with and was read before stays. */
  async read(ids, signal) {
    let shared = 0;
    while (shared < ids.length && ids[shared] === this.ids[shared]) shared++;
    this.ids.length = shared;
    for (const id of ids.slice(shared)) {
      this.add(id);
      await breathe(signal);
    }
  }

  add(id) {
    const { config, weights: w, x, normed, part } = this;
    const { layers, width, norm_epsilon: epsilon } = config;
    const at = this.ids.push(id) - 1;
    const scale = config.scale_embeddings ? Math.sqrt(width) : 1;
    for (let n = 0; n < width; n++) x[n] = w.embedding.data[id * width + n] * scale;
    for (let layer = 0; layer < layers; layer++) {
      normalize(x, w[`${layer}.attention_norm`], epsilon, normed);
      multiply(w[`${layer}.out`], this.attend(layer, at), part);
      for (let n = 0; n < width; n++) x[n] += part[n];
      normalize(x, w[`${layer}.mlp_norm`], epsilon, normed);
      const [gate, up] = [multiply(w[`${layer}.gate`], normed, this.gate), multiply(w[`${layer}.up`], normed, this.up)];
      for (let n = 0; n < gate.length; n++) gate[n] = (gate[n] / (1 + Math.exp(-gate[n]))) * up[n];
      multiply(w[`${layer}.down`], gate, part);
      for (let n = 0; n < width; n++) x[n] += part[n];
    }
    normalize(x, w.norm, epsilon, this.outputs.subarray(at * width, (at + 1) * width));
  }

  /** The values of the tokens up to `at`, mixed by each head. */
  attend(layer, at) {
    const { config, weights: w, normed, query, mixed, chances } = this;
    const { heads, kv_heads, head_width: H } = config;
    const all = kv_heads * H;
    const [keys, values] = [this.keys[layer], this.values[layer]];
    const key = multiply(w[`${layer}.key`], normed, keys.subarray(at * all, (at + 1) * all));
    multiply(w[`${layer}.value`], normed, values.subarray(at * all, (at + 1) * all));
    multiply(w[`${layer}.query`], normed, query);
    for (const [x, name] of [[query, "query_norm"], [key, "key_norm"]]) {
      if (config.qk_norm === "head") normalize(x, w[`${layer}.${name}`], config.norm_epsilon, x);
      rotate(x, at, H, config.rope_theta);
    }
    mixed.fill(0);
    for (let head = 0; head < heads; head++) {
      const [own, first] = [head * H, Math.floor((head * kv_heads) / heads) * H];
      let [most, total] = [-Infinity, 0];
      for (let s = 0; s <= at; s++) {
        let sum = 0;
        for (let n = 0; n < H; n++) sum += query[own + n] * keys[s * all + first + n];
        chances[s] = sum / Math.sqrt(H);
        most = Math.max(most, chances[s]);
      }
      for (let s = 0; s <= at; s++) total += chances[s] = Math.exp(chances[s] - most);
      for (let s = 0; s <= at; s++) {
        const share = chances[s] / total;
        for (let n = 0; n < H; n++) mixed[own + n] += share * values[s * all + first + n];
      }
    }
    return mixed;
  }

  /** The log-probability of every token after the one at `at`, in nats; overwritten by the next call. */
  next(at = this.ids.length - 1) {
    const { config, weights: w, logits } = this;
    const hidden = this.outputs.subarray(at * config.width, (at + 1) * config.width);
    multiply(config.tied_embeddings ? w.embedding : w.head, hidden, logits);
    const most = logits.reduce((a, b) => Math.max(a, b));
    let sum = 0;
    for (let n = 0; n < logits.length; n++) sum += Math.exp(logits[n] - most);
    const total = most + Math.log(sum);
    for (let n = 0; n < logits.length; n++) logits[n] -= total;
    return logits;
  }
}
