// The chart: rows as points on log axes, curves with bands, the optimum of the budget.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  return made;
}

// Outlines of markers around (0, 0), one per curve, distinct without colour. The diamond is kept for held-out runs.
const MARKERS = [
  "M-4.2,0a4.2,4.2 0 1,0 8.4,0a4.2,4.2 0 1,0 -8.4,0Z",
  "M-3.8,-3.8H3.8V3.8H-3.8Z",
  "M0,-4.8L4.6,3.6H-4.6Z",
  "M0,4.8L4.6,-3.6H-4.6Z",
  "M-1.6,-4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
  "M0,-4.8L4.2,-2.4V2.4L0,4.8L-4.2,2.4V-2.4Z",
  "M0,-5.4L1.4,-1.8L5.2,-1.6L2.2,0.8L3.2,4.5L0,2.4L-3.2,4.5L-2.2,0.8L-5.2,-1.6L-1.4,-1.8Z",
  "M0,-4.8L4.6,-1.5L2.8,3.9H-2.8L-4.6,-1.5Z",
];
const DIAMOND = "M0,-6.2L6.2,0L0,6.2L-6.2,0Z";
const CROSS = "M-4,-4L4,4M-4,4L4,-4";

// A number with three digits: 0.35, 12.5, 1.92e13.
function short(value) {
  const digits = Number(value.toPrecision(3));
  return digits < 1e5 ? String(digits) : value.toExponential(2).replace(/\.?0*e\+/, "e");
}

// A count: 340k, 1.23M, 1.3B.
function count(value) {
  const digits = Number(value.toPrecision(3));
  const unit = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => size <= digits && digits < 1e15);
  return unit ? `${Number((digits / unit[0]).toPrecision(3))}${unit[1]}` : short(value);
}

// A scale from values to pixels, logarithmic unless the values are shares.
function scale(low, high, from, to, linear = false) {
  const of = linear ? (v) => v : Math.log;
  return Object.assign((v) => from + ((of(v) - of(low)) / (of(high) - of(low))) * (to - from), { low, high, linear });
}

// The range of the values with a margin on both sides, as a share of it in log space.
function spread(values, margin) {
  const logs = values.filter((v) => Number.isFinite(v) && v > 0).map(Math.log);
  const low = Math.min(...logs), high = Math.max(...logs);
  const room = Math.max((high - low) * margin, 0.02);
  return [Math.exp(low - room), Math.exp(high + room)];
}

// Ticks in round steps.
function evenTicks(low, high, many) {
  const rough = (high - low) / many;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5, 10].find((m) => unit * m >= rough * 0.85) || 10);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => (first + k) * step);
}

// Ticks of a wide log axis: as many of 1, 2, 5 of each decade as there is room for.
function decadeTicks(low, high, many) {
  for (const [factors, skip] of [[[1, 2, 5], 1], [[1, 3], 1], [[1], 1], [[1], 2], [[1], 3], [[1], 5]]) {
    const ticks = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
      if (k % skip === 0) ticks.push(...factors.map((m) => m * 10 ** k).filter((t) => t >= low && t <= high));
    }
    if (ticks.length <= many) return ticks.length > 1 ? ticks : evenTicks(low, high, many);
  }
  return [];
}

