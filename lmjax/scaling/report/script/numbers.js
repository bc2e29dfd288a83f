// Numbers as the Python side prints and computes them: short() is lmjax.format.count, number(), quantiles, the normal distribution.

// Python's f"{value:.{digits}g}", with 1e15 for 1e+15.
function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  if (power < -4 || power >= digits) {
    return `${strip(mantissa)}e${power}`;
  }
  return strip(value.toFixed(Math.max(digits - 1 - power, 0)));
}

function strip(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

// lmjax.format.count: 1.23M, 340k, 5.88e23.
function short(value) {
  if (!Number.isFinite(value)) return "-";
  const rounded = Number(value.toPrecision(3)); // before the choice of the unit: 999.9M is 1B
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size <= rounded && rounded < 1e15) return general(rounded / size, 3) + unit;
  }
  return general(rounded, 3);
}

// lmjax.format.number: `digits` significant digits.
function number(value, digits = 4) {
  if (value === null || !Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 10 ** Math.max(digits, 5)) {
    return value.toFixed(Math.max(digits - 1 - Math.floor(Math.log10(size)), 0));
  }
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  return `${mantissa}e${power}`;
}

function percent(share) {
  return `${share < 0 ? "-" : "+"}${Math.abs(100 * share).toFixed(2)} %`;
}

// The quantile of sorted values by linear interpolation, numpy's default.
function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const low = Math.min(Math.max(Math.floor(place), 0), sorted.length - 1);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

// The normal distribution function. Both expansions are exact to rounding where they are used: the series
// phi(x) (x + x^3/3 + x^5/15 + ...) in the middle, the continued fraction phi(x) / (x + 1/(x + 2/(x + ...))) outside.
function normalShare(x) {
  const size = Math.abs(x);
  const density = Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
  if (size < 4) {
    let term = x, sum = x;
    for (let k = 1; k < 120 && Math.abs(term) > 1e-17 * Math.abs(sum); k++) {
      term *= (x * x) / (2 * k + 1);
      sum += term;
    }
    return 0.5 + density * sum;
  }
  let tail = size;
  for (let k = 60; k > 0; k--) tail = size + k / tail;
  return x < 0 ? density / tail : 1 - density / tail;
}

// Its inverse, by bisection: few calls, no constants to mistype.
function normalQuantile(share) {
  let low = -40, high = 40;
  for (let i = 0; i < 90; i++) {
    const middle = 0.5 * (low + high);
    if (normalShare(middle) < share) low = middle;
    else high = middle;
  }
  return 0.5 * (low + high);
}

// Percentile interval of refits around an estimate, bias-corrected if asked: lmjax.scaling.bootstrap.interval.
function interval(refits, estimate, level, corrected) {
  const sorted = Float64Array.from(refits).sort();
  const tails = [(1 - level) / 2, (1 + level) / 2];
  if (!corrected) return tails.map((share) => quantile(sorted, share));
  let below = 0;
  for (const value of sorted) below += value < estimate ? 1 : value === estimate ? 0.5 : 0;
  const shift = 2 * normalQuantile(Math.min(Math.max(below / sorted.length, 0.005), 0.995));
  return tails.map((share) => quantile(sorted, normalShare(shift + normalQuantile(share))));
}
