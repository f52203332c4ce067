"use strict";
// Puts the page together: what runs have in common once, then all about the one that is chosen.

const report = JSON.parse(document.getElementById("report").textContent);

function sideBySide(runs) {
  const best = Math.min(...runs.map(({ figures }) => figures.val_bpb ?? Infinity));
  const rows = runs.map((run, index) => [
    named(run.name, color(index)), run.data.name, fixed(run.figures.val_loss),
    run.figures.val_bpb === best ? h("strong", {}, `${fixed(best)} (best)`) : fixed(run.figures.val_bpb),
    compact(run.figures.params), compact(run.figures.steps), compact(run.figures.tokens), duration(run.figures.seconds)]);
  return section("runs", "Side by side",
    h("p", {}, "Losses per token compare only between the same tokens of the same text; bits per byte compare between tokenizers, too."),
    table("The runs", ["run", "text", "nats per token", "bits per byte", "parameters", "steps", "tokens", "time"], rows, [2, 3, 4, 5, 6, 7]));
}

function comparedDepths(runs) {
  const known = runs.filter(({ depth }) => depth.length);
  return known.length ? section("depths", "Depth curves", lineChart(depthChart(known, "", unitOf(known)), 300).node) : null;
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

