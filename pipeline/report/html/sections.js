"use strict";
// The sections of the page: what a reader asks, in this order.

const nats = (run, bitsPerByte) => (isNumber(run.per_byte) ? bitsPerByte * run.per_byte : null);
const baselinesIn = (run) => run.baselines.map(({ name, val_bpb }) => ({ name, y: nats(run, val_bpb) })).filter(({ y }) => isNumber(y));

function lead(run) {
  const { figures, data, about } = run;
  const size = figures.params ? `with ${compact(figures.params)} parameters ` : "";
  const from = run.start === "scratch" ? "" : ` It started from ${run.start}.`;
  const what = data.description ? `${data.name} (${data.description})` : data.name;
  const state = run.finished ? "" : " It is not finished: these are its last figures.";
  const unsure = isNumber(figures.val_loss)
    ? `On text that it never learned from, it is as unsure of the next token as if it had to guess among ${significant(Math.exp(figures.val_loss))} equally likely ones.`
    : "";
  const machine = about.device ? ` on ${about.device === "cpu" ? "a CPU" : about.device}` : "";
  const done = figures.tokens ? `read ${compact(figures.tokens)} tokens of ${what} in ${duration(figures.seconds)}${machine}` : `was only evaluated on ${what}, not trained`;
  return h("p", { class: "lead" }, `A GPT ${size}${done}.${from}${state} ${unsure}`);
}

function qualitySection(run) {
  const { figures } = run;
  const better = run.baselines.filter(({ val_bpb }) => val_bpb > figures.val_bpb);
  const best = better[0];
  const card = (value, name, text) => h("div", { class: "card" }, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("span", {}, text)));
  return section(
    "quality", "How well it predicts",
    h("dl", { class: "cards" },
      card(fixed(figures.val_loss), "nats per token", "the loss on validation text; lower is better"),
      card(fixed(figures.val_bpb), "bits per byte", best ? `${best.name} needs ${fixed(best.val_bpb)}` : "compares models with other tokenizers"),
      card(significant(Math.exp(figures.val_loss)), "perplexity", `of ${whole(run.data.vocab_size)} tokens that there are`),
      card(compact(figures.tokens), "tokens read", isNumber(run.data.train_tokens) ? `${significant(figures.tokens / run.data.train_tokens)} times the training text` : "in training"),
      card(duration(figures.seconds), "of training", isNumber(run.about.tokens_per_second) ? `${compact(run.about.tokens_per_second)} tokens a second` : "")),
    h("details", {}, h("summary", {}, "What do these numbers mean?"),
      h("p", {}, "A language model gives each possible next token a probability. The loss is −log of the probability that it gave to the token that really came, averaged over the text: 0 nats would be certain and right. Perplexity is e to that power: among how many equally likely tokens it might as well have guessed. Bits per byte is the same loss per byte of text instead of per token: with it, models that cut text in other ways can be compared, and file compressors, too."),
      isNumber(figures.train_loss) ? h("p", {}, `On training text the loss is ${fixed(figures.train_loss)}. If that is far below the ${fixed(figures.val_loss)} on validation text, the model has learned some of its text by heart; more text helps, or model.dropout.`) : null),
    baselineTable(run), zeroshotTable(run));
}

function baselineTable(run) {
  if (!run.baselines.length) return null;
  const rows = [{ name: run.name, val_bpb: run.figures.val_bpb, own: true }, ...run.baselines].sort((a, b) => a.val_bpb - b.val_bpb);
  const largest = Math.max(...rows.map(({ val_bpb }) => val_bpb));
  return table("Beside simpler models on the same validation text (lower is better)", ["model", "bits per byte", "nats per token"],
    rows.map(({ name, val_bpb, own }) => [own ? h("strong", {}, name) : name, bar(val_bpb, largest, fixed(val_bpb), color(own ? 1 : 0)), fixed(nats(run, val_bpb))]), [2]);
}

function zeroshotTable(run) {
  if (!run.zeroshot.length) return null;
  const rows = run.zeroshot.flatMap(({ task, samples, ...figures }) => Object.entries(figures).filter(([, value]) => isNumber(value)).map(([name, value]) => [task, name, significant(value), whole(samples)]));
  return table("Tasks that it was not trained for", ["task", "figure", "value", "samples"], rows, [2, 3]);
}

// What an axis is called, and how its numbers are written: short in the chart, exact in the table.
const AXES = { step: ["steps", compact, whole], tokens: ["tokens", compact, whole], seconds: ["time", duration, (x) => `${x} s`] };

