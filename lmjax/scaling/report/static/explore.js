// The interactive part of the page: the axis, the chart, the budget.

const data = JSON.parse(document.getElementById("data").textContent);
const { budget } = data;
const at = (id) => document.getElementById(id);
const state = { axis: Object.keys(data.axes)[0], C: budget ? budget.C[budget.start] : null };

function radios() {
  const box = at("axis"), names = Object.keys(data.axes);
  box.hidden = names.length < 2;
  box.append(element("legend", {}, `${data.target[0].toUpperCase()}${data.target.slice(1)} against`));
  for (const name of names) {
    const input = element("input", { type: "radio", name: "axis", value: name });
    input.checked = name === state.axis;
    input.addEventListener("change", () => {
      state.axis = name;
      chart();
    });
    const label = element("label");
    label.append(input, name);
    box.append(label);
  }
}

// Interpolates between grid values: linear in the logarithms, so exact for powers of C.
function between(a, b, t) {
  return a > 0 && b > 0 ? a * (b / a) ** t : NaN;
}

// Where a budget lies on the grid: the index below it and the share of the way to the next.
function placeOf(C, step, points) {
  const place = Math.log10(C / budget.C[0]) / step;
  const i = Math.min(Math.max(Math.floor(place), 0), points - 2);
  return [i, place - i];
}

// {N: [value, low, high], ...} of the budget's best split; NaN where there is no interval.
function best(C) {
  const [i, t] = placeOf(C, budget.step, budget.C.length);
  const found = { C: data.axes.C?.marker ? [C, NaN, NaN] : null };
  for (const name of ["N", "D", "tokens_per_param", "loss"]) {
    found[name] = budget[name][i].map((value, k) => between(value, budget[name][i + 1][k], t));
  }
  return found;
}

// What training N parameters at a budget costs in loss: [extra loss, low, high]; roots of the costs are nearly linear.
function excess(C, N) {
  const [i, t] = placeOf(C, budget.step * budget.every, budget.cost.length);
  const place = (Math.log(N / best(C).N[0]) - budget.ratios[0]) / (budget.ratios[1] - budget.ratios[0]);
  const j = Math.floor(place), u = place - j;
  if (!(place >= 0) || j + 1 >= budget.ratios.length) return [NaN, NaN, NaN];
  const root = (a, b, k) => (a[k] === null ? NaN : (1 - u) * Math.sqrt(a[k]) + u * Math.sqrt(b[k]));
  const at = (row, k) => root(row[j], row[j + 1], k);
  // at a fixed N / N* a cost is a power of C
  return [0, 1, 2].map((k) => (at(budget.cost[i], k) ** (1 - t) * at(budget.cost[i + 1], k) ** t) ** 2);
}

function chart() {
  const tip = at("tip");
  tip.hidden = true;
  drawChart(at("plot"), data, state.axis, budget && best(state.C), (row, point) => showTip(tip, row, point));
  const marked = budget && (state.axis !== "C" || data.axes.C.marker);
  at("caption").textContent = data.axes[state.axis].caption + (marked ? " Open circle: the optimum of the budget." : "");
}

function showTip(tip, row, point) {
  tip.hidden = row === null;
  if (row === null) return;
  tip.replaceChildren(...row.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const holder = at("plot").getBoundingClientRect(), place = point.getBoundingClientRect();
  const left = place.left + place.width / 2 - holder.left, top = place.top + place.height / 2 - holder.top;
  const right = left + 16, before = left - tip.offsetWidth - 16;
  const fits = right + tip.offsetWidth <= holder.width;
  tip.style.left = `${fits ? right : Math.max(before, 0)}px`;
  tip.style.top = `${fits || before >= 0 ? Math.max(top - tip.offsetHeight / 2, 0) : top + 16}px`; // never over its point
}

function fill(row, values, how) {
  [...row.cells].slice(1).forEach((cell, i) => {
    cell.textContent = Number.isFinite(values[i]) ? how(values[i], i) : "-";
    cell.setAttribute("data-value", String(values[i]));
  });
}

function showBudget() {
  const found = best(state.C), times = state.C / budget.largest;
  at("slider").value = Math.log10(state.C / budget.C[0]) / budget.step;
  at("slider").setAttribute("aria-valuetext", `${short(state.C)} FLOP`);
  if (document.activeElement !== at("typed")) at("typed").value = Number(state.C.toPrecision(4)).toExponential().replace("e+", "e");
  const far = Math.abs(times - 1) < 0.005 ? "" : `${short(times)} times `;
  at("times").textContent = `${far}the largest fitted 6 N D${times > 1.005 ? ": an extrapolation" : ""}`;
  for (const [name, values] of Object.entries(found)) {
    if (name === "C") continue;
    const vague = name !== "loss" && values[2] > data.widest_split * values[1];
    const how = name === "loss" ? (value) => value.toFixed(4) : count;
    fill(at(`best-${name}`), values, (value, i) => (vague && i === 0 ? "not determined" : how(value)));
  }
  fill(at("cost"), excess(state.C, amount(at("chosen").value)), (value) => String(Number(value.toPrecision(2))));
}

// A number above 0 as it was typed, else NaN.
function amount(typed) {
  const value = typed.trim() === "" ? NaN : Number(typed);
  return value > 0 && Number.isFinite(value) ? value : NaN;
}

// Whether a field holds an amount within the limits; shows the expected amount if not.
function accept(field, expected, low = 0, high = Infinity) {
  const value = amount(field.value), good = value >= low && value <= high;
  const bad = field.value.trim() !== "" && !good;
  field.setAttribute("aria-invalid", String(bad));
  at("wrong").textContent = bad ? `expected ${expected}, got ${field.value}` : "";
  return good;
}

function setBudget(C) {
  state.C = C;
  showBudget();
  chart();
}

function startBudget() {
  const slider = at("slider"), low = budget.C[0], high = budget.C[budget.C.length - 1];
  slider.max = budget.C.length - 1;
  slider.addEventListener("input", () => setBudget(budget.C[Number(slider.value)]));
  const expected = `a budget from ${short(low)} to ${short(high)} FLOP`;
  at("typed").addEventListener("input", ({ target }) => {
    if (accept(target, expected, low, high)) setBudget(amount(target.value));
  });
  at("chosen").addEventListener("input", ({ target }) => {
    accept(target, "a number of parameters above 0 such as 7e7");
    showBudget();
  });
  at("level").textContent = `${budget.level} from`;
  showBudget();
}

equipTables();
at("explore").hidden = !Object.keys(data.axes).length;
at("fit-json").addEventListener("click", () => download(data.file, "application/json", JSON.stringify(data.fit, null, 1)));
at("budget").hidden = !budget;
if (Object.keys(data.axes).length) {
  radios();
  if (budget) startBudget();
  chart();
  let width = at("plot").clientWidth;
  new ResizeObserver(() => {
    if (at("plot").clientWidth === width) return;
    width = at("plot").clientWidth;
    chart();
  }).observe(at("plot"));
}
