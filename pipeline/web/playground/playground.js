"use strict";

const ALTERNATIVES = 5;
const LEVELS = [0.02, 0.1, 0.3, 0.6]; // where the color changes; the legend says the same
const byId = (id) => document.getElementById(id);
const percent = (p) => (p >= 0.0995 ? `${Math.round(p * 100)} %` : p >= 0.001 ? `${(p * 100).toFixed(1)} %` : "below 0.1 %");
// An object has names such as "7" first, so the order of its entries says nothing.
const likeliest = (top) => Object.entries(top).sort(([, a], [, b]) => b - a);
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";

let models = [];
let writing = null; // an AbortController while texts are written

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The answer of the server; its error message is the message of what this throws. */
async function ask(path, body, signal) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal } : { signal };
  const answer = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `The server answered ${answer.status}.`);
  }
  return answer;
}

/** The objects of a stream of server-sent events. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}

/** One model, its depth and the text that it writes. */
class Column {
  constructor(chosen) {
    this.root = byId("column").content.cloneNode(true).firstElementChild;
    this.select = this.root.querySelector("select");
    this.slider = this.root.querySelector("input[type=range]");
    this.text = this.root.querySelector(".text");
    this.details = this.root.querySelector(".details");
    this.tokens = [];
    for (const model of models) this.select.append(element("option", { value: model.id }, model.id));
    this.select.value = models[Math.min(chosen, models.length - 1)].id;
    this.select.addEventListener("change", () => this.showModel());
    this.slider.addEventListener("input", () => this.showDepth());
    this.text.addEventListener("mouseover", (event) => this.at(event, (index) => this.show(index)));
    this.text.addEventListener("focusin", (event) => this.at(event, (index) => this.show(index)));
    this.text.addEventListener("click", (event) => this.at(event, (index) => this.openLens(index)));
    this.text.addEventListener("keydown", (event) => this.at(event, (index) => this.key(event, index)));
    this.showModel();
  }

  get model() {
    return models.find((model) => model.id === this.select.value);
  }

  showModel() {
    const { depths, depth, parameters, root, max_model_len, unit } = this.model;
    this.root.querySelector(".about").textContent =
      `${parameters.toLocaleString("en")} parameters, ${depth} ${unit}, reads ${max_model_len.toLocaleString("en")} tokens` +
      (root === this.model.id ? "" : `; now ${root}`);
    this.root.querySelector(".depth").hidden = !depths;
    if (depths) {
      this.slider.max = depths.at(-1);
      this.slider.value = depth;
      this.showDepth();
    }
  }

  showDepth() {
    const { depth } = this.model;
    const own = Number(this.slider.value) === depth ? " (trained)" : "";
    this.root.querySelector("output").textContent = `${this.slider.value}${own}`;
    this.slider.setAttribute("aria-valuetext", `${this.slider.value} of ${this.slider.max} steps${own}`);
  }

  clear() {
    this.tokens = [];
    this.text.replaceChildren();
    this.details.hidden = true;
  }

  async write(settings, signal) {
    this.clear();
    const { depths } = this.model;
    const body = { ...settings, model: this.model.id, stream: true, echo: true, logprobs: ALTERNATIVES };
    if (depths) body.depth = Number(this.slider.value);
    this.writer = this.model.id;
    const own = [...settings.prompt].length; // characters, as Python counts them
    for await (const event of events(await ask("v1/completions", body, signal))) {
      const [choice] = event.choices;
      const told = choice.logprobs;
      told.token_ids.forEach((id, i) => {
        const nats = told.token_logprobs[i];
        const given = told.text_offset[i] < own;
        this.add({ id, text: told.texts[i], name: told.tokens[i], nats, top: told.top_logprobs[i] ?? {}, given });
      });
    }
  }

  add(token) {
    const p = token.nats === null ? null : Math.exp(token.nats);
    const level = p === null ? "" : `p${LEVELS.filter((border) => p >= border).length}`;
    const others = likeliest(token.top).map(([name, nats]) => `${visible(name)} ${percent(Math.exp(nats))}`);
    const span = element("span", {
      role: "button", tabindex: this.tokens.length ? "-1" : "0", class: `${level} ${token.given ? "given" : ""}`.trim(),
      "data-index": this.tokens.length,
      "aria-label": `${visible(token.name)}${p === null ? ", the first token" : `, ${percent(p)}; likeliest: ${others.join(", ")}`}`,
    }, token.text.replace(/\n/g, "↵\n"));
    this.tokens.push({ ...token, p, span });
    this.text.append(span);
  }

  at(event, act) {
    const index = event.target.closest?.("[data-index]")?.dataset.index;
    if (index !== undefined) act(Number(index));
  }

