/** The text to translate: how long it is and may be, and when it is typed. */

import { byId } from "./dom.js";
import { counted, whole } from "./numbers.js";

const NEAR = 0.9; // of the limit, from which on the count stands out

export class SourceText {
  #limit = Infinity;

  /**
   * @param {{typed: () => void, cleared: () => void}} on `typed`: something was written, and nothing is being composed
   */
  constructor(on) {
    this.field = byId("text");
    const typed = (event) => {
      this.#count();
      if (!event.isComposing) on.typed();
    };
    this.field.addEventListener("input", typed);
    this.field.addEventListener("compositionend", typed);
    byId("clear").addEventListener("click", () => {
      this.text = "";
      this.field.focus();
      on.cleared();
    });
  }

  get text() {
    return this.field.value;
  }

  set text(text) {
    this.field.value = text;
    this.#count();
  }

  /** @param {number} limit characters; negative for none */
  set limit(limit) {
    this.#limit = limit > 0 ? limit : Infinity;
    this.#count();
  }

  /** @param {string} tag of its language; nothing if that is not known */
  set tag(tag) {
    this.field.lang = tag ?? "";
  }

  /** Say what is wrong with it; nothing if it can be translated. */
  get problem() {
    const over = this.#length - this.#limit;
    if (over <= 0) return "";
    return `The text is ${counted(over, "character")} longer than the ${whole(this.#limit)} that one request may have.`;
  }

  /** Characters as the server counts them. */
  get #length() {
    return [...this.field.value].length;
  }

  #count() {
    const length = this.#length;
    const limited = this.#limit < Infinity;
    byId("clear").hidden = !length;
    byId("count").textContent = limited ? `${whole(length)} / ${whole(this.#limit)}` : counted(length, "character");
    byId("count").classList.toggle("near", length > NEAR * this.#limit);
    byId("count").classList.toggle("over", length > this.#limit);
  }
}
