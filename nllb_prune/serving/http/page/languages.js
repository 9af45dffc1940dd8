/** The languages of the server: which there are, which one translates into which, and what browsers call them. */

export const DETECT = "auto";
/** Key of the sides of the full model. */
export const FULL = "full";

/** @typedef {{code: string, name: string, tag: string, source: boolean, target: boolean}} Language */

export class Languages {
  /**
   * @param {{languages: object[]}} configurations answer of `/v1/configurations`
   * @param {{code: string, targets: string[]}[]} listed answer of `/languages`
   */
  constructor(configurations, listed) {
    /** @type {Language[]} */
    this.all = configurations.languages
      .map((each) => ({ ...each, tag: tagOf(each.code) }))
      .sort((first, second) => first.name.localeCompare(second.name, "en"));
    this.byName = new Map(this.all.flatMap((each) => namesOf(each).map((name) => [name, each])));
    this.byCode = new Map(this.all.map((each) => [each.code, each]));
    this.targets = new Map(listed.map((each) => [this.find(each.code)?.code, this.#codes(each.targets)]));
  }

  #codes(names) {
    return new Set(names.map((name) => this.find(name)?.code));
  }

  /**
   * Return a language under one of its codes.
   * @param {string} name
   */
  find(name) {
    return this.byCode.get(name) ?? this.byName.get(String(name).toLowerCase());
  }

  get sources() {
    return this.all.filter((each) => each.source);
  }

  /**
   * Return the languages that one is translated into.
   * @param {string} source code, or `DETECT` for those of any
   */
  targetsOf(source) {
    const codes = this.targets.get(source);
    return this.all.filter((each) => each.target && (!codes || codes.has(each.code)));
  }

  serves(source, target) {
    return Boolean(this.find(source)?.source) && this.targetsOf(source).some((each) => each.code === target);
  }

  /** Return the name of the languages that a mask is of. */
  nameOfKey(key) {
    if (key === "*") return "all languages";
    if (key === FULL) return "full model";
    return key.split("-").map((code) => this.find(code)?.name ?? code).join(" → ");
  }
}

function namesOf(language) {
  return [language.iso, language.tag, language.code].filter(Boolean).map((name) => name.toLowerCase());
}

/** Return the BCP 47 tag of a FLORES-200 code, for fonts, hyphens and voices: `de`, `zh-Hans`, `ace-Arab`. */
function tagOf(code) {
  const { language, script } = new Intl.Locale(code.replace("_", "-"));
  const usual = new Intl.Locale(language).maximize().script === script && language !== "zh";
  return usual ? language : `${language}-${script}`;
}
