// A document as its events tell it: its states, how they look, and the slider that replays them.
// It stands alone, so that a file that is shared can carry it.

const SECONDS_OF_REPLAY = 6, SHORTEST_PAUSE = 50, LONGEST_PAUSE = 250; // pauses between its steps in milliseconds
const MOST_BARS = 240; // above the slider; of longer generations each is several steps
const LONGEST_STEP = 8; // states, after which what is new still pops up: not after a leap
const SPECIAL = /^<\|(.*)\|>$/;

/** An element with attributes and children; strings become text, handlers are those whose names begin with "on". */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child && child !== true));
  return element;
}

/** The states of one document, one after each step; a token is the same object in all states that have it. */
export class History {
  constructor(modalities = []) {
    this.modalities = modalities; // as /v1/models names them
    this.events = []; // from which another history can be made
    this.states = [];
    this.begin = this.done = null;
    this.seconds = 0;
  }

  static of({ modalities, events }) {
    const history = new History(modalities);
    for (const [name, data] of events) history.add(name, data);
    return history;
  }

  get last() {
    return this.states.at(-1);
  }

  /** The step that has the last colour: the last that wrote a token, or where that is to be. */
  get lastColour() {
    const written = Math.max(1, ...this.states.filter((state) => state.numInserted).map((state) => state.step));
    if (this.done || !this.begin) return written;
    const { objective, settings } = this.begin, { step, stepsLeft = 0 } = this.last;
    return Math.max(written, objective === "autoregressive" ? step + stepsLeft : (settings.steps ?? 1));
  }

  add(name, data) {
    if (name === "begin") this.#start(data);
    else if (name === "step") this.#step(data);
    else if (name === "done") this.#finish(data);
    else return;
    this.events.push([name, data]);
  }

  #start(data) {
    this.begin = data;
    const tokens = data.tokens.map((own) => this.#token(own, 0)), times = {};
    for (const [modality, pieces] of Object.entries(data.pieces ?? {})) {
      times[modality] = pieces.map((piece) => piece.time);
      pieces.forEach((piece, number) => {
        const token = tokens.find((own) => own.modality === modality && own.number === number);
        const { is_given: isGiven, picture } = piece;
        if (token) Object.assign(token, { isGiven, isMade: !isGiven, frames: frame(0, picture) });
      });
    }
    this.states = [{ step: 0, tokens, times, textTime: 0, numInserted: 0, open: data.open ?? [] }];
  }

  #token({ id, text, prob = null, modality, number }, step) {
    const kind = modality ?? this.modalities.find((own) => own.token === text)?.name ?? null;
    return { id, text, prob, step, modality: kind, number, isGiven: step === 0, isMade: kind && step > 0, frames: [] };
  }

  #step({ step, inserted = [], removed = [], times = {}, pictures = {}, ...rest }) {
    const { text_time: textTime, expected, steps_left: stepsLeft } = rest;
    let { tokens } = this.last;
    if (inserted.length || removed.length) {
      tokens = tokens.slice();
      for (const own of inserted) tokens.splice(own.place, 0, this.#token(own, step));
      const gone = new Set(removed);
      tokens = tokens.filter((_, place) => !gone.has(place));
    }
    for (const [modality, byNumber] of Object.entries(pictures)) {
      const pieces = piecesOf(tokens, modality);
      for (const [number, source] of Object.entries(byNumber)) pieces[number]?.frames.push(...frame(step, source));
    }
    this.states.push({ step, tokens, times, textTime, expected, stepsLeft, numInserted: inserted.length });
  }

  #finish(data) {
    this.done = data;
    for (const [modality, pieces] of Object.entries(data.pieces ?? {})) {
      piecesOf(this.last.tokens, modality).forEach((token, number) => {
        const { picture, latent, last_step: lastStep } = pieces[number] ?? {};
        Object.assign(token, { latent, lastStep });
        token.frames.push(...frame(Math.max(lastStep ?? 0, token.frames.at(-1)?.step ?? 0), picture));
      });
    }
  }
}

function frame(step, source) {
  return source ? [{ step, source }] : [];
}

