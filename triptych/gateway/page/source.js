// The picture to change: chosen, dropped, pasted or taken from a result, and brought to a size that the model takes.

import { byId } from "./elements.js";

const READ = ["image/png", "image/jpeg", "image/webp"];

/**
 * @typedef {{blob: Blob, bitmap: ImageBitmap, name: string}} Original
 * @typedef {{original: Original, file: Blob, width: number, height: number, note: string}} Source
 */

/** @returns {Promise<Original>} Its rejection says in words why there is none. */
export async function open(blob, name) {
  try {
    return { blob, bitmap: await createImageBitmap(blob), name };
  } catch {
    throw new Error(`${name} is not a picture that this browser can read. PNG, JPEG and WebP are.`);
  }
}

/** The size that suits a picture best: its own, else the most alike in shape, and of those the nearest in area. */
export function bestSize({ width, height }, sizes) {
  const badness = ([w, h]) => [Math.abs(Math.log((w * height) / (h * width))), Math.abs(Math.log((w * h) / (width * height)))];
  const worse = (one, other) => badness(one)[0] - badness(other)[0] || badness(one)[1] - badness(other)[1];
  return sizes.find(([w, h]) => w === width && h === height) ?? [...sizes].sort(worse)[0];
}

/**
 * The picture at a size, scaled and cropped around its middle where it has another. Where it has that size, and is of a kind that
 * the gateway reads, it is sent byte for byte.
 * @returns {Promise<Source>}
 */
export async function fit(original, [width, height]) {
  const { blob, bitmap } = original;
  const exact = bitmap.width === width && bitmap.height === height;
  const file = exact && READ.includes(blob.type) ? blob : await cropped(bitmap, width, height);
  const note = exact ? `${width}×${height}` : `${bitmap.width}×${bitmap.height}, fitted to ${width}×${height}`;
  return { original, file, width, height, note };
}

function cropped(bitmap, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // the gateway too has white under what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Shows the source, whose file is at an address, in the form; or with null the invitation to choose one. */
export function showCard(source, url) {
  byId("choose").hidden = source !== null;
  byId("source-card").hidden = source === null;
  byId("edit-fields").hidden = source === null;
  if (source === null) return;
  byId("source-thumb").src = url;
  byId("source-name").textContent = source.original.name;
  byId("source-note").textContent = source.note;
}

/** @param {(file: File) => void} take Called with what a person chooses, drops anywhere on the page, or pastes. */
export function listen(take) {
  const input = byId("file");
  const veil = byId("veil");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    veil.hidden = false;
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && (veil.hidden = true));
  document.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
}

function pictureIn(clipboard) {
  return [...clipboard.files].find((file) => file.type.startsWith("image/"));
}
