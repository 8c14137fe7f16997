// A conversation. Its messages are those of the API; each has its element on the page.

let messages = [];
let answering = null; // stops the answer that is being written

function startChat() {
  by("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = by("message").value.trim();
    if (!content || answering || !by("chat-form").reportValidity()) return;
    by("message").value = "";
    add("user", content);
    answer();
  });
  by("message").addEventListener("keydown", (event) => {
    const composing = event.isComposing || event.keyCode === 229; // the Enter that ends a conversion to kanji
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    by("chat-form").requestSubmit();
  });
  by("stop").addEventListener("click", () => answering?.abort());
  by("new").addEventListener("click", () => {
    newConversation();
    by("message").focus();
  });
}

function newConversation() {
  answering?.abort();
  messages = [];
  by("messages").replaceChildren();
  showError(null);
  showChat();
}

/** Add a message and its element. */
function add(role, content) {
  const text = element("div", { className: "text", textContent: content });
  const node = element("div", { className: `message ${role}` }, text);
  by("messages").append(node);
  messages.push({ role, content, node, text });
  showChat();
  showEnd(); // the form lies over the end of the messages
  return messages.at(-1);
}

/** Have the model answer the last message of the user. */
async function answer() {
  const stop = (answering = new AbortController());
  const asked = messages.map(({ role, content }) => ({ role, content }));
  const said = add("assistant", "");
  const body = { model: by("model").value, messages: asked, min_p: 0.05, ...settings() };
  showError(null);
  said.node.classList.add("writing");
  try {
    for await (const choice of choices("v1/chat/completions", body, stop.signal)) hear(said, choice);
  } catch (error) {
    if (error.name === "AbortError") note(said, "stopped");
    else if (messages.includes(said)) failed(said, error);
  }
  said.node.classList.remove("writing");
  if (answering === stop) answering = null;
  showChat();
}

function hear(said, choice) {
  const atEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 80;
  said.content += choice.delta.content ?? "";
  said.text.textContent = said.content;
  if (choice.note) note(said, choice.note);
  if (choice.finish_reason === "length") note(said, "cut");
  else if (choice.finish_reason && !said.content) note(said, "empty");
  if (atEnd) showEnd();
}

function showEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

function failed(said, error) {
  showError(error, () => {
    said.node.remove();
    messages = messages.filter((message) => message !== said);
    answer();
  });
  if (said.content) return;
  said.node.remove();
  messages = messages.filter((message) => message !== said);
}

function note(said, name) {
  said.node.append(element("div", { className: "note" }, translated(name)));
}

function settings() {
  return { temperature: Number(by("temperature").value), max_tokens: Number(by("most").value) };
}

function showChat() {
  by("send").hidden = Boolean(answering);
  by("stop").hidden = !answering;
  by("new").disabled = !messages.length;
  by("chat-hint").hidden = messages.length > 0;
}