/** The tokens that are pieces of a modality, in reading order. */
export function piecesOf(tokens, modality) {
  return tokens.filter((token) => token.modality === modality);
}

/** What the tokens say, pictures and special tokens left out. */
export function textOf(tokens) {
  return tokens.map((token) => (token.modality || SPECIAL.test(token.text) ? " " : token.text)).join("");
}

/** A document on the page: draws any state of a history, and moves the focus over its tokens. */
export class View {
  /** @param tip the element that tells what is known of a token; several views may share it. */
  constructor(host, history, tip) {
    Object.assign(this, { host, history, tip, index: -1, elements: new Map(), marks: new Map() });
    host.classList.add("document");
    host.replaceChildren();
    this.listeners = new AbortController();
    const on = (name, act) => host.addEventListener(name, act, { signal: this.listeners.signal });
    on("pointerover", (event) => this.#tell(this.tokenAt(event.target)));
    on("pointerout", () => this.#tell(this.tokenAt(document.activeElement)));
    on("focusin", (event) => this.#tell(this.tokenAt(event.target)));
    on("focusout", () => this.#tell(null));
    on("keydown", (event) => this.#move(event));
  }

  /** Leave the host to another view. */
  close() {
    this.listeners.abort();
    this.#tell(null);
  }

  get state() {
    return this.history.states[this.index];
  }

  tokenAt(target) {
    const element = target?.closest?.(".token");
    return element && this.host.contains(element) ? element.token : null;
  }

  /** Show a state; what was not there before pops up where `pops`. */
  draw(index, pops = false) {
    const { states, lastColour } = this.history;
    if (!states.length) return;
    this.index = Math.min(index, states.length - 1);
    this.host.style.setProperty("--last", lastColour);
    this.host.classList.toggle("pops", pops);
    const { tokens, step, open = [] } = this.state, there = new Set(tokens);
    for (const [token, element] of this.elements) {
      if (there.has(token)) continue;
      element.remove();
      this.elements.delete(token);
    }
    let next = this.host.firstChild;
    for (const token of tokens) {
      const element = this.#elementOf(token);
      if (element === next) next = next.nextSibling;
      else this.host.insertBefore(element, next);
    }
    const isOpen = new Set(step === 0 && states.length === 1 ? open : []);
    tokens.forEach((token, place) => this.elements.get(token).classList.toggle("open", isOpen.has(place)));
    this.host.classList.toggle("open-first", isOpen.has(-1));
    this.#drawPieces(tokens, step);
    if (!this.host.querySelector("[tabindex='0']")) this.host.querySelector(".token")?.setAttribute("tabindex", "0");
    if (this.told) this.#tell(there.has(this.told) ? this.told : null);
  }

  #elementOf(token) {
    let element = this.elements.get(token);
    if (!element) {
      const text = SPECIAL.exec(token.text)?.[1] ?? token.text;
      element = token.modality ? this.#pieceElement(token) : h("span", {}, text);
      element.token = token;
      element.classList.add("token", token.isGiven ? "given" : "made");
      element.classList.toggle("special", !token.modality && SPECIAL.test(token.text));
      element.classList.toggle("partial", token.text.includes("\ufffd"));
      element.setAttribute("tabindex", "-1");
      element.style.setProperty("--step", token.step);
      for (const [name, tokens] of this.marks) element.classList.toggle(name, tokens.has(token));
      this.elements.set(token, element);
    }
    return element;
  }

  /** Give these tokens a class, and no others. */
  mark(name, tokens) {
    this.marks.set(name, new Set(tokens));
    for (const [token, element] of this.elements) element.classList.toggle(name, this.marks.get(name).has(token));
  }

  #pieceElement(token) {
    const { width, height } = this.history.modalities.find((own) => own.name === token.modality) ?? {};
    const image = h("img", { alt: token.modality, draggable: "false" });
    const element = h("span", { class: "piece" }, image, h("span", { class: "clock" }));
    const size = (across, down) => {
      const scale = scaleOf(Math.max(across, down));
      image.style.width = `${Math.round(across * scale)}px`;
      image.style.height = `${Math.round(down * scale)}px`;
      image.classList.toggle("pixelated", Math.max(across, down) <= 64);
    };
    size(width ?? 8, height ?? 8);
    image.addEventListener("load", () => size(image.naturalWidth, image.naturalHeight));
    return element;
  }

  #drawPieces(tokens, step) {
    for (const { name } of this.history.modalities) {
      piecesOf(tokens, name).forEach((token, number) => {
        const element = this.elements.get(token), image = element.firstChild;
        const time = this.state.times[name]?.[number] ?? (token.isGiven ? 1 : 0);
        const source = token.frames.findLast((own) => own.step <= step)?.source;
        if (source && image.src !== source) image.src = source;
        element.classList.toggle("blank", !source);
        element.classList.toggle("moves", time < 1);
        element.style.setProperty("--time", time);
        image.alt = this.#describe(token, number, time);
      });
    }
  }

  /** What is known of a piece, for those who do not see it. */
  #describe(token, number, time) {
    const name = token.modality === "image" ? "picture" : token.modality;
    const made = token.lastStep && time >= 1 ? `made in ${token.lastStep - token.step} steps` : `${percent(time)} done`;
    const place = this.state.tokens.indexOf(token);
    const word = textOf(this.state.tokens.slice(Math.max(0, place - 12), place)).trim().split(/\s+/).at(-1);
    return `${name} ${number + 1}, ${token.isMade ? made : "given"}${word ? `, after the word “${word}”` : ""}`;
  }

  /** Show, beside a token, when it came and how sure the model was. */
  #tell(token) {
    if (!token && !this.told) return;
    this.told = token;
    this.tip.hidden = !token;
    if (!token) return;
    const element = this.elements.get(token);
    this.tip.textContent = this.#tale(token);
    element.setAttribute("aria-describedby", this.tip.id);
    const [box] = element.getClientRects(), own = this.tip.getBoundingClientRect();
    if (!box) return;
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - own.width - 8);
    const isAbove = box.top > own.height + 12;
    this.tip.style.left = `${left + window.scrollX}px`;
    this.tip.style.top = `${(isAbove ? box.top - own.height - 6 : box.bottom + 6) + window.scrollY}px`;
  }

  #tale(token) {
    const parts = [token.step ? `step ${token.step}` : token.isMade ? "asked for" : "given"];
    if (token.prob !== null) parts.push(`probability ${+token.prob.toPrecision(2)}`);
    if (token.modality && token.isMade) {
      const number = piecesOf(this.state.tokens, token.modality).indexOf(token);
      parts.push(`time ${(this.state.times[token.modality]?.[number] ?? 0).toFixed(2)}`);
      if (token.lastStep) parts.push(`${token.lastStep - token.step} steps`);
    }
    if (token.text.includes("\ufffd")) parts.push("a part of a character");
    return parts.join(" · ");
  }

  #move(event) {
    const token = this.tokenAt(event.target);
    const { tokens } = this.state ?? {}, way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!token || !way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const to = tokens[Math.min(Math.max(0, tokens.indexOf(token) + way), tokens.length - 1)];
    this.focus(to);
    this.onmove?.(token, to, event.shiftKey);
  }

  focus(token) {
    for (const element of this.elements.values()) element.tabIndex = -1;
    this.elements.get(token).tabIndex = 0;
    this.elements.get(token).focus();
  }
}