function trainingSection(runs) {
  const known = runs.filter((run) => run.validation.step.length || run.training.step.length);
  if (!known.length) return null;
  const alone = runs.length === 1;
  const points = (columns, axis, name) => columns[axis].map((x, i) => [x, columns[name][i]]);
  const lossSeries = (axis) => known.flatMap((run, index) => {
    const at = runs.indexOf(run);
    return [
      { name: alone ? "training" : `${run.name}, training`, points: points(run.training, axis, "train_loss"), color: color(at), faint: !alone },
      { name: alone ? "validation" : run.name, points: points(run.validation, axis, "val_loss"), color: color(alone ? 1 : at), dots: true },
    ];
  });
  const each = (axis, name, label) => known.map((run) => ({ name: alone ? label : run.name, points: points(run.training, axis, name), color: color(runs.indexOf(run)) }));
  const numbers = { yFormat: significant };
  const charts = [
    ["Loss while training", "nats per token", (axis) => ({ series: lossSeries(axis), lines: alone ? baselinesIn(runs[0]) : [], cutStart: true }), 340],
    ["Learning rate", "learning rate", (axis) => ({ series: each(axis, "lr", "learning rate") }), 200],
    ["Gradient norm", "norm", (axis) => ({ series: each(axis, "grad_norm", "gradient norm"), cutStart: true }), 200],
  ].map(([title, y, content, height]) => {
    const on = (axis) => ({ x: AXES[axis][0], xFormat: AXES[axis][1], xExact: AXES[axis][2], whole: false, ...content(axis) });
    return { ...lineChart({ title, y, ...numbers, ...on("step") }, height), on };
  });
  const radios = Object.entries(AXES).map(([axis, [label]], index) => {
    const input = h("input", { type: "radio", name: "axis", value: axis, on: { change: () => charts.forEach((chart) => chart.show(chart.on(axis))) } });
    input.checked = index === 0;
    return h("label", {}, input, ` ${label}`);
  });
  return section(
    "training", alone ? "How it learned" : "How they learned",
    h("p", {}, "The loss on the text that it learns from, and on validation text. Where the validation loss rises again while the training loss falls, the model only learns by heart."),
    h("fieldset", { class: "radios" }, h("legend", {}, "Against"), radios),
    charts[0].node, h("div", { class: "pair" }, charts[1].node, charts[2].node));
}

