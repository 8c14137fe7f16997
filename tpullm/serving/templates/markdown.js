// Markdown as elements. Whatever a model writes stays a text: no HTML, and links have no address to go to.

const DEEPEST = 8; // lists in lists, quotes in quotes; deeper ones are texts
const FENCE = /^ {0,3}(```+|~~~+)/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)]) +(.*)/;
const COLUMNS = /^\|?( *:?-+:? *\|)* *:?-+:?( *\|)?$/;
// Each alternative ends at the next sign of its kind, so that no text takes long.
const SPAN = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*(?!\w)/g;

/** The elements of a text. */
function markdown(text, depth = 0) {
  const lines = text.split("\n");
  const made = [];
  while (lines.length) {
    if (!lines[0].trim()) lines.shift();
    else made.push(block(lines, depth));
  }
  return made;
}

/** The next block; its lines are taken from `lines`. */
function block(lines, depth) {
  const [line] = lines;
  if (FENCE.test(line)) return codeBlock(lines);
  if (isTable(lines, 0)) return table(lines);
  const heading = HEADING.exec(line);
  if (heading || RULE.test(line)) {
    lines.shift();
    return heading ? element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...spans(heading[2])) : element("hr", {});
  }
  if (depth < DEEPEST && QUOTE.test(line)) {
    const quoted = takeWhile(lines, (one) => QUOTE.test(one)).map((one) => one.replace(QUOTE, ""));
    return element("blockquote", {}, ...markdown(quoted.join("\n"), depth + 1));
  }
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, depth);
  const paragraph = takeWhile(lines, (one, n) => n === 0 || !begins(lines, n));
  return element("p", {}, ...spans(paragraph.join("\n")));
}

/** Whether a line begins a block other than a paragraph, or is empty. */
function begins(lines, n) {
  const line = lines[n];
  return !line.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((kind) => kind.test(line)) || isTable(lines, n);
}

/** Take the lines from the beginning that `holds` is true of. */
function takeWhile(lines, holds) {
  const end = lines.findIndex((line, n) => !holds(line, n));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function codeBlock(lines) {
  const [, mark] = FENCE.exec(lines.shift());
  const code = takeWhile(lines, (line) => !(line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "")));
  lines.shift(); // the end; there is none yet while the model writes
  return element("pre", {}, element("code", {}, code.join("\n")));
}

function list(lines, depth) {
  const [, , number] = ITEM.exec(lines[0]);
  const made = element(number ? "ol" : "ul", number ? { start: Number(number) } : {});
  const indent = lines[0].search(/\S/);
  const mine = (line) => ITEM.exec(line)?.[1].length === indent && Boolean(ITEM.exec(line)[2]) === Boolean(number);
  while (lines.length && mine(lines[0])) {
    const first = ITEM.exec(lines.shift())[3];
    const inner = takeWhile(lines, (line) => !line.trim() || line.search(/\S/) > indent);
    const dedent = Math.min(...inner.filter((line) => line.trim()).map((line) => line.search(/\S/)));
    const [head, ...rest] = markdown([first, ...inner.map((line) => line.slice(dedent))].join("\n"), depth + 1);
    made.append(element("li", {}, ...(head?.tagName === "P" ? head.childNodes : [head ?? ""]), ...rest));
  }
  return made;
}

function isTable(lines, n) {
  return lines[n].includes("|") && Boolean(lines[n + 1]?.includes("|")) && COLUMNS.test(lines[n + 1].trim());
}

function table(lines) {
  const cells = (line, kind) =>
    line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => element(kind, {}, ...spans(cell.trim())));
  const head = element("tr", {}, ...cells(lines.shift(), "th"));
  lines.shift();
  const rows = takeWhile(lines, (line) => line.includes("|")).map((line) => element("tr", {}, ...cells(line, "td")));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { className: "wide" }, made);
}

/** Code, bold and italics in a line. */
function spans(text) {
  const made = [];
  let end = 0;
  for (const found of text.matchAll(SPAN)) {
    made.push(text.slice(end, found.index));
    const [whole, code, strong, slanted] = found;
    if (code) made.push(element("code", {}, code));
    else made.push(element(strong ? "strong" : "em", {}, strong ?? slanted));
    end = found.index + whole.length;
  }
  made.push(text.slice(end));
  return made.filter((part) => part !== "");
}
