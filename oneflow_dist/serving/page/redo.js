// "Keep this, redo that": tokens that somebody has selected, and the request that writes only them anew.

/** A selection over the tokens of a view: by click, drag, shift and arrow keys. */
export class Selection {
  constructor(view, changed) {
    Object.assign(this, { view, changed, tokens: new Set(), anchor: null });
    const { host } = view, on = (name, act) => host.addEventListener(name, act);
    view.onmove = (from, to, isShifted) => isShifted && this.#extend(this.anchor ?? from, to);
    host.classList.add("selectable");
    on("pointerdown", (event) => this.#press(event));
    on("pointermove", (event) => this.#drag(event));
    on("keydown", (event) => this.#key(event));
    on("copy", (event) => this.#copy(event));
    this.release = () => (this.pressed = null);
    for (const name of ["pointerup", "pointercancel"]) addEventListener(name, this.release);
  }

  close() {
    for (const name of ["pointerup", "pointercancel"]) removeEventListener(name, this.release);
  }

  #press(event) {
    const token = this.view.tokenAt(event.target);
    if (!token || event.button) return;
    event.preventDefault();
    this.view.focus(token);
    if (event.shiftKey && this.anchor) return this.#extend(this.anchor, token);
    const isOnly = this.tokens.has(token) && this.tokens.size === 1;
    if (event.ctrlKey || event.metaKey || event.pointerType === "touch") this.#toggle(token);
    else this.#set(isOnly ? [] : [token], token);
    this.pressed = token;
  }

  #drag(event) {
    if (!this.pressed) return;
    const token = this.view.tokenAt(document.elementFromPoint(event.clientX, event.clientY));
    if (token && token !== this.dragged) this.#extend(this.pressed, token);
    this.dragged = token;
  }

  #key(event) {
    const token = this.view.tokenAt(event.target);
    if (!token) return;
    if (event.key === " " || event.key === "Enter") {
      if (event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.#toggle(token);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#set(this.view.state.tokens, token);
    }
  }

  #copy(event) {
    const text = this.view.state.tokens.filter((token) => this.tokens.has(token)).map((token) => token.text);
    if (!text.length) return;
    event.preventDefault();
    event.clipboardData.setData("text/plain", text.join(""));
  }

  #toggle(token) {
    const others = [...this.tokens].filter((own) => own !== token);
    this.#set(this.tokens.has(token) ? others : [...others, token], token);
  }

  #extend(from, to) {
    const { tokens } = this.view.state;
    const [first, last] = [tokens.indexOf(from), tokens.indexOf(to)].sort((a, b) => a - b);
    this.#set(tokens.slice(Math.max(0, first), last + 1), from);
  }

  clear() {
    this.#set([], null);
  }

  #set(tokens, anchor) {
    this.tokens = new Set(tokens);
    this.anchor = anchor;
    this.view.mark("selected", tokens);
    this.changed(this);
  }
}

/**
 * The parts that keep all tokens of a finished document but the selected ones.
 *
 * A run of selected text is one hole, a selected piece is made anew. A model that writes from left to right goes on
 * where the first selected token stood.
 */
export function partsAround(tokens, selected, objective) {
  const isForward = objective === "autoregressive", parts = [];
  for (const token of tokens) {
    const last = parts.at(-1);
    if (!selected.has(token)) {
      if (token.modality) parts.push({ latent: token.latent });
      else if (last?.tokens) last.tokens.push(token.id);
      else parts.push({ tokens: [token.id] });
    } else if (token.modality) {
      parts.push({ make: token.modality });
    } else if (!last?.hole) parts.push({ hole: true });
    if (!isForward || !selected.has(token)) continue;
    if (token.modality && token !== tokens.at(-1)) parts.push({ hole: true });
    break;
  }
  return parts;
}
