"use strict";
// Elements, numbers and tables. Text becomes text nodes only: nothing in the data can become HTML.

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "style") for (const [key, of] of Object.entries(value)) node.style.setProperty(key, of);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (name, attributes, ...children) => make(document.createElement(name), attributes, children);
const s = (name, attributes, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

let made = 0;
const unique = (prefix) => `${prefix}-${++made}`;

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits = 3) => (isNumber(value) ? value.toFixed(digits) : "–");
const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %` : "–");
const whole = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : "–");
const significant = (value) => (isNumber(value) ? String(Number(value.toPrecision(3))) : "–");

function compact(value) {
  if (!isNumber(value)) return "–";
  const [size, unit] = [[1e9, "B"], [1e6, "M"], [1e3, "k"], [1, ""]].find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 120) return `${Number(seconds.toPrecision(3))} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A text as it can be read on one line: spaces at its ends and line ends are shown.
function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll("\r", "␍").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

// A text that a model wrote: many line ends one after the other, as after few layers, are counted.
const written = (text) => h("pre", { class: "sample" }, text.replace(/\n{4,}/g, (ends) => `↵ × ${ends.length}\n`));

const short = (text) => (text.length > 16 ? `${text.slice(0, 15)}…` : text);

// A name with the color of its curve.
const named = (name, of) => h("span", { class: "named" }, h("span", { class: "swatch", style: { background: of } }), name);

// Rows of cells, strings or nodes. `numeric` are the indices of columns that are aligned to the right.
function table(caption, heading, rows, numeric = []) {
  const side = (index) => (numeric.includes(index) ? "number" : null);
  const cell = (content, index) =>
    index === 0 ? h("th", { scope: "row", class: side(index) }, content) : h("td", { class: side(index) }, content);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heading.map((text, index) => h("th", { scope: "col", class: side(index) }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell)))),
    ),
  );
}

// A table whose rows are made when it is opened: a curve has hundreds.
function folded(summary, heading, rows, numeric) {
  const node = h("details", {}, h("summary", {}, summary));
  node.addEventListener("toggle", () => {
    if (node.children.length === 1) node.append(table(summary, heading, rows(), numeric));
  });
  return node;
}

function choice(label, names, act) {
  const select = h("select", { on: { change: () => act(select.selectedIndex) } }, names.map((name) => h("option", {}, name)));
  return h("label", { class: "choice" }, `${label} `, select);
}

function slider(label, count, start, say, act) {
  const output = h("output", {}, say(start));
  const input = h("input", { type: "range", min: 0, max: count - 1, step: 1, value: start, "aria-valuetext": say(start) });
  input.addEventListener("input", () => {
    output.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    act(Number(input.value));
  });
  return h("label", { class: "slider" }, h("span", {}, label), input, output);
}

// A bar with its number; the largest of all fills its place.
function bar(value, largest, text, fill = color(0)) {
  const filled = h("span", { class: "filled", style: { width: `${(100 * value) / (largest || 1)}%`, background: fill } });
  return h("span", { class: "bar" }, filled, h("span", { class: "value" }, text));
}

const section = (id, title, ...children) =>
  h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), children);
