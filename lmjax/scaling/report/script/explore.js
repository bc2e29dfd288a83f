// The interactive part of the page: conventions, axes, the chart, the parameters, the budget.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { n: data.chosen[0], c: data.chosen[1], axis: null, C: data.budget ? data.budget.start : null };
const at = (id) => document.getElementById(id);

const view = () => data.views[`${state.n}|${state.c}`];
const entry = () => data.entries[view().entry];

// The rows of the chosen fit with their kind and with compute as it is counted now.
function rowsOf() {
  const { points, held_out, excluded } = entry().fit;
  const failed = (row) => row.loss === null || row.loss === undefined || row.reason.startsWith("status ");
  const kinds = [
    ...points.map((row) => ({ ...row, kind: "fitted" })),
    ...held_out.map((row) => ({ ...row, kind: "held out" })),
    ...excluded.map((row) => ({ ...row, kind: failed(row) ? "no result" : "excluded" })),
  ];
  return kinds.map((row, i) => ({ ...row, C: view().C[i] }));
}

// Axes that some row has a value for: what the law reads first, then N, D and C.
function axesOf() {
  const named = [...new Set([...data.law.variables, "N", "D", "C"])];
  const rows = rowsOf();
  return named.filter((name) => rows.some((row) => row[name] > 0));
}

function radios(id, legend, names, chosen, words, onChange) {
  const box = at(id);
  box.hidden = names.length < 2;
  box.replaceChildren(element("legend", {}, legend));
  for (const name of names) {
    const label = element("label");
    const input = element("input", { type: "radio", name: id, value: name });
    input.checked = name === chosen;
    input.addEventListener("change", () => onChange(name));
    label.append(input, words(name));
    box.append(label);
  }
}

function controls() {
  const counts = (name) => data.words[`count ${name}`] || name;
  const axes = axesOf();
  if (!axes.includes(state.axis)) state.axis = axes[0];
  radios("axis", "Loss against", axes, state.axis, (name) => name, (name) => {
    state.axis = name;
    chart();
  });
  // not every pair of counts need be there: the other count moves to one that is
  const choose = (part, name) => {
    state[part] = name;
    if (!view()) {
      const other = Object.keys(data.views).find((key) => key.split("|")[part === "n" ? 0 : 1] === name);
      [state.n, state.c] = other.split("|");
    }
    everything();
    document.querySelector(`#count-${part} input:checked`).focus();
  };
  radios("count-n", "N counts", data.choices.n, state.n, counts, (name) => choose("n", name));
  radios("count-c", "C counts", data.choices.c, state.c, counts, (name) => choose("c", name));
}

function chart() {
  const best = state.C && allocate(entry(), state.C);
  // the optimum lies on the axis of compute only where compute is counted as the budget is
  const place = best && { ...best, C: view().is_6nd ? [best.C, NaN, NaN] : null };
  const model = {
    axis: state.axis, view: view(), rows: rowsOf(), entry: entry(), marker: place || null, words: data.words, facts: data.facts, named: axesOf(),
  };
  const tip = at("tip");
  tip.hidden = true;
  drawChart(at("plot"), model, (row, point) => showTip(tip, row, point, model));
  at("caption").textContent = captionOf(model);
}

function showTip(tip, row, point, model) {
  tip.hidden = row === null;
  if (row === null) return;
  tip.replaceChildren();
  for (const [name, value] of factsOf(row, model)) tip.append(element("dt", {}, name), element("dd", {}, value));
  const holder = at("plot").getBoundingClientRect(), place = point.getBoundingClientRect();
  const left = place.left + place.width / 2 - holder.left, top = place.top + place.height / 2 - holder.top;
  const right = left + 16, before = left - tip.offsetWidth - 16;
  const beside = right + tip.offsetWidth <= holder.width || before >= 0;
  tip.style.left = `${right + tip.offsetWidth <= holder.width ? right : Math.max(before, 0)}px`;
  tip.style.top = `${beside ? Math.max(top - tip.offsetHeight / 2, 0) : top + 16}px`; // never over its point
}

function captionOf(model) {
  const { fit, hash } = model.entry;
  const level = `${(100 * fit.level).toFixed(0)} %`;
  const marks = ["Points: runs in the fit"];
  const has = (kind) => model.rows.some((row) => row.kind === kind);
  if (has("held out")) marks.push("ringed diamonds: held out");
  if (has("excluded")) marks.push("hollow: left out of the fit");
  if (has("no result")) marks.push("crosses at the top edge: no result");
  const law = fit.reasons.length ? "No law is drawn: the fit was refused." : `Curves: the law${fit.refits ? `, with its ${level} interval` : ""}${has("held out") ? "; dashed where only held-out runs are" : ""}.`;
  const optimum = model.marker ? "Open circle: the optimum of the budget below." : "";
  const frontier = model.axis === "C" && model.view.is_6nd && model.entry.frontier ? "Dotted: the compute-optimal frontier." : "";
  return [`${marks.join("; ")}.`, law, frontier, optimum, `${conventionWords(model.entry, state.c)}. Fit ${hash}.`].filter(Boolean).join(" ");
}

