// A conversation. Its messages are those of the API; each has its element on the page, and the tab keeps them.

const MOST_PLAIN = 60; // tokens of the base: a text that it continues may have no end

let messages = [];
let answering = null; // stops the answer that is being written

function startChat() {
  by("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = by("message").value.trim();
    if (!content || answering || !by("chat-form").reportValidity()) return;
    by("message").value = "";
    say(content);
  });
  by("message").addEventListener("keydown", (event) => isSend(event) && by("chat-form").requestSubmit());
  by("stop").addEventListener("click", () => answering?.abort());
  by("system").addEventListener("change", keepChat);
  by("new").addEventListener("click", () => {
    newConversation();
    by("message").focus();
  });
  addEventListener("pagehide", keepChat);
}

function newConversation() {
  answering?.abort();
  answering = null;
  messages = [];
  by("messages").replaceChildren();
  showError(null);
  showChat();
}

function say(content) {
  add("user", content);
  answer();
}

/** Add a message and its element. */
function add(role, content, more) {
  const said = messageOf(role, content, more);
  by("messages").append(said.node);
  messages.push(said);
  showChat();
  showEnd(); // the form lies over the end of the messages
  return said;
}

/** Take a message and all after it away. */
function cutFrom(said) {
  answering?.abort();
  answering = null;
  const at = messages.indexOf(said);
  for (const { node } of messages.splice(at < 0 ? messages.length : at)) node.remove();
  showChat();
}

function askAnew(said, content) {
  cutFrom(said);
  say(content);
}

function regenerate(said) {
  cutFrom(said);
  answer();
}

/** The text that the message answers. */
function questionBefore(said) {
  const at = messages.indexOf(said);
  return messages[(at < 0 ? messages.length : at) - 1]?.content ?? "";
}

/** Have the model answer the last message of the user, and its base go on with it. */
async function answer() {
  const stop = (answering = new AbortController());
  const system = by("system").value.trim();
  const asked = messages.map(({ role, content }) => ({ role, content }));
  if (system && !by("system-field").hidden) asked.unshift({ role: "system", content: system });
  const base = baseOf(by("model").value);
  const said = add("assistant", "", { base });
  const body = { model: by("model").value, messages: asked, min_p: 0.05, ...settings(), truncation: "auto" };
  showError(null);
  await Promise.all([writeAnswer(said, body, stop.signal), base && writeBeside(said, stop.signal)]);
  if (answering === stop) answering = null;
  showChat();
}

async function writeAnswer(said, body, signal) {
  said.text.classList.add("writing");
  try {
    for await (const choice of choices("v1/chat/completions", body, signal)) hear(said, choice);
  } catch (error) {
    if (error.name === "AbortError") note(said, "stopped");
    else if (messages.includes(said)) failed(said, error);
  }
  said.text.classList.remove("writing");
  atEnd(() => draw(said));
}

function hear(said, choice) {
  if (choice.leftOut && !said.notes.length) note(said, "left_out", { turns: choice.leftOut });
  said.content += choice.delta.content ?? "";
  if (choice.finish_reason === "length") note(said, "cut");
  else if (choice.finish_reason && !said.content) note(said, "empty");
  drawSoon(said);
}

/** The base goes on with the question, as it does with any text. */
async function writeBeside(said, signal) {
  const { temperature, max_tokens } = settings();
  const most = Math.min(max_tokens, MOST_PLAIN);
  const body = { model: said.base, prompt: questionBefore(said), max_tokens: most, min_p: 0.05, temperature };
  said.beside.classList.add("writing");
  try {
    for await (const choice of choices("v1/completions", body, signal)) {
      said.plain += choice.text;
      if (choice.finish_reason === "length") said.plain += " …";
      drawSoon(said);
    }
  } catch (error) {
    if (!(error instanceof Trouble || error.name === "AbortError")) throw error; // a fault of this page
    if (error instanceof Trouble && messages.includes(said)) note(said, "base_failed");
  }
  said.beside.classList.remove("writing");
  atEnd(() => draw(said));
}

/** Change the page; if its end was in sight it still is. */
function atEnd(change) {
  const wasThere = innerHeight + scrollY > document.documentElement.scrollHeight - 80;
  change();
  if (wasThere) showEnd();
}

function showEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

/** An answer that is not whole. What was too long goes back to its field; anything else can be asked again. */
function failed(said, error) {
  const tooLong = error.values?.code === "context_length_exceeded";
  showError(error, tooLong ? null : () => regenerate(said));
  if (said.content) return;
  const question = messages.at(-2);
  if (!tooLong) return cutFrom(said);
  by("message").value = by("message").value || question.content;
  cutFrom(question);
}

function settings() {
  return { temperature: Number(by("temperature").value), max_tokens: Number(by("most").value) };
}

function showChat() {
  by("send").hidden = Boolean(answering);
  by("stop").hidden = !answering;
  by("new").disabled = !messages.length;
  by("beginning").hidden = messages.length > 0;
  keepChat();
}

/** Where the tab keeps it: a page of other models at the same address has another place. */
function chatKey() {
  return `tpullm-chat-${models[0].identity}`;
}

/** Keep the conversation in this tab, so that it outlives a reload. */
function keepChat() {
  if (!models.length) return; // the page does not know yet what was kept
  const kept = messages.map(({ role, content, plain, base, notes }) => ({ role, content, plain, base, notes }));
  keep(chatKey(), JSON.stringify({ model: by("model").value, system: by("system").value, messages: kept }));
}

/** What was kept, if it is with a model that is still served. */
function keptChat() {
  try {
    const chat = JSON.parse(kept(chatKey()));
    return models.some(({ id }) => id === chat.model) ? chat : null;
  } catch {
    return null;
  }
}

function restoreChat(chat) {
  by("system").value = chat.system;
  for (const { role, content, ...more } of chat.messages) add(role, content, more);
}
