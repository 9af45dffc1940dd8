/** Pictures of the experts that a translation ran with: a grid for each sparse layer of each stack. */

import { drawn, element } from "./dom.js";
import { counted, share, whole } from "./numbers.js";

const CELL = 0.82; // of the distance between two
const WIDE = 64;
const NARROW = 32;

/**
 * @typedef {{stack: string, key: string, layers: number[], experts: number, kept: number[][]}} Stack
 * @param {Stack} stack
 * @param {{title: string, narrow: boolean, pointed: (words: string) => void}} options
 */
export function stackFigure(stack, { title, narrow, pointed }) {
  const columns = Math.min(Math.ceil(stack.experts / 2), narrow ? NARROW : WIDE);
  const kept = total(stack);
  const of = stack.experts * stack.layers.length;
  const count = element("small", {}, `${whole(kept)} of ${whole(of)} experts, ${share(kept, of)}`);
  const caption = element("figcaption", {}, title, count);
  const layers = stack.layers.map((_, place) => layerRow(stack, place, columns, pointed));
  return element("figure", {}, caption, ...layers);
}

/** Say in words which experts are kept. */
export function stackNumbers(stack, title) {
  const rows = stack.layers.map((layer, place) =>
    element("div", {}, element("dt", {}, `Layer ${layer}`), element("dd", {}, stack.kept[place].join(" ") || "none")),
  );
  return element("section", {}, element("h3", {}, title), element("dl", {}, ...rows));
}

const total = (stack) => stack.kept.reduce((sum, each) => sum + each.length, 0);

function layerRow(stack, place, columns, pointed) {
  const [layer, kept] = [stack.layers[place], new Set(stack.kept[place])];
  const words = `Layer ${layer} of the ${stack.stack}: ${whole(kept.size)} of ${counted(stack.experts, "expert")} kept`;
  const grid = layerGrid(stack.experts, kept, columns, words);
  grid.addEventListener("pointermove", (event) => {
    const expert = expertAt(event, grid, columns);
    const state = kept.has(expert) ? "kept" : "left out";
    if (expert < stack.experts) pointed(`${stack.stack} layer ${layer}, expert ${expert}: ${state}`);
  });
  grid.addEventListener("pointerleave", () => pointed(""));
  const label = element("span", { class: "layer", "aria-hidden": "true" }, `Layer ${layer}`);
  const share = `${whole(kept.size)} of ${whole(stack.experts)}`;
  const count = element("span", { class: "share", "aria-hidden": "true" }, share);
  return element("div", { class: "grid" }, label, grid, count);
}

function layerGrid(experts, kept, columns, words) {
  const rows = Math.ceil(experts / columns);
  const all = Array.from({ length: experts }, (_, expert) => expert);
  const cells = (chosen) => chosen.map((expert) => cell(expert % columns, Math.floor(expert / columns))).join("");
  return drawn(
    "svg",
    { viewBox: `0 0 ${columns} ${rows}`, role: "img", "aria-label": words },
    drawn("path", { class: "faint", d: cells(all.filter((expert) => !kept.has(expert))) }),
    drawn("path", { class: "kept", d: cells(all.filter((expert) => kept.has(expert))) }),
  );
}

const cell = (column, row) => `M${column + (1 - CELL) / 2} ${row + (1 - CELL) / 2}h${CELL}v${CELL}h${-CELL}z`;

function expertAt(event, grid, columns) {
  const box = grid.getBoundingClientRect();
  const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
  const row = Math.max(0, Math.floor(((event.clientY - box.top) / box.width) * columns));
  return row * columns + column;
}
