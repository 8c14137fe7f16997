// Runs the scripts of a shared page in Node: `node shared_page.js PAGE < texts`. Prints what `measured` returns.

const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const held = [...html.matchAll(/<script type="text\/plain" id="([\w-]+)">(.*?)<\/script>/gs)];
const data = new Map(held.map(([, id, text]) => [id, { textContent: text }]));
const code = html.match(/<script>(.*?)<\/script>/s)[1].split("// A conversation.")[0];

globalThis.document = { getElementById: (id) => data.get(id) ?? null };
globalThis.Trouble = class extends Error {};
const { measured, texts } = JSON.parse(fs.readFileSync(0, "utf8"));
new Function("texts", `${code}; return (${measured})(texts);`)(texts).then((found) => console.log(JSON.stringify(found)));
