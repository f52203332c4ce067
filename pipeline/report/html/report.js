"use strict";
// Puts the page together: what runs have in common once, then all about the one that is chosen.

const report = JSON.parse(document.getElementById("report").textContent);

// What of these runs can be compared.
function comparison(runs) {
  const differ = (of) => new Set(runs.map(of)).size > 1;
  if (differ(({ data }) => data.name)) return "These runs learned from different texts. Neither their losses nor their bits per byte say which model is better.";
  if (differ(({ data }) => data.fingerprint)) return "These runs cut the text into different tokens. Compare bits per byte; losses in nats per token, in the table and in the charts, do not compare.";
  return "These runs read the same tokens, so their losses compare.";
}

function sideBySide(runs) {
  const comparable = runs.every(({ data }) => data.name === runs[0].data.name);
  const best = comparable ? Math.min(...runs.map(({ figures }) => figures.val_bpb ?? Infinity)) : null;
  const rows = runs.map((run, index) => [
    named(run.finished ? run.name : `${run.name} (not finished)`, color(index)), `${run.data.name}, ${run.data.tokenizer}`, fixed(run.figures.val_loss),
    run.figures.val_bpb === best ? h("strong", {}, `${fixed(best)} (best)`) : fixed(run.figures.val_bpb),
    compact(run.figures.params), compact(run.figures.steps), compact(run.figures.tokens), duration(run.figures.seconds)]);
  return section("runs", "Side by side",
    h("p", {}, comparison(runs)),
    table("The runs", ["run", "text and tokens", "nats per token", "bits per byte", "parameters", "steps", "tokens", "time"], rows, [2, 3, 4, 5, 6, 7]));
}

function comparedDepths(runs) {
  const known = runs.filter(({ depth }) => depth.length > 1);
  return known.length ? section("depths", "Depth curves", lineChart(depthChart(known, unitOf(known)), 300).node) : null;
}

function unitOf(runs) {
  const units = new Set(runs.map(({ lens }) => stepName(lens?.unit ?? "layers applied")));
  return units.size === 1 ? [...units][0] : "layers or step";
}

function comparedSamples(runs) {
  const known = runs.filter(({ samples }) => samples.length);
  return known.length ? section("texts", "What they write", h("div", { class: "samples" }, known.map((run) => h("div", {}, h("h3", {}, run.name), written(run.samples[0].trim()))))) : null;
}

const ofOne = (run) => [qualitySection(run), ...(report.runs.length > 1 ? [] : [trainingSection([run])]), depthSection(run), lensSection(run), expertsSection(run), samplesSection(run), healthSection(run), parametersSection([run]), reproduceSection(run)];

function chosenRun(runs) {
  const place = h("div");
  const show = (index) => {
    place.replaceChildren(lead(runs[index]), ...ofOne(runs[index]).filter(Boolean));
    document.querySelector("#top nav")?.replaceWith(contents([...document.querySelectorAll("main section")]));
  };
  show(0);
  return [h("div", { class: "chooser" }, choice("Look closer at", runs.map(({ name }) => name), show)), place];
}

function experimentsSection(rows) {
  return rows ? section("experiments", "Experiments", table("As `make experiments` compared them last", rows[0], rows.slice(1))) : null;
}

function contents(sections) {
  const links = sections.map((one) => h("li", {}, h("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
  return h("nav", { "aria-label": "Contents" }, h("ul", {}, links));
}

const { runs } = report;
const compared = runs.length > 1 ? [sideBySide(runs), trainingSection(runs), comparedDepths(runs), parametersSection(runs, "differences", "What differs"), comparedSamples(runs)].filter(Boolean) : [];
const main = h("main", {}, compared, runs.length > 1 ? chosenRun(runs) : ofOne(runs[0]).filter(Boolean), [experimentsSection(report.experiments)].filter(Boolean));
document.title = report.title;
document.body.append(
  h("a", { class: "skip", href: "#content" }, "Skip to the content"),
  h("header", { id: "top" }, h("h1", {}, report.title), runs.length > 1 ? null : lead(runs[0]), contents([...main.querySelectorAll("section")])),
  main,
  h("footer", {}, h("p", {}, "Made by gpt-pipeline. This file needs nothing else: keep it, or send it.")));
main.id = "content";

