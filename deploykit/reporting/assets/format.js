// Figures as text. A space before the unit is one that no line breaks at.

const nbsp = "\u00a0";
const dash = "\u2013";
const times = "\u00d7";
const LONG = 1e9;
// One for each number of decimals: to make a format takes far longer than to use it.
const formats = new Map();

function fixed(value, decimals) {
  if (Math.abs(value) >= LONG) return value.toExponential(2);
  if (!formats.has(decimals)) {
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    formats.set(decimals, new Intl.NumberFormat("en-US", digits));
  }
  return formats.get(decimals).format(value);
}

function figure(value, digits = 3) {
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  if (whole < -4) return value.toExponential(digits - 1);
  return fixed(value, Math.max(0, digits - whole));
}

function ms(value) {
  return figure(value, 4) + nbsp + "ms";
}

function percent(share, digits = 3) {
  return figure(100 * share, digits) + nbsp + "%";
}

const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function withPrefix(value, unit = "", digits = 3) {
  const [scale, prefix] = PREFIXES.find(([least]) => value >= least) || [1, ""];
  return (figure(value / scale, digits) + nbsp + prefix + unit).trim();
}

/** Decimals with which the smallest of the values still has three digits. */
function decimalsFor(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return 2;
  const whole = Math.floor(Math.log10(Math.min(...positive))) + 1;
  return Math.min(4, Math.max(0, 3 - whole));
}

function counted(number, noun) {
  return `${fixed(number, 0)} ${noun}${number === 1 ? "" : "s"}`;
}
