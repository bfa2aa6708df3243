// What the page asks of the server, and how it tells a refusal from a server that is gone.

const TOKEN = "oneflow.token";

/** The server has answered, and says no; `message` is its own. */
export class Refused extends Error {
  constructor(status, { message, param } = {}, retryAfter = null) {
    super(message || `the server answered with status ${status} and no reason; look at its log`);
    Object.assign(this, { status, param, retryAfter });
  }
}

/** The server does not answer, or has stopped in the middle. */
export class Gone extends Error {}

/** Take a token out of the address, so that it is neither seen nor bookmarked. */
export function takeToken() {
  const address = new URL(location.href), token = address.searchParams.get("token");
  if (token === null) return;
  keepToken(token);
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token.trim());
}

/** The address of the report: a link carries no header, so that it has the token in it. */
export function withToken(path) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? `${path}?token=${encodeURIComponent(token)}` : path;
}

/** A response that is not an error. */
export async function send(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN), headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone("the server does not answer");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error, response.headers.get("Retry-After"));
}

export async function models() {
  return (await (await send("/v1/models")).json()).data;
}

/** Whether the server is there and its models are. */
export async function isHealthy() {
  try {
    return (await fetch("/healthz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** The events of a generation as [name, data]; the request leaves at once, before anybody waits for them. */
export function generate(request, signal) {
  const response = send("/v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  response.catch(() => {}); // whoever reads the events is told
  return read(response, signal);
}

async function* read(promise, signal) {
  const reader = (await promise).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Gone("the connection ended before the document was done");
    rest += value.replaceAll("\r", "");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const [name, data] of blocks.map(parse)) {
      if (name === "error") throw new Refused(0, data.error);
      if (name) yield [name, data];
      if (name === "done") return;
    }
  }
}

function parse(block) {
  const lines = block.split("\n").filter((line) => line && !line.startsWith(":"));
  const field = (name) =>
    lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
  const data = field("data");
  return data.length ? [field("event")[0] ?? "message", JSON.parse(data.join("\n"))] : [null, null];
}
