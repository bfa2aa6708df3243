// One document on the page: its request, its words as they come, how far it is, and what went wrong.

import { Gone, Refused, generate } from "./api.js";
import { nameOf } from "./composer.js";
import { History, View, h, percent, textOf } from "./player.js";

const ANNOUNCED_EVERY = 3000; // milliseconds, to those who listen

/**
 * A generation from its request to its end.
 *
 * `page` is told: announce(text), grown(), ended(column, error), retry(column).
 */
export class Column {
  /** @param job request, modalities, title; and events, if it was generated earlier. */
  constructor(job, page) {
    Object.assign(this, { job, page, controller: new AbortController(), startedAt: performance.now() });
    if (!job.events) this.stream = generate(job.request, this.controller.signal); // before anything is drawn
    this.history = job.events ? History.of(job) : new History(job.modalities);
    this.body = h("div", { role: "group", "aria-label": "document", class: "document" });
    this.status = h("p", { class: "status" });
    this.problem = h("div", { class: "problem", role: "alert", hidden: true });
    this.element = h("section", { class: "column" }, h("h2", {}, job.title), this.body, this.status, this.problem);
    this.view = new View(this.body, this.history, page.tip);
    if (job.events) this.#end();
  }

  get isRunning() {
    return Boolean(this.stream) && !this.hasEnded;
  }

  stop() {
    this.controller.abort();
  }

  close() {
    this.stop();
    this.view.close();
    clearInterval(this.timer);
    this.element.remove();
  }

  /** Follow the events to their end; never throws. */
  async run() {
    this.timer = setInterval(() => this.#say(), 100);
    this.body.classList.add("waits");
    try {
      for await (const [name, data] of this.stream) this.#take(name, data);
      this.#end();
      this.page.ended(this, null);
    } catch (error) {
      this.ending = error.name === "AbortError" ? "stopped" : "not finished";
      this.#end();
      if (error.name === "AbortError") this.page.announce(`stopped after step ${this.history.last?.step ?? 0}`);
      else this.#fail(error);
      this.page.ended(this, error);
    }
  }

  #take(name, data) {
    this.history.add(name, data);
    if (name === "queued") {
      this.position = data.position;
      this.page.announce(this.#waiting());
    } else if (name === "begin") this.page.announce("writing begins");
    if (name === "step" && performance.now() - (this.announcedAt ?? this.startedAt) > ANNOUNCED_EVERY) {
      this.announcedAt = performance.now();
      this.page.announce(this.#going());
    }
    this.frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.frame = undefined;
    if (this.hasEnded || !this.history.last) return;
    this.body.classList.remove("waits");
    this.page.grown();
    this.#say();
    const isNew = ({ step, isMade, frames }) => step || (isMade && frames.length > 1);
    const first = this.first === undefined && this.history.last.tokens.find(isNew);
    if (!first) return;
    this.first = "";
    setTimeout(() => { // when it has been painted
      const milliseconds = Math.round(performance.now() - this.startedAt);
      this.first = `first ${first.step ? "token" : "picture"} after ${milliseconds} ms`;
    });
  }

  #end() {
    this.hasEnded = true;
    clearInterval(this.timer);
    this.seconds = (performance.now() - this.startedAt) / 1000;
    this.body.classList.remove("waits");
    this.#say();
  }

  #say() {
    const { done, last } = this.history;
    this.status.textContent = done ? this.#finished() : last ? this.#going() : this.#waiting();
  }

  #waiting() {
    if (this.hasEnded) return this.ending === "stopped" ? "stopped before it began" : "";
    if (this.position === undefined) return "asking the server";
    return this.position ? `${this.position} before you` : "next in line";
  }

  #going() {
    const { step, stepsLeft, textTime, tokens, expected } = this.history.last;
    const seconds = this.hasEnded ? this.seconds : (performance.now() - this.startedAt) / 1000;
    const length = expected ? `${tokens.length} of about ${Math.round(expected)} tokens` : `${tokens.length} tokens`;
    const where = stepsLeft ? `step ${step}, ${stepsLeft} left` : `step ${step}`;
    return joined(this.ending, where, `text ${percent(textTime)}`, length, `${seconds.toFixed(1)} s`, this.first);
  }

  #finished() {
    const { steps, seconds, tokens, pieces = {}, finish_reason: reason } = this.history.done;
    const counts = [`${tokens.filter((token) => !token.modality).length} tokens`];
    for (const [name, { length }] of Object.entries(pieces)) {
      if (length) counts.push(`${length} ${nameOf(name)}${length === 1 ? "" : "s"}`);
    }
    const full = reason === "length" && "it is full: raise max_rows for more";
    return joined(`${counts.join(", ")} in ${steps} steps`, `${seconds.toFixed(2)} s`, this.first, full);
  }

  /** For those who listen. */
  get summary() {
    return `finished: ${this.#finished()}. ${textOf(this.history.last.tokens).trim()}`;
  }

  #fail(error) {
    const known = error instanceof Gone || error instanceof Refused;
    const where = this.history.last ? ` at step ${this.history.last.step}` : "";
    let text = known ? error.message : `the page could not read the answer (${error.message}); reload it`;
    if (error instanceof Gone) text = `The server is gone${where}: ${error.message}. What has come so far stays here.`;
    if (error.retryAfter) text += ` (it asks for ${error.retryAfter} s)`;
    const again = h("button", { type: "button", onclick: () => this.page.retry(this) }, "Try again");
    this.problem.replaceChildren(h("p", {}, text), ...(error.status === 400 ? [] : [again]));
    this.problem.hidden = false;
  }
}

function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}
