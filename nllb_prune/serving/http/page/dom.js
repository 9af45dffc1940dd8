/** Elements of the page: found and made. Text is only ever set as text. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} attributes `true` sets an empty attribute, `false` none
 * @param {...(Node | string)} children
 */
export const element = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

/** Make an element of a drawing. */
export const drawn = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Tell those who listen to the page instead of looking at it. */
export function say(text) {
  byId("said").textContent = text;
}
