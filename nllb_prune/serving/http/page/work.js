/** What a translation took: experts, memory, time and tokens, and a picture of the experts. */

import { byId, element } from "./dom.js";
import { stackFigure, stackNumbers } from "./experts.js";
import { share, size, time, whole } from "./numbers.js";

const narrow = matchMedia("(max-width: 560px)");

export class Work {
  #shown = null;

  /**
   * @param {(key: string) => string} nameOfKey returns the name of the languages that a mask is of
   * @param {number} shared bytes of the weights that all languages share
   */
  constructor(nameOfKey, shared) {
    this.nameOfKey = nameOfKey;
    this.shared = shared;
    narrow.addEventListener("change", () => this.#shown && this.#draw(this.#shown));
  }

  /**
   * @param {object} answer with the kept experts, as of `/v1/translate`
   * @param {object | null} full the same with all of them, if it was asked for
   */
  show(answer, full) {
    byId("work").hidden = !answer.experts.stacks.length;
    byId("work-lead").textContent = lead(answer.experts, this.nameOfKey);
    byId("facts").replaceChildren(...facts(answer, full, this.shared).map(fact));
    if (answer !== this.#shown) this.#draw(answer);
  }

  hide() {
    byId("work").hidden = true;
  }

  #draw(answer) {
    this.#shown = answer;
    const { stacks } = answer.experts;
    const pointed = (words) => (byId("under").textContent = words);
    const options = { narrow: narrow.matches, pointed };
    const figures = stacks.map((stack) => stackFigure(stack, { title: this.#title(stack), ...options }));
    byId("stacks").replaceChildren(...figures);
    byId("numbers").lastElementChild.replaceChildren(...stacks.map((stack) => stackNumbers(stack, this.#title(stack))));
  }

  #title(stack) {
    return `${capital(stack.stack)}: ${this.nameOfKey(stack.key)}`;
  }
}

function lead({ kept, of, stacks }, nameOfKey) {
  if (kept === of) return "All experts take part: there are no masks.";
  const sides = stacks.map((stack) => `the ${stack.stack} with those of ${nameOfKey(stack.key)}`);
  return `Each sentence meets only the experts of its own languages: ${sides.join(", ")}.`;
}

/** Return name, value and details of each fact. */
function facts({ experts, work }, full, shared) {
  const compared = (words) => (full ? [words(full)] : []);
  return [
    ["Experts", whole(experts.kept), [`of ${whole(experts.of)}, ${share(experts.kept, experts.of)}`]],
    [
      "Memory of these experts",
      size(experts.bytes),
      [
        `beside ${size(shared)} that all languages share`,
        ...compared((other) => `full model: ${size(other.experts.bytes)}`),
      ],
    ],
    [
      "Time",
      time(work.seconds),
      [
        `translating ${time(work.secondsTranslating)}, waiting for a turn and experts ${time(work.secondsWaited)}`,
        ...compared((other) => `full model: ${time(other.work.seconds)}`),
      ],
    ],
    [
      "Tokens",
      `${whole(work.sourceTokens)} → ${whole(work.targetTokens)}`,
      [speed(work), ...compared((other) => `full model: ${whole(other.work.targetTokens)}`)],
    ],
  ];
}

function speed({ targetTokens, secondsTranslating }) {
  return secondsTranslating > 0 ? `${whole(Math.round(targetTokens / secondsTranslating))} a second` : "";
}

function fact([name, value, details]) {
  const lines = details.filter(Boolean).map((line) => element("small", {}, line));
  return element("div", {}, element("dt", {}, name), element("dd", {}, value, ...lines));
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);