function depthSection(run) {
  if (!run.depth.length && !run.written) return null;
  const unit = run.lens?.unit ?? "layers applied";
  const step = stepName(unit);
  const trained = run.lens?.trained_depth ?? run.depth.at(-1).depth;
  const shown = run.written ?? run.depth.map(({ depth }) => ({ depth, flops_share: null, text: null }));
  if (shown.length < 2) return null; // there is nothing to choose
  const losses = new Map(run.depth.map((row) => [row.depth, row]));
  const chart = run.depth.length ? lineChart(depthChart([run], step, "validation loss"), 300) : null;
  const place = h("div", { class: "panel", "aria-live": "polite" });
  const say = (at) => `${stepCount(shown[at].depth, step)}${shown[at].depth === trained ? ", as trained" : ""}`;

  function show(at) {
    const { depth, flops_share: share, text } = shown[at];
    const row = losses.get(depth);
    chart?.mark(depth);
    place.replaceChildren(
      h("dl", { class: "facts" },
        fact("loss", row ? `${fixed(row.val_loss)} nats per token` : "not measured"),
        isNumber(row?.val_bpb) ? fact("bits per byte", fixed(row.val_bpb)) : null,
        isNumber(share) ? fact("compute", `${percent(share)} of the model's FLOPs for a token`) : null),
      text === null ? null : written(text));
  }

  const start = shown.findIndex(({ depth }) => depth === trained);
  const control = slider("Depth", shown.length, start, say, show);
  show(start);
  const how = step === "layer"
    ? `Each layer refines the prediction of the one before it. Here the model stops after fewer layers, and its output layer reads what it has by then. It was trained to write after all ${trained}; what it writes after fewer shows what these know.`
    : `This model applies one block again and again. Here it takes fewer or more steps than the ${trained} it uses by default.${run.stopping.length ? " On the curve no token stops early; where it writes, a token may." : ""}`;
  return section("depth", `What each ${step} adds`, h("p", {}, `${how} Move the slider to see the loss, the compute, and a text that the model writes at this depth (always from the same prompt and seed).`), control, chart?.node, place, stoppingTable(run));
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

// The depth curves of runs side by side, or that of one under another name, with the baselines.
function depthChart(runs, step, name = null) {
  const alone = name !== null;
  return {
    title: "Validation loss by depth", x: `${step}s`, y: "nats per token", whole: true, labelsAtStart: true, xFormat: (x) => String(x), yFormat: (y) => fixed(y),
    series: runs.map((run) => ({ name: name ?? run.name, points: run.depth.map((row) => [row.depth, row.val_loss]), color: color(alone ? 0 : report.runs.indexOf(run)), dots: true })),
    lines: alone ? baselinesIn(runs[0]) : [],
  };
}

function stoppingTable(run) {
  if (!run.stopping.length) return null;
  const rows = run.stopping.map((row) => [fixed(row.threshold, 2), fixed(row.mean_depth, 2), fixed(row.val_loss), fixed(row.val_bpb)]);
  return table("Learned stopping: a token stops above a threshold; a lower one saves steps", ["threshold", "mean steps", "nats per token", "bits per byte"], rows, [0, 1, 2, 3]);
}

function samplesSection(run) {
  if (!run.samples.length) return null;
  return section("samples", "What it writes", h("p", {}, "Texts from the whole model; the prompt and the randomness are those of the section sample in params.yaml."), h("div", { class: "samples" }, run.samples.map((text) => written(text.trim()))));
}

const HEALTH = {
  grad_norm: "Norm of the gradient", weight_norm: "Norm of the weights", update_norm: "Norm of the last update", update_ratio: "Update beside the weights",
  activation_rms: "Size (RMS) of the residual stream", attention_entropy: "Entropy of attention, in nats", dead_units: "Share of units that are never active", logit_rms: "Size (RMS) of the logits",
};

function healthSection(run) {
  if (!run.health) return null;
  const names = Object.keys(run.health);
  const content = (name) => ({ title: HEALTH[name] ?? name, y: HEALTH[name] ?? name, series: Object.entries(run.health[name]).map(([layer, points], index) => ({ name: layer, points, color: color(index), dashes: dash(index) })) });
  const chart = lineChart({ x: "steps", xFormat: compact, yFormat: significant, ...content(names[0]) }, 280);
  return section("health", "Inside the network while it trained",
    h("p", {}, "Measured every log.health_interval steps in each layer. Curves that jump or run away point at the layer where a training goes wrong."),
    choice("Show", names.map((name) => HEALTH[name] ?? name), (index) => chart.show(content(names[index]))), chart.node);
}

function parametersSection(runs, id = "parameters", title = "Parameters") {
  const alone = runs.length === 1;
  const byName = new Map();
  runs.forEach((run, at) => run.parameters.forEach((one) => {
    if (!byName.has(one.name)) byName.set(one.name, { values: runs.map(() => "–"), default: one.default });
    byName.get(one.name).values[at] = one.value;
  }));
  const all = [...byName].map(([name, one]) => ({ name, ...one, changed: one.values.some((value) => value !== one.default) }));
  const differ = all.filter(({ values }) => new Set(values).size > 1);
  const shown = (alone ? all.filter(({ changed }) => changed) : differ);
  const rows = (some) => some.map(({ name, values, default: usual, changed }) => [h(changed ? "strong" : "span", { class: "parameter" }, changed ? `${name} *` : name), ...values.map((value) => h("code", {}, value)), h("code", {}, usual)]);
  const heading = ["parameter", ...(alone ? ["here"] : runs.map(({ name }) => name)), "default"];
  const what = alone ? "Parameters that differ from the default" : "Parameters that differ between these runs";
  return section(id, title,
    shown.length ? table(what, heading, rows(shown)) : h("p", {}, alone ? "All parameters are the defaults." : "These runs have the same parameters."),
    folded(`All ${all.length} parameters (* differs from the default)`, heading, () => rows(all)));
}

function reproduceSection(run) {
  const about = Object.entries(run.about).map(([name, value]) => [name.replaceAll("_", " "), String(value)]);
  return section("reproduce", "Make it again",
    h("p", {}, "These commands give the same results in a fresh copy of the project; on another kind of machine the last digits may differ."),
    h("pre", { class: "commands", tabindex: "0", role: "region", "aria-label": "Commands" }, run.commands.join("\n")),
    about.length ? table("Where it was trained", ["what", "value"], about) : null,
    folded("Hashes of the files (`make verify` compares them)", ["file", "sha256"], () => Object.entries(run.hashes).map(([file, hash]) => [file, h("code", {}, hash)])));
}
