// The chart: runs as points on log axes, a curve with its band per level, the optimum of the budget.
// Draws what it is given; holds no state but the point that has the focus.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  return made;
}

// Outlines of markers around (0, 0), one per level, told apart without colour. The diamond is kept for held-out runs.
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

// Log scale from [low, high] to pixels.
function logScale(low, high, from, to) {
  const a = Math.log(low), b = Math.log(high);
  return Object.assign((value) => from + ((Math.log(value) - a) / (b - a)) * (to - from), { low, high });
}

// Linear scale, for shares.
function linearScale(low, high, from, to) {
  return Object.assign((value) => from + ((value - low) / (high - low)) * (to - from), { low, high, linear: true });
}

// The range of the values with a margin on both sides, as a share of it in log space.
function spread(values, margin) {
  const logs = values.filter((v) => Number.isFinite(v) && v > 0).map(Math.log);
  const low = Math.min(...logs), high = Math.max(...logs);
  const room = Math.max((high - low) * margin, 0.02);
  return [Math.exp(low - room), Math.exp(high + room)];
}

// Ticks of a loss axis: round steps within a decade, else 1-2-5.
function lossTicks(low, high, count) {
  if (high / low >= 12) return decadeTicks(low, high, count);
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5, 10].find((m) => unit * m >= rough * 0.85) || 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
  return ticks;
}

// Ticks of a wide log axis: as many of 1, 2, 5 of each decade as there is room for.
function decadeTicks(low, high, count) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  for (const [factors, skip] of [[[1, 2, 5], 1], [[1, 3], 1], [[1], 1], [[1], 2], [[1], 3], [[1], 5]]) {
    const ticks = [];
    for (let k = first; k <= last; k++) {
      if (k % skip === 0) ticks.push(...factors.map((m) => m * 10 ** k));
    }
    const inside = ticks.filter((t) => t >= low && t <= high);
    if (inside.length <= count) return inside.length > 1 ? inside : lossTicks(low, high, count);
  }
  return [];
}

// A tick label: 200k for counts, powers of ten for compute, decimals for losses.
function tickLabel(axis, value, step) {
  const label = shape("text");
  if (axis === "loss") {
    label.textContent = value.toFixed(Math.min(Math.max(Math.ceil(-Math.log10(step) - 1e-9), 0), 6));
  } else if (axis === "C" || value >= 1e15) {
    const exponent = Math.floor(Math.log10(value) + 1e-9);
    const factor = general(value / 10 ** exponent, 3);
    label.append(shape("tspan", {}, factor === "1" ? "10" : `${factor}·10`));
    label.append(shape("tspan", { class: "power", dy: "-0.5em" }, String(exponent)));
  } else {
    label.textContent = short(value);
  }
  return label;
}

// The rows that can be drawn against an axis, with the level each belongs to.
function drawnRows(model) {
  const { rows, axis } = model;
  const levels = levelsOf(model);
  return rows
    .filter((row) => row[axis] > 0)
    .map((row) => ({ row, at: levels.level[row.run] ?? -1 }));
}

// The levels and curves of the chosen axis; against compute, those of its base variable, stretched.
function levelsOf({ entry, view, axis }) {
  const own = entry.curves[axis];
  if (own) return { ...own, factors: own.levels.map(() => 1) };
  const base = view.base ? entry.curves[view.base] : null;
  return base ? { ...base, factors: view.factors } : { levels: [], level: {}, x: [], factors: [], palette: "c" };
}

// Draws into `holder`; onShow(row, element) is called for the point under the pointer or focus, onShow(null) after it.
function drawChart(holder, model, onShow) {
  const width = Math.max(holder.clientWidth, 280);
  const height = Math.round(Math.min(Math.max(width * 0.64, 300), 480));
  const levels = levelsOf(model);
  const rows = drawnRows(model);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": describe(model, rows) });
  holder.querySelector("svg")?.remove();
  holder.prepend(svg);
  if (!rows.length) {
    svg.append(shape("text", { x: width / 2, y: height / 2, class: "none" }, "no row has a value on this axis"));
    return;
  }
  const longest = Math.max(0, ...levels.levels.map((level) => level.name.length));
  const right = levels.levels.length > 1 ? Math.min(14 + 6.4 * longest, 0.4 * width) : 16;
  const room = { left: 46, right, top: 16, bottom: 42 };
  const marker = model.marker && model.marker[model.axis] ? model.marker : null;
  const x = logScale(
    ...spread([...rows.map(({ row }) => row[model.axis]), marker ? marker[model.axis][0] : NaN], 0.07),
    room.left, width - room.right,
  );
  const losses = rows.flatMap(({ row }) => [row.loss, row.predicted]).filter((v) => v > 0);
  const range = losses.length ? [...losses, marker ? marker.loss[0] : NaN] : [1, 2];
  const y = model.entry.fit.target === "share"
    ? linearScale(-0.04, 1.04, height - room.bottom, room.top)
    : logScale(...spread(range, 0.08), height - room.bottom, room.top);
  drawAxes(svg, model, x, y, width, height, room);
  const clip = shape("clipPath", { id: "inside" });
  clip.append(shape("rect", { x: room.left, y: room.top, width: width - room.left - room.right, height: height - room.top - room.bottom }));
  const curves = shape("g", { "clip-path": "url(#inside)", "aria-hidden": "true" });
  svg.append(clip, curves);
  const ends = drawCurves(curves, levels, x, y);
  if (model.axis === "C" && model.view.is_6nd && model.entry.frontier) drawFrontier(curves, model.entry.frontier, x, y);
  drawEnds(svg, levels, ends, rows, width - room.right, y, room, height);
  if (marker) drawMarker(svg, model, marker, x, y);
  drawPoints(svg, model, rows, levels, x, y, room, onShow);
}