// Draws into `holder`; onShow(row, element) is called for the point under the pointer or focus, onShow(null) after it.
// `marker` is the budget's optimum as [value, low, high] per axis and for the loss, or null.
function drawChart(holder, data, name, marker, onShow) {
  const axis = data.axes[name];
  const width = Math.max(holder.clientWidth, 280);
  const height = Math.round(Math.min(Math.max(width * 0.64, 300), 480));
  const rows = data.rows.filter((row) => row.place[name] > 0);
  const kinds = ["fitted", "held out", "excluded", "no result"].map((kind) => [rows.filter((row) => row.kind === kind).length, kind]);
  const counts = kinds.filter(([n]) => n).map(([n, kind]) => `${n} ${kind}`).join(", ");
  const label = `${data.target} against ${axis.label}: ${counts}. Arrow keys move between the points.`;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  holder.querySelector("svg")?.remove();
  holder.prepend(svg);
  const here = marker && marker[name] ? marker : null;
  const longest = Math.max(0, ...axis.curves.map((curve) => curve.name.length));
  const right = axis.curves.length > 1 ? Math.min(14 + 6.4 * longest, 0.4 * width) : 16;
  const box = { left: 46, right: width - right, top: 16, bottom: height - 42 };
  const x = scale(...spread([...rows.map((row) => row.place[name]), here ? here[name][0] : NaN], 0.07), box.left, box.right);
  const losses = [...rows.flatMap((row) => [row.loss, row.predicted]).filter((v) => v > 0), here ? here.loss[0] : NaN];
  const range = losses.some((v) => v > 0) ? spread(losses, 0.08) : [1, 2];
  const y = data.share ? scale(-0.04, 1.04, box.bottom, box.top, true) : scale(...range, box.bottom, box.top);
  drawAxes(svg, data, axis, name, x, y, box);
  const clip = shape("clipPath", { id: "inside" });
  clip.append(shape("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }));
  const curves = shape("g", { "clip-path": "url(#inside)", "aria-hidden": "true" });
  svg.append(clip, curves);
  const ends = axis.curves.map((curve) => drawCurve(curves, axis.palette, curve, x, y));
  if (axis.frontier) curves.append(shape("path", { class: "frontier", d: pathOf(axis.frontier.x, axis.frontier.y, x, y) }));
  drawNames(svg, axis, name, ends, rows, y, box);
  if (here) drawMarker(svg, here, name, x, y);
  drawPoints(svg, axis, name, rows, x, y, box, onShow);
}

function drawAxes(svg, data, axis, name, x, y, box) {
  const group = shape("g", { class: "axes", "aria-hidden": "true" });
  for (const tick of decadeTicks(x.low, x.high, Math.floor((box.right - box.left) / 62))) {
    group.append(shape("line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom }));
    const label = shape("text", { x: x(tick), y: box.bottom + 16, "text-anchor": "middle" });
    const [mantissa, exponent] = tick.toExponential(2).split("e+");
    if (exponent && (name === "C" || tick >= 1e15)) {
      const factor = Number(mantissa);
      label.append(shape("tspan", {}, factor === 1 ? "10" : `${factor}·10`));
      label.append(shape("tspan", { class: "power", dy: "-0.5em" }, exponent));
    } else label.textContent = count(tick);
    group.append(label);
  }
  const up = y.linear || y.high / y.low < 12 ? evenTicks(Math.max(y.low, 0), y.high, 6) : decadeTicks(y.low, y.high, 6);
  const decimals = Math.min(Math.max(Math.ceil(-Math.log10(up[1] - up[0]) - 1e-9), 0), 6) || 0;
  for (const tick of up) {
    group.append(shape("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }));
    group.append(shape("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(decimals)));
  }
  group.append(shape("path", { class: "frame", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }));
  group.append(shape("text", { class: "title", x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, axis.label));
  const turned = `translate(11,${(box.top + box.bottom) / 2}) rotate(-90)`;
  group.append(shape("text", { class: "title", transform: turned, "text-anchor": "middle" }, data.target));
  svg.append(group);
}

function pathOf(xs, ys, x, y) {
  return xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(1)},${y(ys[i]).toFixed(1)}`).join("");
}

// A curve and its band; returns the height at which it leaves on the right.
function drawCurve(group, palette, curve, x, y) {
  if (!curve.y) return null;
  const keep = curve.x.map((_, k) => k).filter((k) => curve.y[k] > 0 || y.linear);
  const pick = (values) => keep.map((k) => values[k]);
  const xs = pick(curve.x), colour = `${palette}${curve.colour}`;
  if (curve.low) {
    const back = pathOf([...xs].reverse(), pick(curve.low).reverse(), x, y).replace("M", "L");
    group.append(shape("path", { class: `band ${colour}`, d: `${pathOf(xs, pick(curve.high), x, y)}${back}Z` }));
  }
  group.append(shape("path", { class: `curve ${colour}${curve.dashed ? " dashed" : ""}`, d: pathOf(xs, pick(curve.y), x, y) }));
  const last = xs.findIndex((value) => value >= x.high);
  return y(curve.y[keep[last < 0 ? xs.length - 1 : last]]);
}

// Names of the curves at the right edge, pushed apart where they would overlap.
function drawNames(svg, axis, name, ends, rows, y, box) {
  if (axis.curves.length < 2) return;
  const labels = [];
  axis.curves.forEach((curve, i) => {
    const own = rows.filter((row) => row.curve[name] === i && row.loss > 0).map((row) => row.loss);
    if (ends[i] === null && (!own.length || axis.curves.length > MARKERS.length)) return;
    const at = ends[i] ?? y(Math.min(...own));
    labels.push({ at: Math.min(Math.max(at, box.top), box.bottom), curve });
  });
  const gap = Math.min(14, (box.bottom - box.top) / labels.length);
  labels.sort((a, b) => a.at - b.at);
  labels.forEach((label, i) => { if (i) label.at = Math.max(label.at, labels[i - 1].at + gap); });
  labels.reverse().forEach((label, i) => { label.at = Math.min(label.at, i ? labels[i - 1].at - gap : box.bottom); });
  for (const { at, curve } of labels) {
    svg.append(shape("text", { class: `end ${axis.palette}${curve.colour}`, x: box.right + 5, y: at + 4 }, curve.name));
  }
}

// The optimum of the budget: a cross whose arms are the intervals.
function drawMarker(svg, marker, name, x, y) {
  const [at, low, high] = marker[name], [loss, lossLow, lossHigh] = marker.loss;
  const group = shape("g", { class: "optimum", "clip-path": "url(#inside)", "aria-hidden": "true" });
  if (low > 0) group.append(shape("path", { d: `M${x(low)},${y(loss)}H${x(high)}M${x(at)},${y(lossLow)}V${y(lossHigh)}` }));
  group.append(shape("circle", { cx: x(at), cy: y(loss), r: 5 }));
  svg.append(group);
}

// One element per row. A single Tab stop: the arrow keys, Home and End move within the points.
function drawPoints(svg, axis, name, rows, x, y, box, onShow) {
  const points = rows
    .map((row) => ({ row, left: x(row.place[name]), top: row.kind === "no result" ? box.top : y(row.loss) }))
    // in the order of the arrow keys; of rows in one place the fitted one is on top
    .sort((a, b) => a.left - b.left || a.top - b.top || (a.row.kind === "fitted") - (b.row.kind === "fitted"));
  const elements = points.map(({ row, left, top }, i) => {
    const curve = axis.curves[row.curve[name]];
    const point = shape("g", {
      class: `point ${row.kind.replace(" ", "-")} ${curve ? axis.palette + curve.colour : ""}`,
      transform: `translate(${left.toFixed(1)},${top.toFixed(1)})`,
      tabindex: i ? -1 : 0,
      role: "img",
      "aria-label": row.facts.map((fact) => fact.join(" ")).join(", "),
      "data-run": row.facts[0][1],
    });
    const outline = { "no result": CROSS, "held out": DIAMOND }[row.kind] || MARKERS[(curve?.shape ?? 0) % MARKERS.length];
    point.append(shape("circle", { class: "target", r: 11 }), shape("path", { d: outline }));
    for (const type of ["pointerenter", "focus"]) point.addEventListener(type, () => onShow(row, point));
    point.addEventListener("pointerleave", () => document.activeElement === point || onShow(null));
    point.addEventListener("blur", () => onShow(null));
    point.addEventListener("click", () => point.focus());
    return point;
  });
  const group = shape("g", { class: "points" });
  group.append(...elements);
  svg.append(group);
  group.addEventListener("keydown", (event) => {
    const now = elements.indexOf(event.target);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: elements.length - 1 };
    if (event.key === "Escape") onShow(null);
    if (!(event.key in steps) || now < 0) return;
    event.preventDefault();
    const next = elements[Math.min(Math.max(steps[event.key], 0), elements.length - 1)];
    elements[now].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}
