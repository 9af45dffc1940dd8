"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEP = 200;
  const { languages, configurations, pairs, values, columns, scales } = data;
  const at = Object.fromEntries(columns.map((name, n) => [name, n]));
  const count = pairs.length / 2;
  const baseline = configurations.indexOf(data.baseline);

  const number = (value, digits, sign) => {
    const text = Math.abs(value).toFixed(digits);
    const zero = Number(text) === 0;
    return (value < 0 && !zero ? "−" : sign ? "+" : "") + text;
  };
  const value = (configuration, name, pair) => {
    const column = values[configuration][at[name]];
    return column === null || column[pair] === null ? null : column[pair] / scales[at[name]];
  };
  const name = (pair, side) => languages[pairs[2 * pair + side]][1];
  const code = (pair, side) => languages[pairs[2 * pair + side]][0];
  const bare = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const searched = languages.map(([a, b]) => bare(a + " " + b));

  const shown = (digits, sign, scale = 1) => (found) => (found === null ? "—" : number(found * scale, digits, sign));
  const SHOWN = [
    { title: "direction", of: (c, p) => name(p, 0) + " → " + name(p, 1), text: (t) => t, under: (c, p) => code(p, 0) + "-" + code(p, 1), first: 1 },
    { title: "configuration", of: (c) => configurations[c], text: (t) => t, first: 1 },
    { title: data.baseline, of: (c, p) => value(baseline, "chrf", p), text: shown(1) },
    { title: "chrF++", of: (c, p) => value(c, "chrf", p), text: shown(1) },
    { title: "change", of: (c, p) => value(c, "change", p), text: shown(2, true), under: (c, p) => { const low = value(c, "low", p); return low === null ? "" : number(low, 1, true) + " to " + number(value(c, "high", p), 1, true); }, mark: true, first: 1 },
    { title: "q", of: (c, p) => value(c, "q", p), text: shown(3), first: 1 },
    ...(data.second ? [{ title: data.second + " change", of: (c, p) => value(c, "second", p), text: shown(2, true), first: 1 }] : []),
    { title: "length", of: (c, p) => value(c, "length", p), text: shown(2) },
    ...(data.detectors.length ? [{ title: "flagged %", of: (c, p) => value(c, "rate", p), text: shown(1, false, 100), under: (c, p) => { const n = value(c, "detector", p); return n === null || !value(c, "rate", p) ? "" : data.detectors[n]; } }] : []),
  ];

  const box = document.getElementById("all");
  const form = box.querySelector("form");
  const body = box.querySelector("tbody");
  const more = box.querySelector(".more");
  const live = document.getElementById("count");
  let order = { column: SHOWN.findIndex((each) => each.title === "change"), way: 1 };
  let rows = [];
  let limit = STEP;

  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    Object.entries(attributes).forEach(([key, each]) => made.setAttribute(key, each));
    return made;
  };

  const matches = (text) => {
    const words = bare(text).split(/\s+/).filter(Boolean);
    return searched.map((each) => words.every((word) => each.includes(word)));
  };

  const chosen = () => {
    const sources = matches(form.elements.source.value);
    const targets = matches(form.elements.target.value);
    const one = form.elements.configuration.value;
    const found = [];
    configurations.forEach((_, c) => {
      if (one !== "" && Number(one) !== c) return;
      for (let p = 0; p < count; p++) {
        if (!sources[pairs[2 * p]] || !targets[pairs[2 * p + 1]] || value(c, "chrf", p) === null) continue;
        if (form.elements.significant.checked && !(value(c, "q", p) !== null && value(c, "q", p) < 0.05)) continue;
        found.push([c, p]);
      }
    });
    return found;
  };

  const sorted = (found) => {
    const { of } = SHOWN[order.column];
    const keyed = found.map(([c, p], n) => [of(c, p), n, c, p]);
    keyed.sort(([a, m], [b, n]) => {
      if (a === null || b === null) return a === b ? m - n : a === null ? 1 : -1;
      return (a < b ? -order.way : a > b ? order.way : 0) || m - n;
    });
    return keyed.map(([, , c, p]) => [c, p]);
  };

  const row = ([c, p]) => {
    const made = element("tr");
    SHOWN.forEach((each) => {
      const cell = element("td", each.text(each.of(c, p)));
      const under = each.under ? each.under(c, p) : "";
      if (under) cell.append(element("small", under));
      const q = each.mark ? value(c, "q", p) : null;
      if (q !== null && q < 0.05) cell.className = "mark";
      made.append(cell);
    });
    return made;
  };

  const draw = () => {
    body.replaceChildren(...rows.slice(0, limit).map(row));
    more.hidden = rows.length <= limit;
    live.textContent = `${rows.length.toLocaleString("en")} rows` + (rows.length > limit ? `, the first ${limit.toLocaleString("en")} of them` : "");
  };
  const update = () => {
    limit = STEP;
    rows = sorted(chosen());
    draw();
  };

  SHOWN.forEach((each, n) => {
    const head = element("th", undefined, { scope: "col" });
    const button = element("button", each.title, { type: "button" });
    button.addEventListener("click", () => {
      order = { column: n, way: order.column === n ? -order.way : each.first || -1 };
      mark();
      update();
    });
    head.append(button);
    box.querySelector("thead tr").append(head);
  });
  const mark = () => box.querySelectorAll("th").forEach((head, n) => {
    if (n === order.column) head.setAttribute("aria-sort", order.way > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });

  form.elements.configuration.append(element("option", "all", { value: "" }));
  configurations.forEach((each, n) => form.elements.configuration.append(element("option", each, { value: n })));
  const main = document.querySelector(".card.main h3 span");
  if (main) form.elements.configuration.value = String(configurations.indexOf(main.textContent));
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  more.addEventListener("click", () => {
    limit += STEP;
    draw();
  });
  box.hidden = false;
  mark();
  update();

  const places = new Map();
  for (let p = 0; p < count; p++) places.set(code(p, 0) + "-" + code(p, 1), p);
  document.querySelectorAll("[data-cells]").forEach((figure) => {
    const { box: [left, top, width, height], rows: sources, columns: targets, configuration } = JSON.parse(figure.dataset.cells);
    const c = configurations.indexOf(configuration);
    const under = figure.closest("figure").querySelector(".under");
    under.hidden = false;
    under.textContent = "Point at a cell to read it.";
    figure.addEventListener("pointermove", (event) => {
      const area = figure.getBoundingClientRect();
      const column = Math.floor((((event.clientX - area.left) / area.width - left) / width) * targets.length);
      const line = Math.floor((((event.clientY - area.top) / area.height - top) / height) * sources.length);
      const p = places.get(sources[line] + "-" + targets[column]);
      if (p === undefined) return;
      const change = value(c, "change", p);
      under.textContent = `${name(p, 0)} → ${name(p, 1)}: ${number(change, 2, true)} (${number(value(baseline, "chrf", p), 1)} to ${number(value(c, "chrf", p), 1)}, q ${number(value(c, "q", p), 3)})`;
    });
  });
})();
