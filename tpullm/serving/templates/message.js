// One message on the page: its text, the base's continuation beside it, what happened, and what can be done with it.

const AT_MOST_EVERY = 60; // ms between two looks of a text that is being written

/** The message of a role, with its element, before it has a place on the page. */
function messageOf(role, content, { plain = "", base = "", notes = [] } = {}) {
  const said = { role, content, plain, base, notes, drawn: 0 };
  said.text = element("div", { className: "text" });
  const answers = [element("div", { className: "answer" }, said.text)];
  if (base) {
    said.beside = element("div", { className: "text" });
    answers[0].prepend(element("p", { className: "who" }, translated("tuned", { model: by("model").value })));
    const who = element("p", { className: "who" }, translated("untuned", { model: base }));
    answers.push(element("div", { className: "answer plain" }, who, said.beside));
  }
  said.body = element("div", { className: base ? "answers" : "" }, ...answers);
  said.told = element("div", {});
  said.node = element("div", { className: `message ${role}` }, said.body, said.told, actionsOf(said));
  draw(said);
  return said;
}

/** Show the message as it is now. */
function draw(said) {
  said.drawn = performance.now();
  if (said.role === "user") said.text.textContent = said.content;
  else said.text.replaceChildren(...markdown(said.content));
  said.beside?.replaceChildren(element("span", { className: "given" }, questionBefore(said)), said.plain);
  said.told.replaceChildren(...said.notes.map(([name, values]) => {
    return element("p", { className: "note" }, translated(name, values));
  }));
}

/** Show a message that is being written, now and then. */
function drawSoon(said) {
  if (performance.now() - said.drawn > AT_MOST_EVERY) atEnd(() => draw(said));
}

function note(said, name, values = {}) {
  said.notes.push([name, values]);
  atEnd(() => draw(said));
}

function actionsOf(said) {
  const row = element("div", { className: "actions" });
  const add = (name, act) => {
    const made = element("button", { type: "button" }, translated(name));
    made.addEventListener("click", () => act(made));
    row.append(made);
  };
  add("copy", (button) => copy(said.content, button));
  if (said.role === "user") add("edit", () => edit(said));
  else add("regenerate", () => regenerate(said));
  return row;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // without https the browser has no clipboard for pages
  }
  button.replaceChildren(translated("copied"));
  setTimeout(() => button.replaceChildren(translated("copy")), 1500);
}

function copyBySelection(text) {
  const field = element("textarea", { value: text, className: "hidden-field" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Put a field in the place of a question; what was said after it goes when it is asked anew. */
function edit(said) {
  const field = element("textarea", { value: said.content });
  field.rows = 2;
  field.setAttribute("aria-label", TEXTS.edit[document.documentElement.lang]);
  const ask = element("button", { className: "strong" }, translated("ask_anew"));
  const cancel = element("button", { type: "button" }, translated("cancel"));
  const form = element("form", { className: "editing" }, field, element("div", { className: "row" }, ask, cancel));
  const whole = [...said.node.childNodes];
  cancel.addEventListener("click", () => said.node.replaceChildren(...whole));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) askAnew(said, field.value.trim());
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel.click();
    else if (isSend(event)) form.requestSubmit();
  });
  said.node.replaceChildren(form);
  field.focus();
}

/** Whether a key sends what a field holds; and then it writes no line end. */
function isSend(event) {
  const composing = event.isComposing || event.keyCode === 229; // the Enter that ends a conversion to kanji
  if (event.key !== "Enter" || event.shiftKey || composing) return false;
  event.preventDefault();
  return true;
}
