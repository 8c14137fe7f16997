"use strict";
// Asks the server.

const KEY = "tpullm-key";
function startAsking() {
  by("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(KEY, by("key").value);
    by("key").value = "";
    findModels();
  });
}

/** The response of the server; only one that went well. */
async function ask(path, body, signal) {
  const headers = {};
  const key = kept(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await unlessGone(fetch(path, options), "no_answer");
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  if (response.status === 401) throw new Trouble(key ? "wrong_key" : "key_needed", { status: 401 });
  throw trouble(told, response.status);
}

/** A whole answer. */
async function whole(path, body, signal) {
  const response = await ask(path, body, signal);
  const text = await unlessGone(response.text(), "hung_up");
  try {
    return JSON.parse(text);
  } catch {
    throw new Trouble("not_understood", { status: response.status });
  }
}

/** The choices of a stream, as they come. */
async function* choices(path, body, signal) {
  const response = await ask(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await unlessGone(reader.read(), "hung_up");
    if (done) throw new Trouble("hung_up");
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      yield* choicesOf(event, response.status);
    }
  }
}

function choicesOf(event, status) {
  let told;
  try {
    told = JSON.parse(event.slice("data: ".length));
  } catch {
    throw new Trouble("not_understood", { status });
  }
  if (!told.choices) throw trouble(told, status);
  return told.choices.map((choice) => ({ ...choice, leftOut: told.turns_left_out }));
}

function trouble(told, status) {
  const { message, code } = told?.error ?? {};
  return message ? new Trouble("refused", { message, code, status }) : new Trouble("not_understood", { status });
}

/** The result of a promise of the network, which fails with a name of its own unless the reader stopped it. */
async function unlessGone(promise, name) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble(name);
  }
}
