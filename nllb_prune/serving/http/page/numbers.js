/** Numbers as they are read. */

const SPACE = "\u00a0";
const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** @param {number} value */
export const whole = (value) => value.toLocaleString("en");

/** `1 word`, `2 words`. */
export const counted = (value, name) => `${whole(value)} ${name}${value === 1 ? "" : "s"}`;

/** A part in per cent. */
export const share = (part, of) => (of ? `${digits((100 * part) / of)}${SPACE}%` : "—");

/** @param {number} value bytes */
export function size(value) {
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? digits(value) : value}${SPACE}${UNITS[unit]}`;
}

/** @param {number} value seconds */
export function time(value) {
  if (value < 0.9995) return `${value < 0.00995 ? digits(value * 1000) : Math.round(value * 1000)}${SPACE}ms`;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)}${SPACE}s` : `${Math.round(value)}${SPACE}s`;
}

/** Two or three digits that count. */
function digits(value) {
  return value.toFixed(value >= 99.95 || Number.isInteger(value) ? 0 : 1);
}
