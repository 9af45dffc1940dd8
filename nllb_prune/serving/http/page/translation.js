/** One translation on the page: its text as it comes, what went wrong, alternatives, and how long it took. */

import { byId, element, say } from "./dom.js";
import { size, time, whole } from "./numbers.js";

const SHOWN = 1600; // milliseconds that `Copied` stands

export class Translation {
  #text = "";
  #tag = "";
  #countdown = 0;

  /**
   * @param {HTMLElement} pane
   * @param {string} title
   */
  constructor(pane, title) {
    this.pane = pane;
    pane.append(byId("translation").content.cloneNode(true));
    const find = (selector) => pane.querySelector(selector);
    this.head = find(".head");
    this.sizeLine = find(".size");
    this.output = find(".output");
    this.notice = find(".notice");
    this.others = find(".others");
    this.took = find(".took");
    this.copyButton = find(".copy");
    find("h2").textContent = title;
    this.copyButton.setAttribute("aria-label", `Copy the translation (${title.toLowerCase()})`);
    this.copyButton.addEventListener("click", () => this.#copy());
  }

  get text() {
    return this.#text;
  }

  /** Empty it. */
  clear() {
    this.#say("");
    this.#set("");
    this.output.classList.remove("old");
    this.output.setAttribute("aria-busy", "false");
    this.#details(null);
  }

  /**
   * Expect another translation; the one before it stays in sight, faint, until the first part comes.
   * @param {string} tag of the language it will be in
   */
  expect(tag) {
    this.#say("");
    this.#tag = tag;
    this.output.setAttribute("aria-live", "polite");
    this.output.setAttribute("aria-busy", "true");
    this.output.classList.add("old");
  }

  /** @param {string} text what comes next */
  add(text) {
    if (this.output.classList.contains("old")) {
      this.clear();
      this.output.setAttribute("aria-busy", "true");
      this.output.lang = this.#tag;
    }
    this.#say("");
    this.#text += text;
    this.output.append(text);
  }

  /**
   * Show a translation that is finished.
   * @param {object} answer as of `/v1/translate`
   */
  finish(answer) {
    this.#say("");
    this.output.lang = this.others.lang = this.#tag;
    this.#set(answer.translatedText);
    this.output.classList.remove("old");
    this.output.setAttribute("aria-busy", "false");
    this.#details(answer);
  }

  /** Show which pieces of it differ from another one. */
  mark(pieces) {
    this.output.setAttribute("aria-live", "off"); // what is marked was read out already
    this.output.replaceChildren(...pieces.map(({ text, differs }) => (differs ? element("mark", {}, text) : text)));
  }

  /** Show it without marks. */
  unmark() {
    this.#set(this.#text);
  }

  /** Say that it is not to be had, and why. */
  fail(message) {
    this.clear();
    this.#say(message, "bad");
  }

  /** Leave what there is of it, as what was asked for last was stopped. */
  stop() {
    if (this.output.getAttribute("aria-busy") === "false") return;
    if (this.output.classList.contains("old")) this.clear();
    this.output.setAttribute("aria-busy", "false");
    this.#say("Stopped.");
  }

  /** Say something of it. */
  remark(words) {
    this.#say(words);
  }

  /** Say that it is asked for again in some seconds. */
  wait(seconds, why) {
    const until = Date.now() + 1000 * seconds;
    const sentence = /[.!?。]$/.test(why) ? why : `${why}.`;
    const when = element("span", { "aria-live": "off" }); // said once, not every second
    const tell = () => {
      const left = Math.max(0, Math.ceil((until - Date.now()) / 1000));
      when.textContent = left ? `in ${whole(left)} s` : "now";
    };
    this.#say(`${sentence} Trying again `, "fair");
    this.notice.append(when, " …");
    this.#countdown = setInterval(tell, 1000);
    tell();
  }

  #set(text) {
    this.#text = text;
    if (this.output.textContent !== text || this.output.firstElementChild) this.output.replaceChildren(text);
  }

  #details(answer) {
    this.copyButton.disabled = !answer?.translatedText;
    const alternatives = answer?.alternatives ?? [];
    this.others.hidden = !alternatives.length;
    const items = alternatives.map((text) => element("li", { dir: "auto" }, text));
    this.others.querySelector("ol").replaceChildren(...items);
    this.others.dir = getComputedStyle(this.output).direction; // on whose side the numbers are
    this.took.textContent = answer ? time(answer.work.seconds) : "";
    const experts = answer?.experts;
    this.sizeLine.textContent = experts ? `${whole(experts.kept)} of ${whole(experts.of)}, ${size(experts.bytes)}` : "";
  }

  #say(text, mood = "") {
    clearInterval(this.#countdown);
    this.notice.hidden = !text;
    this.notice.className = `notice ${mood}`;
    this.notice.textContent = text;
  }

  async #copy() {
    await copied(this.#text, this.output);
    say("Copied");
    this.copyButton.textContent = "Copied";
    setTimeout(() => (this.copyButton.textContent = "Copy"), SHOWN);
  }
}

/** Copy; pages without TLS have no clipboard, but may copy what is selected. */
async function copied(text, output) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const selection = getSelection();
  selection.selectAllChildren(output);
  document.execCommand("copy");
  return selection.removeAllRanges();
}
