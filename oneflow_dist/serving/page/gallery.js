// Past documents, kept in this browser and nowhere else.

import { h } from "./player.js";

const DATABASE = "oneflow", STORE = "documents";
const MOST = 60; // documents; the oldest go first
const LONGEST_TEXT = 140;

/** What an operation of IndexedDB gives. */
function wait(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function store(mode) {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "key", autoIncrement: true });
  return (await wait(opening)).transaction(STORE, mode).objectStore(STORE);
}

/** A shelf of thumbnails; `open` gets the document whose thumbnail is chosen. */
export class Gallery {
  constructor(section, open, complain) {
    Object.assign(this, { section, open, complain, list: section.querySelector("ul") });
    section.querySelector("button").addEventListener("click", () => this.#clear());
  }

  /** Keep a finished document. */
  add(document) {
    return this.#try(async () => {
      const documents = await store("readwrite");
      const key = await wait(documents.add({ ...document, created: Date.now() }));
      const keys = await wait(documents.getAllKeys());
      for (const old of keys.slice(0, Math.max(0, keys.length - MOST))) documents.delete(old);
      this.list.prepend(this.#thumbnail({ ...document, key }));
      while (this.list.children.length > MOST) this.list.lastChild.remove();
      this.section.hidden = false;
    });
  }

  /** Show all there are. */
  load() {
    return this.#try(async () => {
      const documents = await wait((await store("readonly")).getAll());
      this.list.replaceChildren(...documents.reverse().map((own) => this.#thumbnail(own)));
      this.section.hidden = !documents.length;
    });
  }

  #thumbnail({ key, title, text, picture }) {
    const short = text.trim().slice(0, LONGEST_TEXT);
    const image = picture ? h("img", { src: picture, alt: "", class: "pixelated" }) : null;
    const button = (attributes, ...children) => h("button", { type: "button", ...attributes }, ...children);
    const says = [image, h("span", {}, short || "(no words)"), h("small", {}, title)];
    const drop = { class: "remove", "aria-label": `delete “${short}”`, onclick: () => this.#delete(key, item) };
    const item = h("li", {}, button({ class: "open", onclick: () => this.#reopen(key) }, says), button(drop, "×"));
    return item;
  }

  #reopen(key) {
    return this.#try(async () => this.open(await wait((await store("readonly")).get(key))));
  }

  #delete(key, item) {
    return this.#try(async () => {
      await wait((await store("readwrite")).delete(key));
      item.remove();
      this.section.hidden = !this.list.children.length;
    });
  }

  #clear() {
    if (!confirm("Delete all documents that this browser keeps?")) return;
    return this.#try(async () => {
      await wait((await store("readwrite")).clear());
      await this.load();
    });
  }

  /** A browser may refuse to keep anything: the page goes on without. */
  async #try(act) {
    try {
      await act();
    } catch (error) {
      this.complain(`this browser does not keep documents (${error.message}); share those that you want to keep`);
    }
  }
}
