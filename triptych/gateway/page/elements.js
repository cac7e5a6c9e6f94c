// The few things that every module does with the document.

const SMALLEST_LARGE = 448;
const LARGEST = 1100;

/** @returns {any} The element of that id, which is there. */
export function byId(id) {
  return document.getElementById(id);
}

/** An element with properties and children; text is set as text, never read as markup. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Tells those who do not see the page. */
export function say(words) {
  byId("live").textContent = words;
}

/** The shape of a frame, and how far a picture of so many pixels is enlarged at most. */
export function setFrame(frame, width, height) {
  const longer = Math.max(width, height);
  const most = Math.min(LARGEST, Math.max(SMALLEST_LARGE, 1.25 * longer));
  frame.style.setProperty("--w", width);
  frame.style.setProperty("--h", height);
  frame.style.setProperty("--most", (most * width) / longer);
}
