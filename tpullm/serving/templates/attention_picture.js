// Which earlier tokens each token of the text looks at: the report's picture, which the server computes.

let drawing = null; // stops the picture that is being asked for
let drawn = ""; // what the picture shows

function startAttention() {
  by("attention").addEventListener("toggle", showAttention);
}

/** Show the picture of the text that was read, if the reader wants to see it. */
async function showAttention() {
  const reader = models.find(({ id }) => id === by("reader").value);
  by("attention").hidden = reader?.attention === undefined || !shown?.left;
  if (by("attention").hidden || !by("attention").open) return;
  const body = { model: reader.id, prompt: shown.left, language: document.documentElement.lang };
  if (drawn === JSON.stringify(body)) return;
  drawn = JSON.stringify(body);
  drawing?.abort();
  const stop = (drawing = new AbortController());
  by("picture").classList.add("stale");
  if (!by("picture").hasChildNodes()) by("picture").append(translated("waiting"));
  try {
    const figure = built((await whole("v1/attention", body, stop.signal)).picture, document.body.namespaceURI);
    by("picture").replaceChildren(figure);
    answerPointer(figure);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Trouble)) throw error; // a fault of this page
    drawn = "";
    by("picture").replaceChildren(translated(error.message, error.values));
  }
  by("picture").classList.remove("stale");
}

/** An element with all that is in it; its texts stay texts. */
function built([name, attributes, ...children], outer) {
  const space = name === "svg" ? by("svg").namespaceURI : outer;
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (typeof child === "string" ? child : built(child, space))));
  return made;
}
