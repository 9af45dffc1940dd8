/** A field that chooses one of many: it is typed into to search, and its list is moved through with the arrows. */

import { element, say } from "./dom.js";
import { counted } from "./numbers.js";

const FEW = 16;
const PAGE = 8;

/** @typedef {{value: string, name: string, detail?: string, searched?: string}} Choice */

const bare = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

export class Combobox {
  /** @type {Choice[]} */
  #choices = [];
  #shown = [];
  #active = -1;
  #chosen = null;
  #label = null;

  /**
   * @param {HTMLInputElement} input of the role `combobox`
   * @param {(value: string) => void} changed called when a person has chosen
   */
  constructor(input, changed) {
    this.input = input;
    this.list = document.getElementById(input.getAttribute("aria-controls"));
    this.changed = changed;
    input.addEventListener("mousedown", (event) => this.#pressed(event));
    input.addEventListener("click", () => this.#isOpen || this.#open());
    input.addEventListener("input", () => this.#search());
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("blur", () => this.#close());
    this.list.addEventListener("pointerdown", (event) => event.preventDefault());
    this.list.addEventListener("click", (event) => this.#clicked(event));
  }

  get value() {
    return this.#chosen?.value ?? "";
  }

  /** @param {Choice[]} choices */
  offer(choices) {
    this.#choices = choices.map((each) => ({ ...each, words: bare(`${each.name} ${each.searched ?? each.value}`) }));
    this.input.disabled = !choices.length;
    // Of few choices all are in sight: no keyboard need cover them on a phone.
    this.input.inputMode = choices.length > FEW ? "search" : "none";
  }

  /**
   * Show a choice as the one that is made.
   * @param {string} value
   * @param {string} [label] shown in place of its name
   */
  choose(value, label) {
    this.#chosen = this.#choices.find((each) => each.value === value) ?? null;
    this.#label = label ?? this.#chosen?.name ?? "";
    if (!this.#isOpen) this.input.value = this.#label;
  }

  get #isOpen() {
    return !this.list.hidden;
  }

  #open() {
    this.input.select();
    this.#show(this.#choices);
    this.#move(Math.max(0, this.#choices.indexOf(this.#chosen)), "center");
  }

  /** Open with all of the text selected, which the browser's own way of placing the caret would undo. */
  #pressed(event) {
    if (this.#isOpen || event.button) return;
    event.preventDefault();
    this.input.focus();
    this.#open();
  }

  #close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.#label ?? "";
  }

  #search() {
    const words = bare(this.input.value).split(/\s+/).filter(Boolean);
    const found = this.#choices.filter((each) => words.every((word) => each.words.includes(word)));
    const begins = (each) => words.length > 0 && each.words.startsWith(words[0]);
    this.#show([...found.filter(begins), ...found.filter((each) => !begins(each))]);
    this.#move(0);
    say(found.length ? counted(found.length, "language") : "No language of this name");
  }

  #show(choices) {
    this.#shown = choices;
    const none = element("li", { class: "none", role: "presentation" }, "No language of this name");
    this.list.replaceChildren(...(choices.length ? choices.map((each, place) => this.#option(each, place)) : [none]));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
  }

  #option(choice, place) {
    const chosen = { "aria-selected": String(choice === this.#chosen) };
    const attributes = { role: "option", id: `${this.list.id}-${place}`, ...chosen };
    return element("li", attributes, choice.name, element("span", {}, choice.detail ?? ""));
  }

  #move(place, block = "nearest") {
    const options = this.list.querySelectorAll("[role=option]");
    this.#active = Math.min(Math.max(place, 0), options.length - 1);
    options.forEach((each, n) => each.classList.toggle("active", n === this.#active));
    const active = options[this.#active];
    active?.scrollIntoView({ block });
    this.input.setAttribute("aria-activedescendant", active?.id ?? "");
  }

  #key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE };
    if (event.key in steps) {
      event.preventDefault();
      if (this.#isOpen) this.#move(this.#active + steps[event.key]);
      else this.#open();
    } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (this.#isOpen) this.#take(this.#active);
      else this.#open();
    } else if (event.key === "Escape" && this.#isOpen) {
      event.preventDefault();
      event.stopPropagation();
      this.#close();
    }
  }

  #clicked(event) {
    const option = event.target.closest("[role=option]");
    if (option) this.#take([...this.list.children].indexOf(option));
  }

  #take(place) {
    const taken = this.#shown[place];
    if (!taken) return;
    this.choose(taken.value);
    this.#close();
    this.changed(taken.value);
  }
}
