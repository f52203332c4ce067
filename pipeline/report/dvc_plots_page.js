// Draws the curves on the page of `dvc plots show`, so that it needs nothing from the web. It reads those parts
// of a Vega-Lite specification that .dvc/plots/curve.json uses: rows of numbers, one line for each color and dash, and
// one for each baseline.

const WIDTH = 560, HEIGHT = 320, LEFT = 60, TOP = 30, BOTTOM = 45;
const COLORS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2"];

function escaped(text) {
  return String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

// About five round numbers from `low` to `high`.
function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const numbers = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++)
    numbers.push(Number((n * step).toPrecision(12)));
  return numbers;
}

// The function from numbers to pixels that takes the range of `numbers` to [start, end], and the ticks of that range.
function scale(numbers, start, end) {
  const lowest = numbers.reduce((a, b) => Math.min(a, b)), highest = numbers.reduce((a, b) => Math.max(a, b));
  const margin = lowest < highest ? 0 : Math.abs(lowest) / 2 || 1;
  const low = lowest - margin, high = highest + margin;
  return { place: (number) => start + ((end - start) * (number - low)) / (high - low), ticks: ticks(low, high) };
}

// What a value of `channel` looks like: as its scale says, else the next of `looks`.
function look(channel, looks) {
  const { domain = [], range = [] } = (channel && channel.scale) || {};
  const seen = [...domain];
  return (value) => {
    if (!seen.includes(value)) seen.push(value);
    const place = seen.indexOf(value);
    return range[place] === undefined ? looks[place % looks.length] : range[place];
  };
}

// The curves of a specification as SVG.
function drawn(spec) {
  const { x, y, color, strokeDash, detail, tooltip } = spec.encoding || {};
  if (!x || !y || !x.field || !y.field)
    return "<p>This page draws templates like curve.json only. To see this plot with Vega, from the web: " +
      "<code>dvc config --local --unset plots.html_template</code></p>";
  const named = (field) => field.replace(/\\(.)/g, "$1"); // DVC escapes dots and brackets
  const number = (row, channel) => parseFloat(row[named(channel.field)]);
  const rows = spec.data.values.filter((row) => isFinite(number(row, x)) && isFinite(number(row, y)));
  if (!rows.length) return "<p>Nothing was measured yet.</p>";
  const across = scale(rows.map((row) => number(row, x)), LEFT, LEFT + WIDTH);
  const up = scale(rows.map((row) => number(row, y)), TOP + HEIGHT, TOP);
  const colorOf = look(color, COLORS), dashOf = look(strokeDash, [[1, 0], [8, 4], [2, 2]]);
  const value = (row, channel) => (channel && channel.field ? row[named(channel.field)] : undefined);

  const curves = new Map();
  for (const row of rows) {
    const key = JSON.stringify([value(row, color), value(row, strokeDash), value(row, detail)]);
    curves.set(key, [...(curves.get(key) || []), row]);
  }
  const text = (at, content, more = "") => `<text ${at} ${more}>${escaped(content)}</text>`;
  const centre = LEFT + WIDTH / 2, middle = TOP + HEIGHT / 2;
  const parts = [
    text(`x="${centre}" y="15"`, (spec.title && spec.title.text) || "", 'text-anchor="middle" font-weight="bold"'),
    text(`x="${centre}" y="${TOP + HEIGHT + 38}"`, x.title || x.field, 'text-anchor="middle"'),
    text(`transform="translate(14 ${middle}) rotate(-90)"`, y.title || y.field, 'text-anchor="middle"'),
    ...across.ticks.map((n) =>
      text(`x="${across.place(n)}" y="${TOP + HEIGHT + 18}"`, n, 'text-anchor="middle"')),
    ...up.ticks.map((n) => {
      const at = up.place(n);
      return `<path d="M${LEFT} ${at}h${WIDTH}" stroke="#ddd"/>` +
        text(`x="${LEFT - 6}" y="${at + 4}"`, n, 'text-anchor="end"');
    }),
  ];
  let line = TOP, baselines = 0;
  for (const of of curves.values()) {
    of.sort((one, other) => number(one, x) - number(other, x));
    const points = of.map((row) => [across.place(number(row, x)), up.place(number(row, y))]);
    const baseline = of.find((row) => row.label);
    if (baseline) { // its name is at one of its ends, in turn, not in the legend
      parts.push(`<polyline fill="none" stroke="#888" points="${points.join(" ")}"/>`);
      const left = baselines++ % 2, [atX, atY] = left ? points[0] : points[points.length - 1];
      parts.push(text(`x="${atX}" y="${atY - 3}"`, baseline.label,
        `text-anchor="${left ? "start" : "end"}" fill="#555"`));
      continue;
    }
    const stroke = escaped(colorOf(value(of[0], color)));
    const pen = `fill="none" stroke="${stroke}" stroke-dasharray="${dashOf(value(of[0], strokeDash))}"`;
    parts.push(`<polyline ${pen} points="${points.join(" ")}"/>`);
    of.forEach((row, index) => {
      const about = (tooltip || []).map(({ field }) => `${named(field)}: ${row[named(field)]}`).join("\n");
      const [cx, cy] = points[index];
      parts.push(`<circle cx="${cx}" cy="${cy}" r="2.5" fill="${stroke}"><title>${escaped(about)}</title></circle>`);
    });
    const names = [value(of[0], color), value(of[0], strokeDash)].filter((name) => name !== undefined);
    parts.push(`<path d="M${LEFT + WIDTH + 15} ${line}h28" ${pen}/>`,
      text(`x="${LEFT + WIDTH + 50}" y="${line + 4}"`, names.join(" ")));
    line += 18;
  }
  const size = `width="${LEFT + WIDTH + 300}" height="${Math.max(TOP + HEIGHT + BOTTOM, line)}"`;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="11">`;
  return [svg, ...parts, "</svg>"].join("");
}

// DVC's page calls this for each plot.
function vegaEmbed(selector, spec) {
  document.querySelector(selector).insertAdjacentHTML("beforeend", drawn(spec));
}
