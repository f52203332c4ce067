"use strict";
// Line charts as SVG. What a chart leaves out of its frame is said below it, and a table has every number.

const MARGIN = { top: 28, right: 14, bottom: 40, left: 54 };
const COLORS = 8;
const color = (index) => `var(--c${index % COLORS})`;
const dash = (index) => (index < COLORS ? null : "7 3"); // beyond that many curves, colors come again, dashed

function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// The range of y: of what comes after the first twentieth if the chart cuts the start, and of the lines near it.
function frame(chart) {
  const points = chart.series.flatMap((one) => one.points).filter(([x, y]) => isNumber(x) && isNumber(y));
  const xs = points.map(([x]) => x);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const later = chart.cutStart ? points.filter(([x]) => x >= left + (right - left) / 20) : points;
  const ys = (later.length > 1 ? later : points).map(([, y]) => y);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = (high - low || Math.abs(high) || 1) * 0.5;
  const near = (chart.lines ?? []).filter(({ y }) => y > low - room && y < high + room);
  low = Math.min(low, ...near.map(({ y }) => y));
  high = Math.max(high, ...near.map(({ y }) => y));
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  const beside = chart.whole ? (right - left || 1) * 0.04 : 0; // for the dots at the ends
  return { left: left - beside, right: (right > left ? right : left + 1) + beside, low: low - pad, high: high + pad, near, points };
}

function outside(chart, { low, high, points }) {
  const top = Math.max(...points.map(([, y]) => y));
  const beyond = (chart.lines ?? []).filter(({ y }) => y < low || y > high).map(({ name, y }) => `${name} (${fixed(y)})`);
  const said = [];
  if (top > high) said.push(`the first steps, from ${fixed(top)}`);
  if (beyond.length) said.push(beyond.join(", "));
  return said.length ? `Outside of the frame: ${said.join("; ")}.` : "";
}

// chart: {title, x, y, series: [{name, points, color, dots, faint}], lines: [{name, y}], xFormat, xExact, yFormat, whole, cutStart, labelsAtStart}
function lineChart(chart, height = 300) {
  const drawing = h("div", { class: "drawing" });
  const caption = h("figcaption");
  const reading = h("p", { class: "reading", "aria-hidden": "true" }, " ");
  const legend = h("ul", { class: "legend" });
  const note = h("p", { class: "note" });
  const behind = h("div");
  const node = h("figure", { class: "chart" }, caption, drawing, reading, legend, note, behind);
  const clip = unique("clip");
  let marked = null;

  function draw() {
    if (!chart.series.some(({ points }) => points.some(([, y]) => isNumber(y)))) {
      drawing.replaceChildren(h("p", {}, "Nothing was measured."));
      return;
    }
    const width = Math.max(260, drawing.clientWidth || 640);
    const box = frame(chart);
    const X = (x) => MARGIN.left + ((x - box.left) / (box.right - box.left)) * (width - MARGIN.left - MARGIN.right);
    const Y = (y) => height - MARGIN.bottom - ((y - box.low) / (box.high - box.low)) * (height - MARGIN.top - MARGIN.bottom);
    const [start, end, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
    const xTicks = ticks(box.left, box.right, width / 90).filter((x) => !chart.whole || Number.isInteger(x));
    const root = s(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": describe(chart) },
      s("clipPath", { id: clip }, s("rect", { x: start, y: top, width: end - start, height: bottom - top })),
      ticks(box.low, box.high, height / 55).map((y) => [
        s("line", { class: "grid", x1: start, x2: end, y1: Y(y), y2: Y(y) }),
        s("text", { x: start - 6, y: Y(y) + 4, "text-anchor": "end" }, String(y)),
      ]).flat(),
      xTicks.map((x) => s("text", { x: X(x), y: bottom + 16, "text-anchor": "middle" }, chart.xFormat(x))),
      s("text", { x: 0, y: 12 }, chart.y),
      s("text", { x: (start + end) / 2, y: height - 6, "text-anchor": "middle" }, chart.x),
      marked === null ? null : s("line", { class: "marked", x1: X(marked), x2: X(marked), y1: top, y2: bottom }),
      lineLabels(box.near, Y, start, end, chart.labelsAtStart),
      chart.series.map((one) => curve(one, X, Y, clip)),
    );
    const cursor = s("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    root.append(cursor);
    root.addEventListener("pointermove", (event) => read(event, root, cursor, X));
    root.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); reading.textContent = " "; });
    drawing.replaceChildren(root);
    note.textContent = outside(chart, box);
  }

  function read(event, root, cursor, X) {
    const at = event.clientX - root.getBoundingClientRect().left;
    const nearest = (points) => points.filter(([, y]) => isNumber(y)).reduce((best, point) => (best && Math.abs(X(best[0]) - at) <= Math.abs(X(point[0]) - at) ? best : point), null);
    const found = chart.series.map((one) => [one.name, nearest(one.points)]).filter(([, point]) => point);
    if (!found.length) return;
    const x = found[0][1][0];
    cursor.setAttribute("x1", X(x));
    cursor.setAttribute("x2", X(x));
    cursor.setAttribute("visibility", "visible");
    reading.textContent = `${chart.x} ${chart.xFormat(x)}: ${found.map(([name, [, y]]) => `${name} ${chart.yFormat(y)}`).join(", ")}`;
  }

  function show(changes) {
    Object.assign(chart, changes);
    caption.textContent = chart.title;
    legend.replaceChildren(...chart.series.map((one) => h("li", {}, h("span", { class: "swatch", style: { background: one.color, opacity: one.faint ? 0.45 : 1 } }), one.name)));
    behind.replaceChildren(folded(`${chart.title}: the numbers`, [chart.x, ...chart.series.map((one) => one.name)], () => numbers(chart), [0, ...chart.series.map((_, i) => i + 1)]));
    draw();
  }

  new ResizeObserver(draw).observe(drawing);
  show({});
  return { node, show, mark: (x) => { marked = x; draw(); } };
}

