"use strict";
// The depth lens: a passage whose tokens show what the model predicted for them after each step.

// Tokens to choose from with the mouse or the arrow keys. `tell(index)` is what a screen reader says of one.
function passage(label, tokens, tell, act) {
  const name = unique("tokens");
  const options = tokens.map((text, index) =>
    h("span", { role: "option", id: `${name}-${index}`, class: "token", "aria-selected": "false", on: { click: () => choose(index) } },
      text.replaceAll("\n", "↵\n").replaceAll("\t", "→\t") || "∅"));
  const box = h("div", { role: "listbox", tabindex: "0", class: "passage", "aria-label": label }, options);
  let chosen = null;

  function choose(index) {
    if (chosen !== null) options[chosen].setAttribute("aria-selected", "false");
    chosen = index;
    options[index].setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", options[index].id);
    act(index);
  }

  box.addEventListener("keydown", (event) => {
    const from = chosen ?? 0;
    const to = { ArrowRight: from + 1, ArrowDown: from + 10, ArrowLeft: from - 1, ArrowUp: from - 10, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(tokens.length - 1, to)));
  });
  const retell = () => options.forEach((option, index) => option.setAttribute("aria-label", tell(index)));
  retell();
  return { box, options, choose, retell };
}

function lensSection(run) {
  const { lens } = run;
  if (!lens) return null;
  const step = stepName(lens.unit);
  const hot = Math.log(run.data.vocab_size); // full color: the loss of a guess among all tokens
  let depth = lens.depths.indexOf(lens.trained_depth);
  const loss = (index, at = depth) => (index ? lens.nats[at][index - 1] : null);
  const panel = h("div", { class: "panel", "aria-live": "polite" });
  const text = passage(
    "The passage, a token at a time; the arrow keys move to another token",
    lens.tokens,
    (index) => `${visible(lens.tokens[index])}, ${index ? `loss ${fixed(loss(index), 2)}` : "the first token"}`,
    (index) => panel.replaceChildren(...predictions(lens, index, step)),
  );
  const map = heatMap(lens, hot, text.choose);

  function paint() {
    text.options.forEach((option, index) => option.style.setProperty("--heat", String(Math.min(1, (loss(index) ?? 0) / hot))));
    text.retell();
  }

  paint();
  text.choose(mostGained(lens));
  const stops = lens.steps_taken
    ? h("p", {}, `Learned stopping: a token of this passage takes ${fixed(mean(lens.steps_taken), 2)} of at most ${lens.trained_depth} steps on average. Tokens whose prediction ended early are underlined.`)
    : null;
  if (lens.steps_taken) text.options.forEach((option, index) => option.classList.toggle("early", index > 0 && lens.steps_taken[index - 1] < lens.trained_depth - 0.5));
  return section(
    "lens", "Inside a passage: the depth lens",
    h("p", {}, `A passage of validation text, which the model never learned from. The redder a token, the less the model expected it. Choose a token (click, or use the arrow keys) to see what the model would have predicted in its place after each ${step}.`),
    stops,
    slider("Color by the loss after", lens.depths.length, depth, (at) => stepCount(lens.depths[at], step), (at) => { depth = at; paint(); }),
    h("div", { class: "beside" }, text.box, panel),
    map,
  );
}