function describe(model, rows) {
  const count = (kind) => rows.filter(({ row }) => row.kind === kind).length;
  const kinds = ["fitted", "held out", "excluded", "no result"].filter(count).map((kind) => `${count(kind)} ${kind}`);
  return `Loss against ${model.words[model.axis] || model.axis}: ${kinds.join(", ")}. Arrow keys move between the points.`;
}

function drawAxes(svg, model, x, y, width, height, room) {
  const group = shape("g", { class: "axes", "aria-hidden": "true" });
  const across = decadeTicks(x.low, x.high, Math.floor((width - room.left - room.right) / 62));
  for (const tick of across) {
    group.append(shape("line", { x1: x(tick), x2: x(tick), y1: room.top, y2: height - room.bottom }));
    const label = tickLabel(model.axis, tick, tick);
    label.setAttribute("x", x(tick));
    label.setAttribute("y", height - room.bottom + 16);
    label.setAttribute("text-anchor", "middle");
    group.append(label);
  }
  const up = y.linear ? [0, 0.2, 0.4, 0.6, 0.8, 1] : lossTicks(y.low, y.high, 6);
  for (const tick of up) {
    group.append(shape("line", { x1: room.left, x2: width - room.right, y1: y(tick), y2: y(tick) }));
    const label = tickLabel("loss", tick, up.length > 1 ? up[1] - up[0] : tick);
    label.setAttribute("x", room.left - 6);
    label.setAttribute("y", y(tick) + 4);
    label.setAttribute("text-anchor", "end");
    group.append(label);
  }
  const title = model.words[model.axis] || model.axis;
  group.append(shape("path", { class: "frame", d: `M${room.left},${room.top}V${height - room.bottom}H${width - room.right}` }));
  group.append(shape("text", { class: "title", x: (room.left + width - room.right) / 2, y: height - 6, "text-anchor": "middle" }, title));
  const turned = `translate(11,${(room.top + height - room.bottom) / 2}) rotate(-90)`;
  group.append(shape("text", { class: "title", transform: turned, "text-anchor": "middle" }, model.entry.fit.target));
  svg.append(group);
}

