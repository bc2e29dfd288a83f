// The budget: compute -> best N, D, tokens per parameter and loss, with intervals.
// The same formulas as lmjax.scaling.laws.optimal_allocation and lmjax.scaling.Fit.allocate.

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

// The law and its refits as parameter sets with the coefficients as logarithms.
function setsOf({ params, draws }) {
  const refits = (draws.E || []).map((E, i) => ({
    E, lnA: draws["ln A"][i], alpha: draws.alpha[i], lnB: draws["ln B"][i], beta: draws.beta[i],
  }));
  return { here: { ...params, lnA: Math.log(params.A), lnB: Math.log(params.B) }, refits };
}

// {N: [value, low, high], ...} of a budget; low and high are NaN without refits; null where the law has no optimum.
function allocate({ fit, allocation }, C) {
  if (!allocation) return null;
  const { here, refits } = setsOf(fit);
  const best = optimum(here, C), others = refits.map((p) => optimum(p, C));
  const result = { C };
  for (const name of ALLOCATED) {
    const values = others.map((refit) => refit[name]);
    const ends = values.length ? interval(values, best[name], fit.level, allocation.corrected) : [NaN, NaN];
    result[name] = [best[name], ...ends];
  }
  return result;
}

// What a choice of N costs at a budget: [extra loss, low, high]. Plain percentiles, as lmjax.scaling.Fit.excess.
function excess({ fit }, C, N) {
  const logN = Math.log(N), logD = Math.log(C / 6 / N);
  const cost = (p) => {
    const loss = p.E + Math.exp(p.lnA - p.alpha * logN) + Math.exp(p.lnB - p.beta * logD);
    return Math.max(loss - optimum(p, C).loss, 0);
  };
  const { here, refits } = setsOf(fit);
  const ends = refits.length ? interval(refits.map(cost), cost(here), fit.level, false) : [NaN, NaN];
  return [cost(here), ...ends];
}
