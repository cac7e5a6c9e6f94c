// Painting a mask over a picture: by mouse, pen, touch and keyboard.

import { Mask } from "./mask.js";
import { byId, say, setFrame } from "./elements.js";

const SHARPNESS = 1024; // pixels of the overlay's longer side, so that a small picture's mask has crisp edges on the screen
const STRIPES = ["#e23d28", "#ffffff"]; // seen on any picture

const easel = byId("easel");
const overlay = byId("overlay");
const cursor = byId("cursor");
const size = byId("brush-size");
const [brush, eraser] = [byId("brush"), byId("eraser")];

let mask = new Mask(1, 1);
let at = [0, 0]; // the brush, in pixels of the picture
let drawing = false;
let waiting = false;
let changed = () => {};

/** @param {() => void} listener Called when the mask has changed. */
export function onChange(listener) {
  changed = listener;
}

/** Puts a picture on the easel, with a mask that was painted before or with none. */
export function show(url, width, height, operations = []) {
  mask = new Mask(width, height, operations);
  at = [width / 2, height / 2];
  byId("easel-picture").src = url;
  setFrame(easel, width, height);
  const scale = Math.max(1, Math.floor(SHARPNESS / Math.max(width, height)));
  [overlay.width, overlay.height] = [width * scale, height * scale];
  size.max = Math.ceil(Math.min(width, height) / 3);
  size.value = Math.ceil(Math.min(width, height) / 12);
  choose(false);
  redraw();
}

export const isPainted = () => mask.share > 0;
export const toBlob = () => mask.toBlob();
export const operations = () => mask.snapshot();

const radius = () => Number(size.value);
const erasing = () => eraser.getAttribute("aria-pressed") === "true";

function choose(erase) {
  brush.setAttribute("aria-pressed", String(!erase));
  eraser.setAttribute("aria-pressed", String(erase));
}

function apply(operation) {
  mask.apply(operation);
  finish();
}

function finish() {
  drawing = false;
  redraw();
  say(`${Math.round(100 * mask.share)} % of the picture is painted`);
}

function undo() {
  if (!mask.operations.length) return;
  mask.undo();
  finish();
}

function redraw() {
  changed();
  byId("undo").disabled = !mask.operations.length;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const context = overlay.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.imageSmoothingEnabled = false;
    context.drawImage(mask.toStencil(), 0, 0, overlay.width, overlay.height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = context.createPattern(stripes(), "repeat");
    context.fillRect(0, 0, overlay.width, overlay.height);
  });
}

function stripes() {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 24;
  const context = tile.getContext("2d");
  context.fillStyle = STRIPES[0];
  context.fillRect(0, 0, 24, 24);
  context.strokeStyle = STRIPES[1];
  context.lineWidth = 4;
  for (const shift of [-24, 0, 24]) {
    context.moveTo(shift - 4, 28);
    context.lineTo(shift + 28, -4);
  }
  context.stroke();
  return tile;
}

function showCursor(visible) {
  cursor.hidden = !visible;
  const diameter = (2 * radius()) / mask.width;
  cursor.style.width = `${100 * diameter}%`;
  cursor.style.aspectRatio = "1";
  cursor.style.left = `${(100 * at[0]) / mask.width}%`;
  cursor.style.top = `${(100 * at[1]) / mask.height}%`;
}

// Mouse, pen and touch

function pointOf(event) {
  const box = easel.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * mask.width, ((event.clientY - box.top) / box.height) * mask.height];
}

easel.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  easel.setPointerCapture(event.pointerId);
  at = pointOf(event);
  drawing = true;
  mask.apply({ kind: "stroke", erase: erasing(), radius: radius(), points: [at] });
  redraw();
  showCursor(true);
});

easel.addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) {
    at = pointOf(each);
    if (drawing) mask.extend(at);
  }
  if (drawing) redraw();
  showCursor(true);
});

for (const name of ["pointerup", "pointercancel"]) {
  easel.addEventListener(name, (event) => drawing && event.isPrimary && finish());
}
easel.addEventListener("pointerleave", () => showCursor(easel.matches(":focus-visible")));

// Keyboard

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function move([dx, dy], paints) {
  const step = Math.max(1, radius() / 2);
  const from = at;
  const within = (value, most) => Math.min(most, Math.max(0, value));
  at = [within(at[0] + dx * step, mask.width), within(at[1] + dy * step, mask.height)];
  if (paints) apply({ kind: "stroke", erase: erasing(), radius: radius(), points: [from, at] });
}

function resize(by) {
  size.value = Number(size.value) + by;
}

easel.addEventListener("keydown", (event) => {
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "z") undo();
  else if (control || event.altKey) return;
  else if (event.key in MOVES) move(MOVES[event.key], event.shiftKey);
  else if (event.key === " ") apply({ kind: "stroke", erase: erasing(), radius: radius(), points: [at] });
  else if (event.key.toLowerCase() === "x") choose(!erasing());
  else if (event.key === "[") resize(-1);
  else if (event.key === "]") resize(1);
  else return;
  event.preventDefault();
  showCursor(true);
});
easel.addEventListener("focus", () => easel.matches(":focus-visible") && showCursor(true));
easel.addEventListener("blur", () => showCursor(false));

// Tools

brush.addEventListener("click", () => choose(false));
eraser.addEventListener("click", () => choose(true));
byId("undo").addEventListener("click", undo);
byId("invert").addEventListener("click", () => apply({ kind: "invert" }));
byId("clear").addEventListener("click", () => mask.share && apply({ kind: "clear" }));