function curve({ points, color: stroke, dots, faint, dashes }, X, Y, clip) {
  const shown = points.filter(([x, y]) => isNumber(x) && isNumber(y));
  const path = shown.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
  return s("g", { "clip-path": `url(#${clip})`, style: { opacity: faint ? 0.45 : 1 } },
    s("path", { class: "curve", d: path, "stroke-dasharray": dashes, style: { stroke } }),
    dots ? shown.map(([x, y]) => s("circle", { cx: X(x), cy: Y(y), r: 3.5, style: { fill: stroke } })) : []);
}

// Baselines: labels at one end, where the curve is not; each below the one above it, and none on a line.
function lineLabels(lines, Y, start, end, atStart) {
  const ordered = [...lines].sort((a, b) => b.y - a.y);
  const struck = (place) => ordered.map(({ y }) => Y(y)).find((y) => place - 9 < y && y < place + 2);
  let place = -Infinity;
  return [
    ...ordered.map(({ y }) => s("line", { class: "baseline", x1: start, x2: end, y1: Y(y), y2: Y(y) })),
    ...ordered.map(({ name, y }) => {
      place = Math.max(place + 13, Y(y) - 4);
      while (struck(place)) place = struck(place) + 12;
      return s("text", { class: "halo", x: atStart ? start + 6 : end - 6, y: place, "text-anchor": atStart ? "start" : "end" }, `${name} ${fixed(y)}`);
    }),
  ];
}

// What a screen reader says instead of the picture.
function describe(chart) {
  const curves = chart.series.map(({ name, points }) => {
    const known = points.filter(([, y]) => isNumber(y));
    if (!known.length) return `${name}: nothing measured`;
    const [first, last] = [known[0], known.at(-1)];
    return `${name} goes from ${chart.yFormat(first[1])} at ${chart.xFormat(first[0])} to ${chart.yFormat(last[1])} at ${chart.xFormat(last[0])}`;
  });
  const lines = (chart.lines ?? []).map(({ name, y }) => `${name} at ${fixed(y)}`);
  return `${chart.title}. ${chart.y} against ${chart.x}. ${[...curves, ...lines].join("; ")}. The table below has the numbers.`;
}

function numbers(chart) {
  const columns = chart.series.map(({ points }) => new Map(points));
  const xs = [...new Set(chart.series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  return xs.map((x) => [(chart.xExact ?? String)(x), ...columns.map((column) => (isNumber(column.get(x)) ? significant4(column.get(x)) : ""))]);
}
const significant4 = (value) => String(Number(value.toPrecision(5)));