function pathOf(xs, ys, x, y) {
  return xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(1)},${y(ys[i]).toFixed(1)}`).join("");
}

// Curves and bands; returns the height at which each curve leaves on the right.
function drawCurves(group, levels, x, y) {
  return levels.levels.map((level, i) => {
    if (!level.y || levels.factors[i] === null) return null;
    const keep = levels.x.map((value, k) => k).filter((k) => level.y[k] > 0 || (y.linear && level.y[k] === 0));
    const xs = keep.map((k) => levels.x[k] * levels.factors[i]);
    const pick = (name) => keep.map((k) => level[name][k]);
    if (level.low) {
      const back = [...xs].reverse().map((v, k) => `L${x(v).toFixed(1)},${y(pick("low").reverse()[k]).toFixed(1)}`).join("");
      group.append(shape("path", { class: `band ${levels.palette}${level.colour}`, d: `${pathOf(xs, pick("high"), x, y)}${back}Z` }));
    }
    const kind = `curve ${levels.palette}${level.colour}${level.dashed ? " dashed" : ""}`;
    group.append(shape("path", { class: kind, d: pathOf(xs, pick("y"), x, y) }));
    const last = xs.findIndex((value) => value >= x.high);
    return y(level.y[keep[last < 0 ? xs.length - 1 : last]]);
  });
}

function drawFrontier(group, frontier, x, y) {
  group.append(shape("path", { class: "frontier", d: pathOf(frontier.x, frontier.y, x, y) }));
}

// Names of the levels at the right edge, pushed apart where they would overlap.
function drawEnds(svg, levels, ends, rows, edge, y, room, height) {
  if (levels.levels.length < 2) return;
  const labels = [];
  levels.levels.forEach((level, i) => {
    const own = rows.filter(({ row, at }) => at === i && row.loss > 0);
    if (levels.many && !level.y) return;
    if (ends[i] === null && !own.length) return;
    const at = ends[i] ?? y(Math.min(...own.map(({ row }) => row.loss)));
    labels.push({ at: Math.min(Math.max(at, room.top), height - room.bottom), level });
  });
  labels.sort((a, b) => a.at - b.at);
  const gap = Math.min(14, (height - room.top - room.bottom) / labels.length);
  let free = room.top;
  for (const label of labels) {
    label.at = Math.max(label.at, free);
    free = label.at + gap;
  }
  free = height - room.bottom;
  for (const label of labels.reverse()) {
    label.at = Math.min(label.at, free);
    free = label.at - gap;
  }
  for (const { at, level } of labels) {
    svg.append(shape("text", { class: `end ${levels.palette}${level.colour}`, x: edge + 5, y: at + 4 }, level.name));
  }
}

// The optimum of the budget: a cross whose arms are the intervals.
function drawMarker(svg, model, marker, x, y) {
  const [at, low, high] = marker[model.axis];
  const [loss, lossLow, lossHigh] = marker.loss;
  const group = shape("g", { class: "optimum", "clip-path": "url(#inside)", "aria-hidden": "true" });
  if (low > 0) group.append(shape("path", { d: `M${x(low)},${y(loss)}H${x(high)}M${x(at)},${y(lossLow)}V${y(lossHigh)}` }));
  group.append(shape("circle", { cx: x(at), cy: y(loss), r: 5 }));
  svg.append(group);
}

// One element per row. A single Tab stop: the arrow keys, Home and End move within the points.
function drawPoints(svg, model, rows, levels, x, y, room, onShow) {
  const points = rows
    .map(({ row, at }) => ({ row, at, left: x(row[model.axis]), top: row.kind === "no result" ? room.top : y(row.loss) }))
    // in the order of the arrow keys; of rows in one place the fitted one is on top
    .sort((a, b) => a.left - b.left || a.top - b.top || (a.row.kind === "fitted") - (b.row.kind === "fitted"));
  const elements = points.map(({ row, at, left, top }, i) => {
    const level = levels.levels[at];
    const colour = level ? `${levels.palette}${level.colour}` : "";
    const outline = row.kind === "no result" ? CROSS : row.kind === "held out" ? DIAMOND : MARKERS[(level?.shape ?? 0) % MARKERS.length];
    const point = shape("g", {
      class: `point ${row.kind.replace(" ", "-")} ${colour}`,
      transform: `translate(${left.toFixed(1)},${top.toFixed(1)})`,
      tabindex: i ? -1 : 0,
      role: "img",
      "aria-label": factsOf(row, model).map(([name, value]) => `${name} ${value}`).join(", "),
      "data-run": row.run,
    });
    point.append(shape("circle", { class: "target", r: 11 }), shape("path", { d: outline }));
    const show = () => onShow(row, point);
    point.addEventListener("pointerenter", show);
    point.addEventListener("pointerleave", () => document.activeElement === point || onShow(null));
    point.addEventListener("focus", show);
    point.addEventListener("blur", () => onShow(null));
    point.addEventListener("click", () => point.focus());
    svg.append(point);
    return point;
  });
  svg.addEventListener("keydown", (event) => {
    const now = elements.indexOf(document.activeElement);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: elements.length - 1 };
    if (now < 0 || !(event.key in steps)) {
      if (event.key === "Escape") onShow(null);
      return;
    }
    event.preventDefault();
    const next = elements[Math.min(Math.max(steps[event.key], 0), elements.length - 1)];
    elements[now].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}

// What is said of a row: [name, value] pairs.
function factsOf(row, model) {
  const facts = model.facts[row.run] || {};
  const found = [["run", row.run], ["status", facts.status || row.status || "done"], ["in the fit", row.kind]];
  for (const name of model.named) if (row[name] > 0) found.push([name, name === "C" ? general(row[name], 3) : short(row[name])]);
  if (row.loss !== null && row.loss !== undefined) found.push(["loss", row.loss.toFixed(4)]);
  if (row.predicted > 0) {
    const ends = row.low > 0 ? ` (${row.low.toFixed(4)} to ${row.high.toFixed(4)})` : "";
    found.push(["predicted", row.predicted.toFixed(4) + ends]);
    const share = model.entry.fit.target === "share";
    const [error, words] = share ? [row.loss - row.predicted, "measured minus predicted"] : [row.loss / row.predicted - 1, "measured over predicted"];
    found.push([words, percent(error)]);
  }
  if (facts.wall_seconds > 0) found.push(["wall time", `${facts.wall_seconds.toFixed(0)} s`]);
  if (row.reason) found.push(["left out", row.reason]);
  return found;
}
