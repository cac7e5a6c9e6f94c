// What was made since the page was opened. It lives in this page's memory, so it is bounded.

import { byId, element } from "./elements.js";

export const MOST = 100;

/**
 * One picture.
 * @typedef {object} Entry
 * @property {string} url
 * @property {Blob} file The PNG, as it came.
 * @property {string} seed
 * @property {any} answer Of the gateway, without the pictures.
 * @property {import("./source.js").Source|null} source The picture that was changed.
 * @property {import("./mask.js").Operation[]} mask What was painted on it.
 * @property {Entry[]} siblings All pictures of the request, this one included.
 */

/** @type {Entry[]} The newest first. */
let entries = [];
let choose = () => {};

/** @param {(entry: Entry) => void} listener Called where a picture is chosen. */
export function onChoice(listener) {
  choose = listener;
}

/** @param {Entry[]} made */
export function add(made) {
  entries = [...made, ...entries];
  entries.splice(MOST).forEach(forget);
}

function forget(entry) {
  URL.revokeObjectURL(entry.url);
  for (const sibling of entry.siblings) sibling.siblings = sibling.siblings.filter((each) => each !== entry);
}

/** Draws the shelf. @param {Entry|null} current The picture that is shown. */
export function draw(current) {
  byId("history-empty").hidden = entries.length > 0;
  byId("history").replaceChildren(...entries.map((entry) => element("li", {}, thumb(entry, entry === current))));
}

function thumb(entry, current) {
  const { prompt } = entry.answer.parameters;
  const made = element("button", { type: "button", title: prompt, onclick: () => choose(entry) }, element("img", { src: entry.url, alt: "" }));
  made.setAttribute("aria-label", `${prompt}, seed ${entry.seed}`);
  made.setAttribute("aria-current", String(current));
  return made;
}