  show(index) {
    const { name, p, top } = this.tokens[index];
    for (const token of this.text.querySelectorAll(".shown")) token.classList.remove("shown");
    this.tokens[index].span.classList.add("shown");
    this.details.hidden = false;
    if (p === null) {
      this.details.replaceChildren(element("p", {}, element("code", {}, visible(name)), " is the first token: nothing predicts it."));
      return;
    }
    const rows = likeliest(top).map(([other, nats]) => {
      const likelihood = Math.exp(nats);
      const bar = element("meter", { min: 0, max: 1, value: likelihood, "aria-label": `${visible(other)}: ${percent(likelihood)}` });
      return element("tr", other === name ? { class: "own" } : {},
        element("th", { scope: "row" }, element("code", {}, visible(other))),
        element("td", { class: "number" }, percent(likelihood)), element("td", {}, bar));
    });
    this.details.replaceChildren(
      element("p", {}, element("code", {}, visible(name)), ` had ${percent(p)}. Likeliest here:`),
      element("table", {}, element("tbody", {}, ...rows)));
  }

  key(event, index) {
    const last = this.tokens.length - 1;
    const goal = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter" || event.key === " ") this.openLens(index);
    else if (goal === undefined) return;
    else this.focus(Math.max(0, Math.min(last, goal)));
    event.preventDefault();
  }

  focus(index) {
    for (const { span } of this.tokens) span.tabIndex = -1;
    this.tokens[index].span.tabIndex = 0;
    this.tokens[index].span.focus();
  }

  async openLens(index) {
    if (index === 0) return;
    const token = this.tokens[index];
    const ids = this.tokens.slice(0, index + 1).map(({ id }) => id);
    try {
      const look = await (await ask("lens", { model: this.writer, ids })).json();
      const before = this.tokens.slice(Math.max(0, index - 8), index).map(({ text }) => text).join("");
      showLens(token, before.trim(), look);
    } catch (error) {
      say(error.message, true);
    }
  }
}

/** A table of what the model expected at the place of a token, after each of its steps. */
function showLens(token, before, look) {
  const at = look.tokens.length - 2; // the token before predicts it
  const rows = look.depths.map((depth, row) => {
    const own = Math.exp(-look.nats[row][at]);
    const cells = look.predictions[row][at].map(([text, p]) =>
      element("td", text === look.tokens[at + 1] ? { class: "hit" } : {}, element("code", {}, visible(text)), ` ${percent(p)}`));
    return element("tr", depth === look.trained_depth ? { class: "trained" } : {},
      element("th", { scope: "row" }, String(depth)), element("td", { class: "number" }, percent(own)), ...cells);
  });
  const head = element("thead", {}, element("tr", {},
    element("th", { scope: "col" }, "Step"), element("th", { scope: "col", class: "number" }, "This token"),
    element("th", { scope: "col", colspan: ALTERNATIVES }, "Likeliest after that step")));
  byId("lens-table").replaceChildren(head, element("tbody", {}, ...rows));
  const stops = look.steps_taken === null ? "" : ` Learned stopping ended after ${look.steps_taken[at]} steps.`;
  byId("lens-about").replaceChildren(
    "How the model came to ", element("code", {}, visible(token.name)), ` after “${before}”. ` +
    `A step is one of the ${look.unit}; the marked row is the depth it was trained for.${stops}`);
  byId("lens").showModal();
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

function settings() {
  const values = { prompt: byId("prompt").value };
  for (const name of ["temperature", "top_k", "top_p", "max_tokens", "seed"]) {
    if (byId(name).value !== "") values[name] = Number(byId(name).value);
  }
  return values;
}

async function write(columns) {
  writing = new AbortController();
  byId("write").disabled = true;
  byId("stop").disabled = false;
  say("Writing …");
  const began = performance.now();
  const written = () => columns.reduce((sum, column) => sum + column.tokens.filter(({ given }) => !given).length, 0);
  try {
    const shared = settings();
    if (columns.length > 1 && shared.seed === undefined) shared.seed = Math.floor(Math.random() * 2 ** 32);
    const all = columns.map((column) => column.write(shared, writing.signal));
    await Promise.all(all);
    const seconds = (performance.now() - began) / 1000;
    say(`${written()} tokens in ${seconds.toFixed(1)} s`);
  } catch (error) {
    if (error.name === "AbortError") say(`Stopped after ${written()} tokens`);
    else say(error.message, true);
    writing.abort(); // one of two may still write
  } finally {
    writing = null;
    byId("write").disabled = false;
    byId("stop").disabled = true;
  }
}

async function start() {
  try {
    models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    say(error.message, true);
    return;
  }
  const columns = [new Column(0), new Column(1)];
  byId("columns").append(columns[0].root);
  const shown = () => (byId("compare").checked ? columns : columns.slice(0, 1));
  byId("compare").addEventListener("change", () => byId("columns").replaceChildren(...shown().map(({ root }) => root)));
  byId("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!writing) write(shown());
  });
  byId("stop").addEventListener("click", () => writing?.abort());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("settings").requestSubmit();
  });
}

start();
