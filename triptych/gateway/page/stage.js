// The middle panel: what is being made, the picture with its label, and what went wrong.

import { byId, element, say, setFrame } from "./elements.js";

const STAGES = { text_encoder: "Text encoder", diffusion: "Diffusion", decoder: "Decoder" };
const TIMINGS = { queue: "Queue", ...STAGES, gateway: "Gateway" };

const stage = byId("stage");
const picture = byId("picture");
const progress = byId("progress");
let spoken = "";
let previewUrls = [];

/** Shows that a request was sent, in the shape of what it asks for. */
export function begin(width, height) {
  hideError();
  setFrame(byId("frame"), width, height);
  spoken = "";
  stage.dataset.state = "making";
  for (const id of ["caption", "row", "invitation"]) byId(id).hidden = true;
  picture.hidden = true;
  progress.hidden = false;
  fill(0, 0, 0);
  tell("Sending", 0);
}

/** One event of the gateway, other than the last. */
export function follow({ name, data }) {
  if (name === "accepted") tell("In line", 0);
  else if (name === "preview") preview(data.images);
  else if (data.stage === "text_encoder") fill(0.5, 0, 0), tell("Text encoder", 0.02);
  else if (data.stage === "decoder") fill(1, 1, 0.5), tell("Decoder", 0.95);
  else if (data.stage === "diffusion") {
    const done = (data.position ?? 0) / (data.num_evaluations ?? 1);
    fill(1, done, 0);
    tell("Diffusion", 0.05 + 0.9 * done, data.position ? `${data.position} of ${data.num_evaluations}` : "");
  }
}

function tell(words, share, counted = "") {
  progress.setAttribute("aria-valuenow", String(Math.round(100 * share)));
  progress.setAttribute("aria-valuetext", [words, counted].filter(Boolean).join(", "));
  byId("progress-words").textContent = [words, counted].filter(Boolean).join(" · ");
  if (words !== spoken) say((spoken = words));
}

function fill(...shares) {
  Object.keys(STAGES).forEach((name, place) => stage.style.setProperty(`--${name.replace("_", "-")}`, shares[place]));
}

function preview(images) {
  forgetPreviews();
  previewUrls = images.map(({ b64_json: text }) => URL.createObjectURL(blobOf(text, "image/jpeg")));
  picture.src = previewUrls[0];
  picture.alt = "A preview";
  picture.hidden = false;
  row(previewUrls, 0);
}

function forgetPreviews() {
  previewUrls.forEach((url) => URL.revokeObjectURL(url));
  previewUrls = [];
}

/** A file that came as base64. */
export function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}

/** Ends the showing of progress; `show` or `showNothing` says what stands there instead. */
export function end() {
  progress.hidden = true;
  forgetPreviews();
  fill(0, 0, 0);
}

export function showNothing() {
  stage.dataset.state = "empty";
  picture.hidden = true;
  byId("row").hidden = true;
  byId("caption").hidden = true;
  byId("invitation").hidden = false;
}

/**
 * Shows a picture that was made, with its label.
 * @param {import("./history.js").Entry} entry
 * @param {(entry: import("./history.js").Entry) => void} choose Called where another picture of the same request is chosen.
 */
export function show(entry, choose) {
  const { parameters, timings, warnings } = entry.answer;
  stage.dataset.state = "shown";
  setFrame(byId("frame"), parameters.width, parameters.height);
  picture.src = entry.url;
  picture.alt = parameters.prompt;
  picture.hidden = false;
  byId("invitation").hidden = true;
  byId("caption").hidden = false;
  byId("caption-prompt").textContent = parameters.prompt;
  byId("caption-facts").textContent = facts(entry).join(" · ");
  byId("warnings").replaceChildren(...warnings.map((words) => element("li", { textContent: words })));
  byId("warnings").hidden = !warnings.length;
  byId("download").href = entry.url;
  byId("download").download = `triptych-${entry.seed}.png`;
  row(entry.siblings.map((each) => each.url), entry.siblings.indexOf(entry), (place) => choose(entry.siblings[place]));
  showTimings(timings);
}

function facts({ answer: { model, parameters, timings }, seed }) {
  return [
    model,
    `seed ${seed}`,
    `${parameters.sampler}, ${parameters.num_steps} steps`,
    `guidance ${parameters.guidance_scale}`,
    ...("strength" in parameters ? [`strength ${parameters.strength}`] : []),
    `${parameters.width}×${parameters.height}`,
    duration(timings.total_seconds),
  ];
}

function row(urls, chosen, choose = () => {}) {
  const button = (url, place) => {
    const made = element("button", { type: "button", onclick: () => choose(place) }, element("img", { src: url, alt: "" }));
    made.setAttribute("aria-label", `Picture ${place + 1} of ${urls.length}`);
    made.setAttribute("aria-pressed", String(place === chosen));
    return made;
  };
  byId("row").replaceChildren(...urls.map(button));
  byId("row").hidden = urls.length < 2;
}

function showTimings(timings) {
  const names = Object.keys(TIMINGS);
  const seconds = (name) => Math.max(0, timings[`${name}_seconds`] ?? 0);
  byId("timing-bar").replaceChildren(
    ...names.map((name) => {
      const part = element("i", { className: `of-${name}` });
      part.style.flexGrow = String(seconds(name));
      return part;
    }),
  );
  byId("timing-list").replaceChildren(
    ...names.map((name) =>
      element("div", { className: `of-${name}` }, element("dt", { textContent: TIMINGS[name] }), element("dd", { textContent: duration(seconds(name)) })),
    ),
  );
}

function duration(seconds) {
  if (seconds < 0.001) return "< 1 ms";
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function showError(words) {
  byId("error-words").textContent = words;
  byId("error").hidden = false;
}

export function hideError() {
  byId("error").hidden = true;
  byId("error-words").textContent = "";
}

byId("error-close").addEventListener("click", hideError);
