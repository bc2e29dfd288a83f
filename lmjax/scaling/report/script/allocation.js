// The budget: compute -> best N, D, tokens per parameter and loss, with intervals.
// The same formulas as lmjax.scaling.laws.optimal_allocation and lmjax.scaling.predict.allocate.

// Best split of C = 6 N D for one set of parameters: N* = G (C/6)^a, D* = (C/6)^(1-a) / G.
function optimum(p, C) {
  const product = Math.log(C / 6);
  const logG = (Math.log(p.alpha) + p.lnA - Math.log(p.beta) - p.lnB) / (p.alpha + p.beta);
  const clip = (value) => Math.min(Math.max(value, -300), 300);
  const logN = clip(logG + (p.beta / (p.alpha + p.beta)) * product);
  const logD = clip(product - logN);
  const loss = p.E + Math.exp(p.lnA - p.alpha * logN) + Math.exp(p.lnB - p.beta * logD);
  return { N: Math.exp(logN), D: Math.exp(logD), tokens_per_param: Math.exp(logD - logN), loss };
}

const ALLOCATED = ["N", "D", "tokens_per_param", "loss"];

// {N: [value, low, high], ...} of a budget; low and high are NaN without refits; null where the law has no optimum.
function allocate(entry, C) {
  if (!entry.allocation) return null;
  return entry.allocation.kind === "formula" ? allocateByFormula(entry, C) : allocateByTable(entry.allocation, C);
}

function allocateByFormula({ fit, allocation }, C) {
  const { params, draws } = fit;
  const best = optimum({ ...params, lnA: Math.log(params.A), lnB: Math.log(params.B) }, C);
  const refits = [];
  for (let i = 0; i < (draws.E || []).length; i++) {
    refits.push(
      optimum({ E: draws.E[i], lnA: draws["ln A"][i], alpha: draws.alpha[i], lnB: draws["ln B"][i], beta: draws.beta[i] }, C),
    );
  }
  const result = { C };
  for (const name of ALLOCATED) {
    const values = refits.map((refit) => refit[name]);
    const ends = values.length ? interval(values, best[name], fit.level, allocation.corrected) : [NaN, NaN];
    result[name] = [best[name], ...ends];
  }
  return result;
}

// Laws whose optimum has no formula: the nearest budget of a grid that Python computed. Nothing is interpolated, so
// every number shown is one that Python gives for the budget shown.
function allocateByTable(allocation, C) {
  let nearest = 0;
  allocation.C.forEach((value, i) => {
    if (Math.abs(Math.log(value / C)) < Math.abs(Math.log(allocation.C[nearest] / C))) nearest = i;
  });
  const result = { C: allocation.C[nearest] };
  for (const name of ALLOCATED) {
    const pick = (key) => (allocation[key] && allocation[key][nearest] !== null ? allocation[key][nearest] : NaN);
    result[name] = [pick(name), pick(`${name}_low`), pick(`${name}_high`)];
  }
  return result;
}
