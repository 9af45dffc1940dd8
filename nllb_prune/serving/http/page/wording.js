/** Sentences of the page about the model and what came of a translation. */

import { byId, element } from "./dom.js";
import { FULL } from "./languages.js";
import { counted, share, whole } from "./numbers.js";

/** Say what stands in the way of the whole page, and whether it passes by itself. */
export function trouble(words, { passing = false } = {}) {
  byId("trouble").hidden = !words;
  byId("trouble").className = `warning ${passing ? "fair" : "bad"}`;
  byId("trouble").textContent = words;
}

/** Show what the server has, from its answer to `/v1/configurations`. */
export function introduce({ model, masks, languages, sides }) {
  byId("lead").textContent =
    `${model}: ${counted(languages.length, "language")}, ${counted(total(sides, "of"), "expert")}; ${needs(sides)}.`;
  byId("made").textContent = `Model ${model}, ${masks ? `masks ${masks}` : "no masks"}.`;
  document.title = `${model} · nllb-prune`;
}

function needs(sides) {
  const most = total(sides, "kept");
  return most < total(sides, "of") ? `a translation needs ${whole(most)} of them at most` : "a translation may use all";
}

/** Add up the largest sides of all stacks, the full model's apart. */
function total(sides, what) {
  const masks = sides.filter((side) => side.key !== FULL);
  const stacks = [...new Set(masks.map((side) => side.stack))];
  const most = (stack) => Math.max(...masks.filter((side) => side.stack === stack).map((side) => side[what]));
  return stacks.reduce((sum, stack) => sum + most(stack), 0);
}

/** @param {{confidence: number} | null} detected */
export const sureness = (detected) => (detected ? `Detected, ${share(Math.round(detected.confidence), 100)} sure` : "");

/** Say how many words of each translation differ, as nodes. */
export function verdict([kept, full]) {
  if (!kept && !full) return ["Both translations have the same words."];
  const marked = element("mark", {}, "Marked");
  return [marked, ` words differ: ${whole(kept)} with the kept experts, ${whole(full)} with the full model.`];
}

/** What the key is called that shortcuts are pressed with. */
export const modifier = () => (/Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl");
