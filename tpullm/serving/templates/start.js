// The page as a whole: its language, its models, its modes, its errors.

const TEXTS = JSON.parse(by("texts").textContent);
let models = [];
let again = null; // what the button beside an error does

/** Whatever goes wrong in asking; the message is the name of one line for the reader. */
class Trouble extends Error {
  constructor(name, values = {}) {
    super(name);
    Object.assign(this, { values, status: values.status ?? 0 });
  }
}

const here = {}; // what the tab would not keep

/** What this tab keeps until it is closed, or where the reader's settings forbid that, until the page is left. */
function kept(name) {
  try {
    return here[name] ?? sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name, text) {
  try {
    sessionStorage.setItem(name, text);
    delete here[name];
  } catch {
    here[name] = text; // forbidden, or there is no room
  }
}

function by(id) {
  return document.getElementById(id);
}

/** An element; its children are elements or texts, which stay texts. */
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** An element with a text that changes with the language. */
function translated(name, values = {}) {
  const made = element("span", {});
  made.dataset.text = name;
  made.dataset.values = JSON.stringify(values);
  translate(made);
  return made;
}

function translate(node) {
  const values = JSON.parse(node.dataset.values ?? "{}");
  const text = TEXTS[node.dataset.text][document.documentElement.lang];
  node.textContent = text.replace(/{(\w+)}/g, (_, name) => values[name]);
}

function speak(language) {
  document.documentElement.lang = language;
  document.querySelectorAll("[data-text]").forEach(translate);
  for (const field of document.querySelectorAll("[data-label]")) {
    field.placeholder = TEXTS[field.dataset.label][language];
    field.setAttribute("aria-label", field.placeholder);
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", button.dataset.language === language);
  }
}

/** Show what went wrong, and how to try again; null: nothing did. */
function showError(error, retry = null) {
  by("error").hidden = !error || error.message === "key_needed"; // the form says it
  if (!error) return;
  if (!(error instanceof Trouble)) throw error; // a fault of this page
  by("key-form").hidden = error.status !== 401;
  again = retry;
  by("error").querySelector("button").hidden = !retry || error.status === 401;
  by("error").querySelector("span").replaceChildren(translated(error.message, error.values));
  if (error.status === 401) by("key").focus();
}

function chosenModel() {
  return models.find(({ id }) => id === by("model").value);
}

/** The model before its tuning, if it is served too. */
function baseOf(name) {
  return models.find((model) => model.id === name)?.base ?? "";
}

async function findModels() {
  try {
    models = (await whole("v1/models")).data;
  } catch (error) {
    return showError(error, findModels);
  }
  by("key-form").hidden = true;
  by("tabs").hidden = by("which").hidden = false;
  showError(null);
  by("model").replaceChildren(...models.map(({ id }) => element("option", { value: id, textContent: id })));
  document.title = `${models[0].id} – tpullm`;
  const chat = keptChat();
  if (chat) by("model").value = chat.model;
  choose();
  if (chat) restoreChat(chat);
}

/** Another model: a new conversation, in the mode that it knows. */
function choose() {
  const { talks, system, questions } = chosenModel();
  by("no-chat").hidden = talks;
  by("talk").hidden = !talks;
  by("system-field").hidden = !system;
  by("system").value = "";
  by("known").hidden = !questions.length;
  by("questions").replaceChildren(...questions.map(questionButton));
  newConversation();
  chooseReaders();
  forget();
  openMode(talks ? "chat" : "next");
}

function questionButton(question) {
  const made = element("button", { type: "button", textContent: question });
  made.addEventListener("click", () => say(question));
  return made;
}

function openMode(mode) {
  for (const name of ["chat", "next"]) {
    by(name).hidden = name !== mode;
    by(`${name}-tab`).setAttribute("aria-selected", name === mode);
  }
  if (mode === "next" && !shown && !reading) read();
}

function start() {
  speak(navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en");
  by("text").value = TEXTS.first_text[document.documentElement.lang];
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      speak(button.dataset.language);
      showAttention();
    });
  }
  by("chat-tab").addEventListener("click", () => openMode("chat"));
  by("next-tab").addEventListener("click", () => openMode("next"));
  by("model").addEventListener("change", choose);
  by("error").querySelector("button").addEventListener("click", () => again());
  startAsking();
  startChat();
  startNext();
  startAttention();
  findModels();
}

start();
