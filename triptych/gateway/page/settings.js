// The fields of the form: filled by what the models can do, read into a request, and brought back from an old one.

import { byId, element } from "./elements.js";

const PLAIN = ["prompt", "negative_prompt", "model", "sampler", "num_steps", "guidance_scale", "seed", "num_images"];
const WITH_A_MASK = ["mask_blur", "num_resamples"];
const USUAL_STRENGTH = { picture: 0.8, mask: 1 };
export const PREVIEWS = 10;

const field = byId;
let models = [];
let strengthIsMine = false;

/** The model that is chosen; undefined while none has been heard of. */
export const model = () => models[field("model").selectedIndex];
export const abilities = () => model()?.abilities ?? null;
export const can = (task) => abilities()?.tasks.includes(task) ?? false;
/** [width, height] of the pictures; null while no model has told its sizes. */
export const size = () => (field("size").value ? field("size").value.split("x").map(Number) : null);

/** Fills the list of models, keeping what was chosen as far as it is still there. */
export function offer(found) {
  const before = field("model").value;
  models = found;
  field("model").replaceChildren(...models.map((each) => element("option", { value: each.name ?? "", textContent: each.name ?? "starting" })));
  const place = models.findIndex((each) => each.name === before);
  field("model").selectedIndex = place >= 0 && before ? place : Math.max(0, models.findIndex((each) => each.default));
  offerAbilities();
}

/** Fills what depends on the model. Numbers that a person has changed stay; those that were a model's default follow it. */
export function offerAbilities() {
  const problems = Object.entries(model()?.problems ?? {}).map(([stage, words]) => `${stage.replace("_", " ")}: ${words}`);
  field("model-note").textContent = problems.join("; ");
  field("model-note").hidden = !problems.length;
  const known = abilities();
  if (!known) return;
  list("sampler", known.samplers);
  list("size", known.sizes.map(([width, height]) => `${width}x${height}`), (text) => text.replace("x", " × "));
  follow("num_steps", known.default_num_steps);
  follow("guidance_scale", known.default_guidance_scale);
  summarize();
}

function list(name, values, words = (value) => value) {
  const before = field(name).value;
  field(name).replaceChildren(...values.map((value) => element("option", { value, textContent: words(value) })));
  if (values.includes(before)) field(name).value = before;
}

function follow(name, value) {
  const input = field(name);
  if (input.value === "" || input.value === input.dataset.usual) input.value = value;
  input.dataset.usual = value;
}

export function summarize() {
  const told = [field("model").value, field("sampler").value, `${field("num_steps").value} steps`, field("seed").value && `seed ${field("seed").value}`];
  field("settings-summary").textContent = told.filter(Boolean).join(" · ");
}

/** Shows what applies to the picture that is changed, and the strength that is usual for it unless a person has set one. */
export function suitEdit({ hasMask }) {
  for (const each of document.querySelectorAll(".with-mask")) each.hidden = !hasMask;
  if (!strengthIsMine) field("strength").value = hasMask ? USUAL_STRENGTH.mask : USUAL_STRENGTH.picture;
  showStrength();
}

function showStrength() {
  field("strength-output").textContent = `${Math.round(100 * field("strength").value)} %`;
}

/** The first field that holds no number where one is wanted; the gateway judges everything else. */
export function misfilled() {
  return [...document.querySelectorAll("#form input[type=number]")].find((input) => input.validity.badInput);
}

/** A request as a form, which takes pictures as they are and seeds of 64 bits. @param {{file: Blob, mask: Blob|null}|null} edit */
export function toForm(edit) {
  const form = new FormData();
  const put = (name, value) => value !== "" && form.append(name, value);
  for (const name of PLAIN) put(name, field(name).value.trim());
  const [width, height] = size() ?? ["", ""];
  put("width", width);
  put("height", height);
  form.append("previews", PREVIEWS);
  if (!edit) return form;
  form.append("image", edit.file, "image");
  put("strength", field("strength").value);
  if (!edit.mask) return form;
  form.append("mask", edit.mask, "mask");
  for (const name of WITH_A_MASK) put(name, field(name).value);
  return form;
}

/** Brings a request back, so that it makes the same picture again. @param {Record<string, any>} parameters as the gateway tells them */
export function restore(parameters) {
  if (models.some((each) => each.name === parameters.model)) field("model").value = parameters.model;
  offerAbilities();
  for (const name of [...PLAIN, ...WITH_A_MASK]) if (name !== "model" && name in parameters) field(name).value = parameters[name];
  field("size").value = `${parameters.width}x${parameters.height}`;
  if ("strength" in parameters) setStrength(parameters.strength);
  summarize();
}

export function setStrength(value) {
  strengthIsMine = true;
  field("strength").value = value;
  showStrength();
}

export function forgetStrength() {
  strengthIsMine = false;
}

/** Marks the field that a refusal names; none where it is null. */
export function mark(name) {
  for (const marked of document.querySelectorAll("#form [aria-invalid]")) marked.removeAttribute("aria-invalid");
  const wrong = name && document.querySelector(`#form [name="${CSS.escape({ width: "size", height: "size" }[name] ?? name)}"]`);
  if (!wrong) return;
  wrong.setAttribute("aria-invalid", "true");
  if (byId("settings").contains(wrong)) byId("settings").open = true;
}

field("strength").addEventListener("input", () => setStrength(field("strength").value));
field("seed-clear").addEventListener("click", () => {
  field("seed").value = "";
  summarize();
  field("seed").focus();
});
field("settings").addEventListener("input", summarize);