/** How many pixels of the screen a pixel of a picture gets: digits of 8 x 8 are readable, large ones not too large. */
function scaleOf(side) {
  return side <= 16 ? Math.max(6, Math.ceil(72 / side)) : Math.min(256, Math.max(128, 3 * side)) / side;
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/** Slider, play and pause for one or several views, and how many words came at each step; also while they come. */
export class Transport {
  constructor(host) {
    Object.assign(this, { host, views: [], index: 0, end: 0, timer: null });
    this.button = h("button", { type: "button", class: "play", onclick: () => this.toggle() }, "Play");
    this.slider = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "step of the replay" });
    this.label = h("output", { class: "step" });
    this.births = h("div", { class: "births", "aria-hidden": "true" });
    this.slider.addEventListener("input", () => this.stop() || this.show(this.slider.valueAsNumber, true));
    const track = h("div", { class: "track" }, this.births, this.slider);
    const legend = h("p", { class: "legend" }, "first step", h("span", { class: "ramp" }), "last step; plain: given");
    host.replaceChildren(h("div", { class: "transport" }, this.button, track, this.label), legend);
    host.hidden = true;
  }

  /** Replay these views from now on; begin at their ends. */
  attach(views) {
    this.stop();
    this.views = views;
    this.#measure();
    this.show(this.end);
  }

  /** A history has grown: show its end, unless somebody looks at an earlier state. */
  grow() {
    const follows = this.index === this.end && !this.timer;
    this.#measure();
    this.show(follows ? this.end : this.index, true);
  }

  /** The steps there are, those that may come, and the bars above them. */
  #measure() {
    const histories = this.views.map((view) => view.history);
    this.end = Math.max(0, ...histories.map((own) => own.states.length - 1));
    this.host.hidden = !histories.some((own) => own.last);
    const running = histories.filter((own) => own.last?.stepsLeft && !own.done);
    const total = Math.max(this.end, ...running.map((own) => own.states.length - 1 + own.last.stepsLeft));
    const last = Math.max(1, ...histories.map((own) => own.lastColour)), bars = this.births.children;
    const width = Math.ceil((total + 1) / MOST_BARS), counts = Array(Math.ceil((total + 1) / width)).fill(0);
    for (const { states } of histories) {
      states.forEach((state, index) => (counts[Math.floor(index / width)] += state.numInserted));
    }
    const most = Math.max(1, ...counts);
    this.births.style.setProperty("--last", last);
    while (bars.length > counts.length) this.births.lastChild.remove();
    while (bars.length < counts.length) this.births.append(h("span"));
    counts.forEach((count, number) => {
      const { style } = bars[number];
      style.setProperty("--step", Math.min(number * width, last));
      style.height = count ? `${15 + (85 * count) / most}%` : "0";
    });
    this.slider.max = total;
    this.slider.disabled = this.button.disabled = !this.end;
  }

  show(index, pops = false) {
    const isStep = index > this.index && index - this.index <= LONGEST_STEP;
    this.index = Math.min(Math.max(0, index), this.end);
    this.slider.value = this.index;
    this.label.textContent = `step ${this.index} of ${this.slider.max}`;
    this.slider.setAttribute("aria-valuetext", this.label.textContent);
    for (const view of this.views) view.draw(this.index, pops && isStep);
  }

  toggle() {
    if (this.timer) return this.stop();
    if (this.index === this.end) this.show(0);
    const pause = Math.min(LONGEST_PAUSE, Math.max(SHORTEST_PAUSE, (1000 * SECONDS_OF_REPLAY) / this.end));
    this.timer = setInterval(() => (this.index === this.end ? this.stop() : this.show(this.index + 1, true)), pause);
    this.button.textContent = "Pause";
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  /** Arrow keys that nothing else wants. */
  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -this.end, End: this.end }[event.key];
    const isTaken = event.target.closest?.("input, textarea, select, [contenteditable], dialog, summary, .token");
    if (!this.end || isTaken || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (steps !== undefined) this.stop() || this.show(this.index + steps, true);
    else if (event.key === " " && event.target === document.body) this.toggle();
    else return;
    event.preventDefault();
  }
}

/** Replay documents that somebody has shared: all that is on their page. */
export function replay(host, documents) {
  const control = h("div"), columns = h("div", { class: "columns" });
  const tip = h("div", { id: "tip", role: "tooltip", hidden: true });
  host.append(columns, control, tip);
  const transport = new Transport(control);
  const views = documents.map(({ title, ...own }) => {
    const body = h("div", { "aria-label": "document", role: "group" });
    columns.append(h("section", { class: "column" }, h("h2", {}, title), body));
    const view = new View(body, History.of(own), tip);
    view.draw(0);
    return view;
  });
  transport.attach(views);
  document.addEventListener("keydown", (event) => transport.key(event));
  return transport;
}
