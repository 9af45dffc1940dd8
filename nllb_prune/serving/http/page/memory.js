/** The languages' experts, which of them are in memory, and how the memory is divided. */

import { byId, drawn, element } from "./dom.js";
import { FULL } from "./languages.js";
import { size, whole } from "./numbers.js";

const FIRST = "encoder";
const GAP = 3; // between parts, of 1000
const PARTS = { fixed: "shared weights", experts: "experts", working: "sentences in flight" };

/**
 * @param {object} configurations answer of `/v1/configurations`
 * @param {(key: string) => string} nameOfKey
 */
export function showMemory({ sides, memory }, nameOfKey) {
  const resident = sides.filter((side) => side.resident).length;
  byId("memory").hidden = !sides.length;
  byId("memory-summary").textContent = `${whole(resident)} of ${whole(sides.length)} sets of experts in memory`;
  byId("memory-content").replaceChildren(division(memory), table(sides, nameOfKey));
}

function division(memory) {
  const parts = Object.keys(PARTS).filter((name) => memory[name]);
  const sum = parts.reduce((total, name) => total + memory[name], 0);
  let left = 0;
  const bars = parts.map((name) => {
    const width = Math.max(0, (1000 * memory[name]) / sum - GAP);
    const bar = drawn("rect", { class: name, x: (1000 * left) / sum, y: 0, width, height: 14 });
    left += memory[name];
    return bar;
  });
  const words = parts.map((name) => `${PARTS[name]} ${size(memory[name])}`);
  const swatch = (name) => element("i", { class: `swatch ${name}` });
  const legend = parts.map((name, place) => element("span", {}, swatch(name), words[place]));
  const shape = { viewBox: "0 0 1000 14", preserveAspectRatio: "none" };
  const paged = memory.paged ? "Experts of languages that were not used for the longest time leave for others." : "";
  return element(
    "div",
    { class: "division" },
    drawn("svg", { ...shape, role: "img", "aria-label": `Memory: ${words.join(", ")}` }, ...bars),
    element("p", { class: "legend" }, ...legend),
    element("p", { class: "note" }, paged),
  );
}

function table(sides, nameOfKey) {
  const stacks = [...new Set(sides.map((side) => side.stack))].sort((first) => (first === FIRST ? -1 : 1));
  const keys = [...new Set(sides.map((side) => side.key))];
  const found = new Map(sides.map((side) => [`${side.stack} ${side.key}`, side]));
  const heads = ["language", ...stacks].map((name) => element("th", { scope: "col" }, name));
  const rows = keys
    .map((key) => [nameOfKey(key), key])
    .sort(([first, key], [second, other]) => (key === FULL) - (other === FULL) || first.localeCompare(second, "en"))
    .map(([name, key]) => row(name, stacks.map((stack) => found.get(`${stack} ${key}`))));
  const made = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  const region = { class: "scroll", tabindex: 0, role: "region", "aria-label": "Experts of each language" };
  return element("div", region, made);
}

function row(name, sides) {
  return element("tr", {}, element("th", { scope: "row" }, name), ...sides.map(cell));
}

function cell(side) {
  if (!side) return element("td", {}, "—");
  const where = side.resident ? "in memory" : "read when needed";
  return element(
    "td",
    {},
    `${whole(side.kept)} of ${whole(side.of)}`,
    element("small", {}, `${size(side.bytes)}, `, element("span", { class: side.resident ? "resident" : "" }, where)),
  );
}
