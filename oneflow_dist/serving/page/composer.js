// The prompt as it is written: text with chips in it for holes, pieces to make, and given pictures.

import { h } from "./player.js";

const HOLE = "<|hole|>";
const START_OF_VARIATION = 0.5;

/** An editor of prompts; `complain` is told what is wrong with a file. */
export class Composer {
  constructor(editor, tools, examples, complain) {
    Object.assign(this, { editor, tools, examples, complain, range: null, modalities: [] });
    this.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", multiple: true, hidden: true });
    this.file.addEventListener("change", () => this.#take(this.file.files).then(() => (this.file.value = "")));
    editor.after(this.file);
    editor.contentEditable = "true";
    document.addEventListener("selectionchange", () => this.#remember());
    editor.addEventListener("input", () => this.#tidy());
    editor.addEventListener("keydown", (event) => this.#breakLine(event));
    editor.addEventListener("paste", (event) => this.#paste(event));
    editor.addEventListener("dragover", (event) => event.preventDefault());
    editor.addEventListener("drop", (event) => this.#drop(event));
  }

  /** Offer what a model can write, and its examples. */
  offer({ modalities, prompts }) {
    this.modalities = modalities;
    const button = (label, title, act) => h("button", { type: "button", title, onclick: act }, label);
    const made = modalities.filter((own) => own.is_target);
    this.tools.replaceChildren(
      button("+ hole", "a place to write text in", () => this.#insert(this.#holeChip())),
      ...made.map(({ name }) =>
        button(`+ ${nameOf(name)} to make`, "it begins as noise", () => this.#insert(this.#makeChip(name))),
      ),
      modalities.some((own) => own.is_picture) &&
        button("+ given picture", "choose a file; or drop or paste it", () => this.file.click()),
    );
    this.examples.replaceChildren(
      ...prompts.map((prompt) =>
        h("button", { type: "button", class: "example", onclick: () => this.write(prompt) }, this.#label(prompt)),
      ),
    );
    this.examples.parentElement.hidden = !prompts.length;
  }

  #label(prompt) {
    if (!prompt) return "from nothing";
    return this.#split(prompt).map((part) => (part.text !== undefined ? part.text : h("i", {}, chipName(part))));
  }

  /** A prompt as the command line has it, as parts. */
  #split(prompt) {
    const marks = new Map([[HOLE, { hole: true }], ...this.modalities.map((own) => [own.token, { make: own.name }])]);
    const pattern = [...marks.keys()].map((mark) => mark.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
    return prompt
      .split(new RegExp(`(${pattern})`))
      .filter(Boolean)
      .map((text) => marks.get(text) ?? { text });
  }

  /** Put a prompt, or parts that were sent before, in place of what stands here. */
  write(prompt) {
    const parts = typeof prompt === "string" ? this.#split(prompt) : prompt;
    const nodes = parts.map((part) => (part.text !== undefined ? part.text : this.#chipOf(part))).filter(Boolean);
    if (parts.at(-1)?.text?.endsWith("\n")) nodes.push("\n");
    this.editor.replaceChildren(...nodes);
    this.editor.normalize();
    this.range = null;
    this.editor.focus();
    getSelection().selectAllChildren(this.editor);
    getSelection().collapseToEnd();
  }

  /** What stands here, as the server takes it; a line break at the very end only holds its line open. */
  parts() {
    const found = [], { lastChild } = this.editor;
    const text = (more) => {
      const last = found.at(-1);
      if (last?.text !== undefined) last.text += more;
      else if (more) found.push({ text: more });
    };
    const walk = (node) => {
      for (const child of node.childNodes) {
        if (child.says) found.push({ ...child.says });
        else if (child.nodeType === Node.TEXT_NODE || child.nodeName === "BR") {
          const own = child.data ?? "\n";
          text(child === lastChild ? own.replace(/\n$/, "") : own);
        } else walk(child);
      }
    };
    walk(this.editor);
    return found;
  }

  #chipOf(part) {
    if (part.hole) return this.#holeChip();
    if (part.make) return this.#makeChip(part.make);
    return typeof part.image === "string" ? this.#pictureChip(part) : null;
  }

  #chip(part, label, ...children) {
    const chip = h("span", { class: "chip", contenteditable: "false", role: "group", "aria-label": label }, children);
    const remove = () => {
      chip.remove();
      this.#tidy();
      this.editor.focus();
    };
    const attributes = { type: "button", class: "remove", "aria-label": `remove ${label}`, onclick: remove };
    chip.append(h("button", attributes, "×"));
    chip.says = part;
    return chip;
  }

  #holeChip() {
    return this.#chip({ hole: true }, "hole", chipName({ hole: true }));
  }

  #makeChip(make) {
    const name = chipName({ make });
    return this.#chip({ make }, name, h("span", { class: "noise", "aria-hidden": "true" }), name);
  }

  /** A picture as it is, or one to make anew from how it looks at a time. */
  #pictureChip({ image, time }) {
    const part = time === undefined ? { image } : { image, time };
    const number = h("output", {}, (time ?? START_OF_VARIATION).toFixed(2));
    const slider = h("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: time ?? START_OF_VARIATION });
    slider.setAttribute("aria-label", "time from which it is made anew: 0 is noise");
    const details = h("span", { class: "time", hidden: time === undefined }, slider, number);
    const box = h("input", { type: "checkbox" });
    box.checked = time !== undefined;
    const change = () => {
      details.hidden = !box.checked;
      number.textContent = slider.valueAsNumber.toFixed(2);
      if (box.checked) part.time = slider.valueAsNumber;
      else delete part.time;
    };
    box.addEventListener("change", change);
    slider.addEventListener("input", change);
    const label = h("label", { title: "make it anew from how it looks with noise" }, box, "vary");
    return this.#chip(part, "given picture", h("img", { src: image, alt: "given picture" }), label, details);
  }

  async #take(files) {
    for (const file of files) {
      if (!file.type.startsWith("image/")) this.complain(`${file.name}: no picture; give a PNG, JPEG or WebP file`);
      else this.#insert(this.#pictureChip({ image: await readUrl(file) }));
    }
  }

  #remember() {
    const selection = getSelection();
    if (selection.rangeCount && this.editor.contains(selection.getRangeAt(0).startContainer)) {
      this.range = selection.getRangeAt(0).cloneRange();
    }
  }

  /** Where the caret is, or was last. */
  #insert(node) {
    let { range } = this;
    const inChip = range?.startContainer.parentElement?.closest(".chip");
    if (!range || inChip || !this.editor.contains(range.startContainer)) {
      range = document.createRange();
      range.selectNodeContents(this.editor);
      range.collapse(false);
    }
    range.deleteContents();
    range.insertNode(node);
    range.setStartAfter(node);
    range.collapse(true);
    this.editor.focus();
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    this.#remember();
  }

  /** Nothing at all, so that the placeholder shows, in place of the line break that browsers leave behind. */
  #tidy() {
    if (!this.editor.textContent && !this.editor.querySelector(".chip")) this.editor.replaceChildren();
  }

  #breakLine(event) {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey || event.target !== this.editor) return;
    event.preventDefault();
    document.execCommand("insertLineBreak");
  }

  #paste(event) {
    event.preventDefault();
    if (event.clipboardData.files.length) this.#take(event.clipboardData.files);
    else document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
  }

  #drop(event) {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    this.#take(event.dataTransfer.files);
  }
}

function chipName(part) {
  return part.hole ? "write here" : part.make ? nameOf(part.make) : "given picture";
}

/** What people call a piece of a modality. */
export function nameOf(modality) {
  return modality === "image" ? "picture" : modality;
}

function readUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
