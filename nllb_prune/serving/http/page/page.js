/** The page of the translation server. */

import { Choices } from "./choices.js";
import { difference } from "./difference.js";
import { byId } from "./dom.js";
import { DETECT, Languages } from "./languages.js";
import { showMemory } from "./memory.js";
import { RequestError, Server } from "./server.js";
import { SourceText } from "./source-text.js";
import { Translation } from "./translation.js";
import { Work } from "./work.js";
import { introduce, modifier, sureness, trouble, verdict } from "./wording.js";

const KEY = "api-key";
const PAUSE = 500; // milliseconds without typing, unless the server says so

class Page {
  #running = null;
  #timer = 0;
  #kept = null; // what is shown of the kept experts: what was asked, and the answer
  #detected = null;
  #failed = false;

  constructor() {
    this.server = new Server(() => sessionStorage.getItem(KEY) ?? "");
    this.kept = new Translation(byId("kept"), "Kept experts");
    this.all = new Translation(byId("all"), "Full model");
    this.source = new SourceText({
      typed: () => this.#translateSoon(),
      cleared: () => this.translate(),
    });
  }

  async start() {
    byId("key").value = sessionStorage.getItem(KEY) ?? "";
    for (const each of document.querySelectorAll(".modifier")) each.textContent = modifier();
    this.#listen();
    await this.#open();
  }

  #listen() {
    byId("translator").addEventListener("submit", (event) => event.preventDefault());
    byId("translate").addEventListener("click", () => (this.#running ? this.#stop() : this.translate()));
    document.addEventListener("keydown", (event) => this.#keyPressed(event));
    byId("swap").addEventListener("click", () => this.#swap());
    byId("compare").addEventListener("change", () => this.#comparisonChanged());
    byId("alternatives").addEventListener("change", () => this.translate());
    byId("key").addEventListener("change", (event) => this.#keyChanged(event.target.value.trim()));
    byId("memory").addEventListener("toggle", () => this.#refreshMemory());
    addEventListener("online", () => (this.languages ? this.#failed && this.translate() : this.#open()));
  }

  /** Ask the server what it has. */
  async #open() {
    try {
      const paths = ["frontend/settings", "v1/configurations", "languages"];
      const answers = await Promise.allSettled(paths.map((path) => this.server.get(path)));
      if (answers[0].value?.keyRequired) byId("key-field").hidden = false;
      if (!this.languages) this.#show(...answers.map(valueOf));
      trouble("");
    } catch (error) {
      this.#failedToOpen(error);
    }
  }

  #failedToOpen(error) {
    if (!(error instanceof RequestError)) throw error;
    const passing = error.status !== 403 && error.wait !== null;
    if (passing) setTimeout(() => this.#open(), 1000 * Math.max(1, error.wait));
    if (error.status === 403) byId("key-field").hidden = false;
    trouble(error.message, { passing });
  }

  #show(settings, configurations, listed) {
    Object.assign(this, { settings, configurations, languages: new Languages(configurations, listed) });
    this.work = new Work((key) => this.languages.nameOfKey(key), configurations.memory.fixed);
    this.source.limit = settings.charLimit;
    byId("compare-field").hidden = !configurations.full;
    for (const each of byId("alternatives").options) each.disabled = Number(each.value) >= configurations.beams;
    introduce(configurations);
    this.#showMemory(configurations);
    this.choices = new Choices(this.languages, settings.language.target.code, () => this.#languagesChanged());
    this.choices.start();
  }

  #keyPressed(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.translate();
    } else if (event.key === "Escape" && this.#running) this.#stop();
  }

  #keyChanged(key) {
    sessionStorage.setItem(KEY, key);
    if (this.languages) this.translate();
    else this.#open();
  }

  #languagesChanged() {
    this.#detected = null;
    this.source.tag = this.languages.find(this.choices.source)?.tag;
    this.#showDetected();
    this.translate();
  }

  #comparisonChanged() {
    const compared = byId("compare").checked;
    byId("panes").classList.toggle("compared", compared);
    byId("all").hidden = this.kept.head.hidden = this.all.head.hidden = !compared;
    this.#forgetComparison();
    if (compared) this.translate({ keep: true });
    else if (this.#kept) this.work.show(this.#kept.answer, null);
  }

  #forgetComparison() {
    byId("differences").hidden = true;
    this.kept.unmark();
    this.all.unmark();
  }

  #swap() {
    const { target } = this.choices;
    const source = this.#knownSource();
    if (!this.languages.serves(target, source)) return;
    if (this.kept.text) this.source.text = this.kept.text;
    this.choices.set(target, source);
  }

  /** Return the language that is translated from, as far as it is known. */
  #knownSource() {
    return this.choices.source === DETECT ? this.#detected?.source : this.choices.source;
  }

  #showDetected() {
    const source = this.#knownSource();
    this.choices.showFound(this.#detected?.source);
    byId("detected").textContent = sureness(this.#detected);
    byId("swap").disabled = !source || !this.languages.serves(this.choices.target, source);
  }

  #translateSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.translate(), this.settings?.frontendTimeout ?? PAUSE);
  }

  #stop() {
    this.#run(null);
    this.kept.stop();
    this.all.stop();
    if (!this.#kept) this.work.hide();
  }

  /** Give up what runs, for something else or nothing. */
  #run(controller) {
    this.#running?.abort();
    this.#running = controller;
    byId("translate").textContent = controller ? "Stop" : "Translate";
  }

