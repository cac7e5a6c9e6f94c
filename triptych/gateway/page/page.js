// The page: joins the form, the stage, the easel and the history to the gateway.

import * as easel from "./easel.js";
import { byId, element, say } from "./elements.js";
import { Refusal, cancel, generate, models, newName } from "./gateway.js";
import * as history from "./history.js";
import { askForKey } from "./key.js";
import * as settings from "./settings.js";
import * as sources from "./source.js";
import * as stage from "./stage.js";

const EXAMPLES = ["a red heart on a white background", "a yellow star on a blue background"];
const RETRY_MS = 3000;

/** @type {sources.Source|null} */
let source = null;
let sourceUrl = "";
/** @type {history.Entry|null} */
let shown = null;
/** @type {{name: string, controller: AbortController}|null} */
let running = null;

// Models

async function loadModels() {
  try {
    settings.offer(await models());
    suitModel();
    if (byId("error").dataset.of === "models") clearError();
    if (!settings.model()?.ready) retryModels();
  } catch (refusal) {
    if (refusal.asksForKey) return (await askForKey(refusal.message)) && loadModels();
    showRefusal(refusal, "models");
    retryModels();
  }
}

let retrying = 0;
function retryModels() {
  clearTimeout(retrying);
  retrying = setTimeout(loadModels, RETRY_MS);
}

/** Shows what the chosen model can do with pictures. */
function suitModel() {
  const known = settings.abilities() !== null;
  const changes = settings.can("image_to_image") || settings.can("inpainting");
  byId("choose").disabled = known && !changes;
  byId("source-refused").hidden = !known || changes;
  byId("source-refused").textContent = `${settings.model()?.name} makes pictures from words only.`;
  byId("tools").hidden = !settings.can("inpainting");
  byId("easel").toggleAttribute("inert", !settings.can("inpainting"));
  if (source) refit();
}

// The picture to change

async function take(blob, name) {
  clearError();
  try {
    const original = await sources.open(blob, name);
    const sizes = settings.abilities()?.sizes;
    if (!sizes) throw new Error("No model is ready yet that could change a picture.");
    setSize(sources.bestSize(original.bitmap, sizes));
    setSource(await sources.fit(original, settings.size()));
    settings.forgetStrength();
    maskChanged();
    view("mask");
    byId("easel").focus({ preventScroll: true });
    say(`${name} can be changed now`);
  } catch (error) {
    showRefusal(error);
  }
}

function setSize([width, height]) {
  byId("size").value = `${width}x${height}`;
}

function setSource(next, operations = []) {
  source = next;
  URL.revokeObjectURL(sourceUrl);
  sourceUrl = source ? URL.createObjectURL(source.file) : "";
  sources.showCard(source, sourceUrl);
  byId("views").hidden = source === null;
  if (source) easel.show(sourceUrl, source.width, source.height, operations);
  else view("picture");
}

/** The picture in the size that is now chosen; its mask is of another size then, and goes. */
async function refit() {
  const [width, height] = settings.size() ?? [source.width, source.height];
  if (width === source.width && height === source.height) return;
  setSource(await sources.fit(source.original, [width, height]));
}

const hasMask = () => source !== null && settings.can("inpainting") && easel.isPainted();

function maskChanged() {
  settings.suitEdit({ hasMask: hasMask() });
}

/** @param {"mask"|"picture"} name Which of the two stands on the stage. */
function view(name) {
  byId("mask-view").hidden = name !== "mask";
  byId("picture-view").hidden = name !== "picture";
  byId("view-mask").setAttribute("aria-pressed", String(name === "mask"));
  byId("view-picture").setAttribute("aria-pressed", String(name === "picture"));
}

// Making a picture

async function make() {
  if (running || !complete()) return;
  const controller = new AbortController();
  running = { name: newName(), controller };
  const edit = source && { source, mask: hasMask() ? easel.operations() : [] };
  const form = settings.toForm(edit && { file: source.file, mask: edit.mask.length ? await easel.toBlob() : null });
  const wasAtWork = showRunning(true);
  view("picture");
  stage.begin(...(settings.size() ?? [1, 1]));
  bringIntoView();
  try {
    for await (const event of generate(form, { name: running.name, signal: controller.signal })) {
      if (event.name === "completed") keep(event.data, edit);
      else stage.follow(event);
    }
    say("The picture is done");
  } catch (error) {
    await failed(error);
  } finally {
    running = null;
    stage.end();
    present(shown);
    showRunning(false, wasAtWork);
  }
}

/** Whether the form can be sent; what is missing is told otherwise. */
function complete() {
  settings.mark(null);
  clearError();
  const wrong = byId("prompt").value.trim() ? settings.misfilled() : byId("prompt");
  if (!wrong) return true;
  showRefusal(new Refusal({ message: wrong.id === "prompt" ? "Write what the picture should show." : "This must be a number.", param: wrong.name }));
  wrong.focus();
  return false;
}

