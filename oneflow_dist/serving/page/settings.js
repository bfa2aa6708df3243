// Sliders with numbers for what /v1/models says can be set.

import { h } from "./player.js";

const HINTS = {
  steps: "until the text is done; pictures take up to as many again",
  temperature: "of the words: lower is safer, higher is bolder",
  top_p: "words are drawn from the likeliest that have this share together",
  "guidance.image": "how closely pictures follow what stands around them",
  max_rows: "room of a document, for words and parts of pictures",
};
const ENDS = {
  steps: [1, 200],
  temperature: [0.1, 2],
  time_power: [1, 4],
  corrections: [0, 4],
  top_k: [0, 100],
  blocks: [0, 16],
};

/** The settings of one model; `values` has those that are not as the model has them. */
export class Settings {
  constructor(host) {
    this.host = host;
    this.fields = new Map();
  }

  /** Show those of a model; what was changed stays where it has the same name. */
  offer({ settings, modalities }) {
    const before = this.values();
    const guided = modalities.filter((own) => own.is_target).map((own) => `guidance.${own.name}`);
    const first = ["steps", "temperature", "top_p", ...guided, "max_rows"].filter((name) => name in settings);
    const others = Object.keys(settings).filter((name) => !first.includes(name));
    this.fields.clear();
    const rows = (names) => names.map((name) => this.#row(name, settings[name], before[name]));
    const more = h("details", {}, h("summary", {}, "more"), ...rows(others));
    this.host.replaceChildren(...rows(first), ...(others.length ? [more] : []));
  }

  values() {
    const changed = [...this.fields].filter(([, field]) => field.value() !== field.initial);
    return Object.fromEntries(changed.map(([name, field]) => [name, field.value()]));
  }

  /** Set those of an earlier document, and the others to what the model has. */
  write(values) {
    for (const [name, field] of this.fields) field.set(values[name] ?? field.initial);
  }

  /** Show which one the server refuses. */
  blame(param) {
    for (const [name, field] of this.fields) field.mark(param === `settings.${name}`);
  }

  #row(name, { default: initial, type, minimum, maximum, choices }, value = initial) {
    const control = choices ? choiceOf(name, choices) : numberOf(name, type, initial, minimum, maximum);
    const label = h("label", { for: control.input.id }, name);
    const row = h("div", { class: "setting", title: HINTS[name] }, label, control.element);
    const change = () => row.classList.toggle("changed", control.get() !== initial);
    row.addEventListener("input", change);
    const set = (to) => {
      control.set(to);
      change();
    };
    const mark = (isWrong) => {
      control.input.setAttribute("aria-invalid", isWrong);
      if (!isWrong) return;
      if (row.parentElement.nodeName === "DETAILS") row.parentElement.open = true;
      control.input.focus();
    };
    set(value);
    this.fields.set(name, { initial, set, mark, value: () => control.get() ?? initial });
    return row;
  }
}

let numbered = 0;
const newId = (name) => `setting-${(numbered += 1)}-${name}`;

/** A slider as far as one usually goes, and a number that may go farther. */
function numberOf(name, type, initial, minimum, maximum) {
  const isWhole = type === "integer", start = initial ?? 0;
  const [low, high] = ENDS[name] ?? [Math.max(minimum ?? -1, -1), maximum ?? Math.max(10, 2 * start)];
  const step = isWhole ? 1 : high - low <= 2 ? 0.01 : 0.1;
  const input = h("input", { id: newId(name), type: "number", step: isWhole ? 1 : "any", min: minimum, max: maximum });
  const slider = h("input", { type: "range", min: low, max: Math.max(high, start), step, "aria-label": name });
  slider.addEventListener("input", () => (input.value = slider.value));
  input.addEventListener("input", () => (slider.value = input.value));
  return {
    input,
    element: h("span", { class: "pair" }, slider, input),
    get: () => (Number.isNaN(input.valueAsNumber) ? initial : input.valueAsNumber),
    set: (value) => {
      input.value = value ?? "";
      slider.value = value ?? low;
    },
  };
}

function choiceOf(name, choices) {
  const input = h("select", { id: newId(name) }, choices.map((choice) => h("option", {}, choice)));
  return { input, element: input, get: () => input.value, set: (value) => (input.value = value) };
}
