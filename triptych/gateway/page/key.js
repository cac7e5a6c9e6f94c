// The door: asks for a key where the gateway demands one.

import { byId } from "./elements.js";
import { key } from "./gateway.js";

const dialog = byId("key-dialog");
let answer = () => {};

const KEPT = "It is kept in this tab only, until the tab is closed.";

/** Asks for a key; whether one was given. @param {string} refused What the gateway said of the last request. */
export function askForKey(refused = "") {
  byId("key-words").textContent = refused && key.get() ? `The gateway does not know this key: ${refused}.` : KEPT;
  byId("key").value = key.get();
  if (!dialog.open) dialog.showModal();
  byId("key").select();
  return new Promise((resolve) => (answer = resolve));
}

function close(given) {
  dialog.close();
  byId("key-button").hidden = false;
  answer(given);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  close(key.get() !== "");
});
byId("key-close").addEventListener("click", () => close(false));
dialog.addEventListener("cancel", () => close(false));
byId("key-button").hidden = !key.get();