// The token whose loss falls most from the first depth to the trained one.
function mostGained({ nats, depths, trained_depth: trained }) {
  const last = nats[depths.indexOf(trained)];
  const gains = nats[0].map((value, index) => value - last[index]);
  return gains.length ? 1 + gains.indexOf(Math.max(...gains)) : 0;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const stepName = (unit) => (unit.startsWith("layers") ? "layer" : "step");
const stepCount = (count, step) => `${count} ${step}${count === 1 ? "" : "s"}`;

// For one token: its loss and the top predictions at each depth.
function predictions(lens, index, step) {
  const token = lens.tokens[index];
  if (!index) return [h("h3", {}, `“${visible(token)}”`), h("p", {}, "The passage begins here, so nothing is predicted.")];
  const taken = lens.steps_taken?.[index - 1];
  const end = taken === undefined || taken === null ? null : lens.depths.filter((depth) => depth < taken - 0.001).length;
  const rows = lens.depths.map((depth, at) => {
    const guesses = lens.predictions[at][index - 1].map(([text, probability]) =>
      h("span", { class: text === token ? "guess right" : "guess" }, h("b", {}, short(visible(text))), ` ${percent(probability)}${text === token ? " ✓" : ""}`));
    return [String(depth), fixed(lens.nats[at][index - 1], 2), ...(end === null ? [] : [at === end ? "◀\u00a0ends" : ""]), h("span", { class: "guesses" }, guesses)];
  });
  const final = lens.nats[lens.depths.indexOf(lens.trained_depth)][index - 1];
  const before = lens.tokens.slice(Math.max(0, index - 6), index).map(visible).join("");
  const ends = end === null ? null : h("p", {}, `Here learned stopping ends after ${significant(taken)} of at most ${lens.trained_depth} steps${Number.isInteger(taken) ? "" : " on average"}.`);
  return [
    h("h3", {}, `“${visible(token)}” after “${before}”`),
    h("p", {}, `In the end the model gives it ${percent(Math.exp(-final))}: a loss of ${fixed(final, 2)} nats.`),
    ends,
    table(`Predictions after each ${step}, the likeliest first`, [step, "loss", ...(end === null ? [] : ["ends"]), "predicted"], rows, [1]),
  ].filter(Boolean);
}

// The loss of each token (across) after each step (down).
function heatMap(lens, hot, choose) {
  const [columns, rows] = [lens.tokens.length - 1, lens.depths.length];
  if (columns < 1) return null;
  const height = Math.max(8, Math.min(22, 160 / rows));
  const cells = lens.nats.flatMap((nats, row) => nats.map((value, column) =>
    s("rect", { x: column, y: row, width: 1.02, height: 1.02, class: "hot", style: { "fill-opacity": Math.min(1, (value ?? hot) / hot).toFixed(3) } })));
  const map = s("svg", {
    viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", height: rows * height, class: "heat", role: "img",
    "aria-label": `Loss of each token after each ${stepName(lens.unit)}. Mean over the passage: ${lens.nats.map((nats, row) => `${fixed(mean(nats), 2)} after ${lens.depths[row]}`).join(", ")}.`,
  }, cells);
  map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    choose(1 + Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns)));
  });
  const rowsOf = () => lens.tokens.slice(1).map((text, index) => [visible(text), ...lens.nats.map((nats) => fixed(nats[index], 2))]);
  const summary = "Loss of each token after each " + stepName(lens.unit);
  return h("figure", {}, h("figcaption", {}, `${summary}: tokens from left to right, ${stepName(lens.unit)}s from top to bottom; red is ${fixed(hot, 1)} nats or more, as bad as a guess among all tokens`), map,
    folded(`${summary}: the numbers`, ["token", ...lens.depths.map((depth) => stepCount(depth, stepName(lens.unit)))], rowsOf, lens.depths.map((_, at) => at + 1)));
}

function expertsSection(run) {
  const { experts, lens } = run;
  if (!experts) return null;
  const called = (index, layer) => (experts.dummy && index === layer.experts.length - 1 ? "dummy" : `expert ${index + 1}`);
  const place = h("div");

  function show(number) {
    const layer = experts.layers[number];
    const rows = layer.experts.map(({ load, favourites }, index) => [
      named(called(index, layer), color(index)),
      bar(load, Math.max(...layer.experts.map((one) => one.load)), percent(load), color(index)),
      h("span", { class: "guesses" }, favourites.map(([text, share]) => h("span", { class: "guess" }, h("b", {}, short(visible(text))), ` ${percent(share)}`))),
    ]);
    const chosen = lens?.experts.find((one) => one.layer === layer.layer && one.run === layer.run)?.chosen;
    const text = chosen && h("p", { class: "passage", "aria-hidden": "true" }, lens.tokens.map((token, index) =>
      h("span", { class: "token of-expert", style: { "--of": color(chosen[index][0]) } }, token.replaceAll("\n", "↵\n"))));
    place.replaceChildren(
      table(`Share of tokens that go to each expert, and the tokens that it takes more than others (with its share of them)`, ["expert", "tokens", "takes most of"], rows),
      ...(text ? [h("p", {}, "The passage again, each token in the color of the first expert that it goes to:"), text] : []),
    );
  }

  const names = experts.layers.map(({ layer, run: times }) => experts.layers.some((one) => one.layer === layer && one.run > 1) ? `${layer}, time ${times}` : layer);
  show(0);
  return section(
    "experts", "Which tokens each expert takes",
    h("p", {}, `Each layer of this model has several experts, and a router that sends each token to a few of them. Counted over ${whole(experts.tokens)} tokens of validation text. A balanced load is one of equal bars.`),
    choice("Layer", names, show), place,
  );
}