function conventionWords({ fit }, c) {
  const words = { ...fit.conventions };
  if (c !== "given") words.C = `C = ${data.words[`count ${c}`]} FLOP`;
  return Object.values(words).join("; ");
}

function parameters() {
  const { fit, hash } = entry();
  const body = at("parameters").tBodies[0];
  body.replaceChildren();
  for (const [name, value] of Object.entries({ ...fit.params, ...fit.derived })) {
    const [low, high] = fit.intervals[name] || [NaN, NaN];
    const row = element("tr", { "data-name": name });
    row.append(element("th", { scope: "row" }, name));
    for (const [cell, digits] of [[value, 5], [low, 4], [high, 4]]) {
      row.append(element("td", { "data-value": String(cell) }, number(cell, digits)));
    }
    body.append(row);
  }
  at("parameters").hidden = !body.rows.length;
  const reasons = at("reasons");
  reasons.replaceChildren(...fit.reasons.map((reason) => element("li", {}, reason)));
  reasons.hidden = !fit.reasons.length;
  const chosen = data.chosen[0] === state.n && data.chosen[1] === state.c;
  const status = `${fit.formula}: ${fit.status.replace(/_/g, " ")}${fit.reasons.length ? ", refused" : ""}. Fit ${hash}, ${fit.points.length} rows.`;
  at("which").textContent = chosen ? status : `${status} Another convention than in the tables and figures further down.`;
}

function budget() {
  const box = at("budget");
  box.hidden = !data.budget || !entry().allocation;
  if (box.hidden) return;
  const best = allocate(entry(), state.C);
  const level = entry().fit.level;
  at("slider").value = Math.log10(best.C).toFixed(4);
  at("slider").setAttribute("aria-valuetext", `${short(best.C)} FLOP`);
  if (document.activeElement !== at("typed")) at("typed").value = general(best.C, 4);
  const times = best.C / data.budget.largest;
  const beyond = times > 1.005 ? ": an extrapolation" : "";
  at("times").textContent = `${Math.abs(times - 1) < 0.005 ? "" : `${general(times, 3)} times `}the largest fitted 6 N D${beyond}`;
  const shown = { N: short, D: short, tokens_per_param: short, loss: (value) => (Number.isFinite(value) ? value.toFixed(4) : "-") };
  for (const [name, how] of Object.entries(shown)) {
    const row = at(`best-${name}`);
    const vague = name !== "loss" && best[name][2] > data.widest_split * best[name][1];
    [...row.cells].slice(1).forEach((cell, i) => {
      cell.textContent = vague && i === 0 ? "not determined" : how(best[name][i]);
      cell.setAttribute("data-value", String(best[name][i]));
    });
  }
  const N = amount(at("chosen").value);
  const cost = N ? excess(entry(), best.C, N) : [NaN, NaN, NaN];
  [...at("cost").cells].slice(1).forEach((cell, i) => {
    cell.textContent = number(cost[i], 3);
    cell.setAttribute("data-value", String(cost[i]));
  });
  at("level").textContent = `${(100 * level).toFixed(0)} % from`;
}

// A number above 0 as it was typed, else NaN.
function amount(typed) {
  const value = typed.trim() === "" ? NaN : Number(typed);
  return value > 0 && Number.isFinite(value) ? value : NaN;
}

function complain(field, wanted) {
  const bad = field.value.trim() !== "" && Number.isNaN(amount(field.value));
  field.setAttribute("aria-invalid", String(bad));
  at("wrong").textContent = bad ? `wanted ${wanted}, got ${field.value}` : "";
}

function setBudget(C) {
  state.C = C;
  budget();
  chart();
}

function everything() {
  controls();
  parameters();
  budget();
  chart();
}

function start() {
  equipTables();
  at("explore").hidden = false;
  if (data.budget) {
    const slider = at("slider");
    slider.min = Math.log10(data.budget.low).toFixed(2);
    slider.max = Math.log10(data.budget.high).toFixed(2);
    slider.addEventListener("input", () => setBudget(10 ** Number(slider.value)));
    at("typed").addEventListener("input", ({ target }) => {
      complain(target, "a budget above 0 FLOP such as 1e18");
      if (amount(target.value)) setBudget(amount(target.value));
    });
    at("chosen").addEventListener("input", ({ target }) => {
      complain(target, "a number of parameters above 0 such as 7e7");
      budget();
    });
  }
  at("fit-json").addEventListener("click", () => {
    download(`fit-${entry().hash}.json`, "application/json", JSON.stringify(entry().fit, null, 1));
  });
  at("missing").textContent = data.missing.length ? `Not available: ${data.missing.join("; ")}.` : "";
  everything();
  let width = at("plot").clientWidth;
  new ResizeObserver(() => {
    if (at("plot").clientWidth === width) return;
    width = at("plot").clientWidth;
    chart();
  }).observe(at("plot"));
}

start();
