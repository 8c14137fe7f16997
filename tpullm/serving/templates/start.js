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
  choose();
}

/** Another model: a new conversation, in the mode that it knows. */
function choose() {
  const talks = Boolean(chosenModel()?.talks);
  by("no-chat").hidden = talks;
  by("talk").hidden = !talks;
  newConversation();
  forget();
  openMode(talks ? "chat" : "next");
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
    button.addEventListener("click", () => speak(button.dataset.language));
  }
  by("chat-tab").addEventListener("click", () => openMode("chat"));
  by("next-tab").addEventListener("click", () => openMode("next"));
  by("model").addEventListener("change", choose);
  by("error").querySelector("button").addEventListener("click", () => again());
  startAsking();
  startChat();
  startNext();
  findModels();
}

start();