  /**
   * Translate what there is now.
   * @param {{keep?: boolean}} [options] `keep`: what the kept experts made of the same text already is not asked again
   */
  async translate({ keep = false } = {}) {
    clearTimeout(this.#timer);
    if (!this.languages) return;
    this.#run(null);
    this.#forgetComparison();
    if (!this.source.text.trim()) return this.#nothing("");
    if (this.source.problem) return this.#nothing(this.source.problem);
    const controller = new AbortController();
    this.#run(controller);
    try {
      await this.#translateAll(controller.signal, keep);
    } finally {
      if (this.#running === controller) this.#run(null);
    }
  }

  /** Show no translation, and why. */
  #nothing(why) {
    this.#detected = this.#kept = null;
    this.kept.fail(why);
    this.all.clear();
    this.work.hide();
    this.#showDetected();
  }

  /** Translate with the kept experts, then with all: at the same time, they would share the machine and look slow. */
  async #translateAll(signal, keep) {
    const compared = byId("compare").checked;
    const asked = this.#asked();
    if (compared) this.all.expect(this.#tag(asked));
    if (!keep || JSON.stringify(asked) !== JSON.stringify(this.#kept?.asked)) await this.#askKept(asked, signal);
    if (signal.aborted) return;
    const served = this.#kept?.answer.experts.stacks.length;
    if (compared && served) await this.#askAll(asked, signal);
    else this.all.clear();
  }

  #asked() {
    const { source, target } = this.choices;
    const alternatives = Number(byId("alternatives").value);
    return { q: this.source.text, source, target, format: "text", alternatives };
  }

  #tag(asked) {
    return this.languages.find(asked.target).tag;
  }

  async #askKept(asked, signal) {
    this.#kept = null;
    const answer = await this.#ask(this.kept, { ...asked, experts: "kept" }, signal);
    if (!answer && !signal.aborted) this.work.hide();
    if (!answer) return;
    this.#kept = { asked, answer };
    this.#detected = answer.detectedLanguage && { source: answer.source, ...answer.detectedLanguage };
    this.#showDetected();
    this.work.show(answer, null);
    this.#refreshMemory();
    const name = this.languages.nameOfKey(answer.target);
    if (answer.source === answer.target) this.kept.remark(`This is ${name} already and stays as it is.`);
  }

  async #askAll(asked, signal) {
    const full = await this.#ask(this.all, { ...asked, experts: "all" }, signal);
    if (!full) return;
    const { answer } = this.#kept;
    const { pieces, words } = difference(answer.translatedText, full.translatedText, this.#tag(asked));
    this.kept.mark(pieces[0]);
    this.all.mark(pieces[1]);
    this.work.show(answer, full);
    byId("differences").hidden = false;
    byId("differences").replaceChildren(...verdict(words));
  }

  /** Return the answer; nothing if there was none, which is said where the translation would be. */
  async #ask(translation, asked, signal) {
    translation.expect(this.#tag(asked));
    try {
      const answer = await this.server.stream(asked, {
        signal,
        part: (text) => translation.add(text),
        waiting: (seconds, why) => translation.wait(seconds, why),
      });
      translation.finish(answer);
      this.#failed = false;
      return answer;
    } catch (error) {
      if (!signal.aborted) this.#refused(translation, error);
      return null;
    }
  }

  #refused(translation, error) {
    if (!(error instanceof RequestError)) throw error;
    this.#failed = true;
    if (error.status === 403) byId("key-field").hidden = false;
    translation.fail(error.message);
  }

  async #refreshMemory() {
    if (!byId("memory").open) return;
    this.#showMemory(await this.server.get("v1/configurations").catch(() => this.configurations));
  }

  #showMemory(configurations) {
    showMemory(configurations, (key) => this.languages.nameOfKey(key));
  }
}

/** Return the value of a promise that was kept, or throw what it failed with. */
function valueOf(settled) {
  if (settled.status === "rejected") throw settled.reason;
  return settled.value;
}

await new Page().start();
