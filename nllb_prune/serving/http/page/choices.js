/** The choice of two languages: what is offered, what is chosen, and the address of the page that says so. */

import { Combobox } from "./combobox.js";
import { byId } from "./dom.js";
import { DETECT } from "./languages.js";

export class Choices {
  /**
   * @param {import("./languages.js").Languages} languages
   * @param {string} usualTarget code of the language to translate into unless another is chosen
   * @param {() => void} changed called when one was chosen
   */
  constructor(languages, usualTarget, changed) {
    this.languages = languages;
    this.usualTarget = languages.find(usualTarget)?.code;
    this.changed = changed;
    this.sourceBox = new Combobox(byId("source"), (value) => this.set(value, this.target));
    this.targetBox = new Combobox(byId("target"), (value) => this.set(this.source, value));
    const detect = { value: DETECT, name: "Detect language", searched: "auto" };
    this.sourceBox.offer([detect, ...languages.sources.map(choice)]);
  }

  /** Choose what the address of the page says, now and whenever it changes. */
  start() {
    this.#fromAddress();
    addEventListener("hashchange", () => this.#fromAddress());
  }

  get source() {
    return this.sourceBox.value;
  }

  get target() {
    return this.targetBox.value;
  }

  /**
   * Choose both languages; a target that the source is not translated into gives way.
   * @param {string} source
   * @param {string} target
   */
  set(source, target) {
    this.sourceBox.choose(source);
    const targets = this.languages.targetsOf(source);
    this.targetBox.offer(targets.map(choice));
    const codes = targets.map((each) => each.code);
    this.targetBox.choose([target, this.usualTarget, codes[0]].find((code) => codes.includes(code)));
    history.replaceState(null, "", `#${new URLSearchParams({ source: this.source, target: this.target })}`);
    this.changed();
  }

  /** Show which language a text was found to be in. */
  showFound(code) {
    const name = code && this.languages.find(code)?.name;
    if (this.source === DETECT) this.sourceBox.choose(DETECT, name ? `${name} (detected)` : undefined);
  }

  #fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const [source, target] = ["source", "target"].map((side) => this.languages.find(wanted.get(side))?.code);
    this.set(source ?? DETECT, target ?? this.usualTarget);
  }
}

function choice({ code, name, iso, tag }) {
  return { value: code, name, detail: code, searched: `${code} ${iso ?? ""} ${tag}` };
}
