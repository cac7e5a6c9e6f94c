// What the page says to its gateway, and how it hears the answer. Every failure ends as a Refusal with a sentence.

const KEY = "triptych-key";

export class Refusal extends Error {
  /** @param {{message: string, param?: string|null, code?: string}} error @param {number} [status] */
  constructor({ message, param = null, code = "" }, status = 0) {
    super(message);
    this.param = param;
    this.code = code;
    this.status = status;
  }

  get isCancelled() {
    return this.code === "request_cancelled";
  }

  get asksForKey() {
    return this.status === 401;
  }
}

/** The caller's key: in this tab only, and only until it is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The models, the default one first. */
export async function models() {
  const response = await ask("models", {});
  return (await response.json()).models;
}

/**
 * A request's events, `{name, data}`: `accepted`, then the gateway's own, the last of which is `completed`.
 * @param {FormData} form
 * @param {{name: string, signal: AbortSignal}} options name: what `cancel` knows the request by.
 */
export async function* generate(form, { name, signal }) {
  const headers = { Accept: "text/event-stream", "X-Request-Id": name };
  const response = await ask("generate", { method: "POST", body: form, headers, signal });
  yield { name: "accepted", data: {} };
  for await (const event of readEvents(response.body.getReader())) {
    if (event.name === "error") throw new Refusal(event.data.error);
    yield event;
    if (event.name === "completed") return;
  }
  throw new Refusal({ message: "The connection broke before the picture was finished." });
}

/** Ends a request; whether there was one to end. */
export async function cancel(name) {
  try {
    await ask(`requests/${name}`, { method: "DELETE", signal: AbortSignal.timeout(3000) });
    return true;
  } catch {
    return false;
  }
}

/** A name that nobody guesses. crypto.randomUUID is not there on a phone that comes over plain HTTP. */
export function newName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function ask(path, { headers = {}, ...options }) {
  const authorization = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const response = await reached(fetch(path, { ...options, headers: { ...headers, ...authorization } }));
  if (response.ok) return response;
  throw new Refusal(await errorOf(response), response.status);
}

async function errorOf(response) {
  try {
    const { error } = await response.json();
    if (typeof error.message === "string") return error;
  } catch {
    // Not the gateway's: a proxy in front of it answers with a page of its own.
  }
  return { message: `Something between this page and the gateway answered ${response.status} ${response.statusText}`.trim() + "." };
}

/** What a promise of the network gives; its failure in words. */
async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ message: "The gateway cannot be reached. Is it running, and is this device online?", code: "unreachable" });
  }
}

async function* readEvents(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  let searched = 0;
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    for (let end; (end = rest.indexOf("\n\n", Math.max(0, searched - 1))) >= 0; searched = 0) {
      const event = parseEvent(rest.slice(0, end));
      rest = rest.slice(end + 2);
      if (event) yield event;
    }
    searched = rest.length;
  }
}

/** One block of server-sent events; null for a comment, which keeps the connection open. */
function parseEvent(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const [, name, value] = /^([a-z]+): ?(.*)$/.exec(line) ?? [];
    if (name) fields[name] = value;
  }
  return fields.data === undefined ? null : { name: fields.event, data: JSON.parse(seedsAsText(fields.data)) };
}

/** Seeds have up to 64 bits and JavaScript's numbers 53: they stay text. Inside a string of JSON the quotes would be escaped. */
function seedsAsText(json) {
  return json.replace(/"seed": ?(\d+)/g, '"seed": "$1"');
}