async function failed(error) {
  if (error.name === "AbortError" || error.isCancelled) return say("Cancelled");
  if (error.asksForKey) {
    if (await askForKey(error.message)) setTimeout(make);
    return;
  }
  showRefusal(error);
  if (error.param === "model") loadModels();
}

function keep({ images, ...answer }, edit) {
  const made = images.map(({ b64_json: text, seed }) => {
    const file = stage.blobOf(text, "image/png");
    return { file, url: URL.createObjectURL(file), seed, answer, source: edit?.source ?? null, mask: edit?.mask ?? [], siblings: [] };
  });
  for (const entry of made) entry.siblings = made;
  history.add(made);
  shown = made[0];
}

/** Puts a picture on the stage, or with null the invitation. */
function present(entry) {
  shown = entry;
  if (entry) stage.show(entry, present);
  else stage.showNothing();
  showSeed();
  history.draw(entry);
}

/** A picture of the history comes back with everything that made it. */
function recall(entry) {
  if (running) return;
  clearError();
  settings.mark(null);
  settings.restore({ mask_blur: "", num_resamples: "", ...entry.answer.parameters, seed: entry.seed, num_images: 1 });
  setSource(entry.source, entry.mask);
  maskChanged();
  view("picture");
  present(entry);
  bringIntoView();
}

async function stop() {
  if (!running) return;
  const { name, controller } = running;
  byId("cancel").disabled = true;
  // Asked to end it, the gateway ends the stream too. Where it cannot be asked, hanging up says the same.
  if (await cancel(name)) setTimeout(() => controller.abort(), 1000);
  else controller.abort();
}

/** Generate or Cancel stands there; the focus goes from one to the other. Whether it was there. */
function showRunning(on, focus = true) {
  const [gone, here] = on ? [byId("generate"), byId("cancel")] : [byId("cancel"), byId("generate")];
  const hadFocus = [gone, document.body].includes(document.activeElement) || byId("mask-view").contains(document.activeElement);
  byId("history").toggleAttribute("inert", on);
  [gone.hidden, here.hidden] = [true, false];
  byId("cancel").disabled = false;
  if (hadFocus && focus) here.focus({ preventScroll: true });
  return hadFocus;
}

/** On a phone the picture stands below the form. */
function bringIntoView() {
  const place = byId("stage").getBoundingClientRect();
  if (place.top > 0.5 * innerHeight || place.bottom < 0.5 * innerHeight) byId("stage").scrollIntoView();
}

// Errors

function showRefusal(error, of = "request") {
  if (!(error instanceof Refusal) && error.constructor !== Error) console.error(error);
  stage.showError(error.message);
  byId("error").dataset.of = of;
  settings.mark(error.param);
}

function clearError() {
  stage.hideError();
}

// What is left to seeds

function showSeed() {
  const kept = shown !== null && byId("seed").value === shown.seed;
  byId("use-seed").disabled = kept;
  byId("use-seed").textContent = kept ? "Its seed is kept" : "Keep its seed";
}

// Everything that a person does

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  make();
});
byId("cancel").addEventListener("click", stop);
byId("model").addEventListener("change", () => {
  settings.offerAbilities();
  suitModel();
});
byId("size").addEventListener("change", () => source && refit());
byId("seed").addEventListener("input", showSeed);
byId("seed-clear").addEventListener("click", showSeed);
byId("use-seed").addEventListener("click", () => {
  byId("seed").value = shown.seed;
  settings.summarize();
  showSeed();
});
byId("use-picture").addEventListener("click", () => take(shown.file, `Seed ${shown.seed}`));
byId("source-remove").addEventListener("click", () => {
  setSource(null);
  byId("choose").focus();
});
byId("view-mask").addEventListener("click", () => view("mask"));
byId("view-picture").addEventListener("click", () => view("picture"));
byId("key-button").addEventListener("click", async () => (await askForKey()) && loadModels());
document.addEventListener("keydown", (event) => {
  if (byId("key-dialog").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    make();
  } else if (event.key === "Escape") stop();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && !running && loadModels());

byId("examples").append(
  ...EXAMPLES.map((words) =>
    element("button", {
      type: "button",
      textContent: words,
      onclick: () => {
        byId("prompt").value = words;
        byId("prompt").focus();
      },
    }),
  ),
);
byId("settings").open = matchMedia("(min-width: 720px)").matches;
sources.listen((file) => take(file, file.name || "The picture"));
easel.onChange(maskChanged);
history.onChoice(recall);
history.draw(null);
loadModels();
