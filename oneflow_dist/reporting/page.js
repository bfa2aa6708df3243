"use strict";
// Draws the curves of the page, and keeps what was chosen in this tab, so that it survives a reload.

const $ = (id) => document.getElementById(id);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const data = JSON.parse($("data").textContent);
const isMany = data.runs.length > 1;
const isDark = matchMedia("(prefers-color-scheme: dark)"), isPrinted = matchMedia("print");
// Of runs and of lines, told apart by people who see few colours too; and of what has an order, as bins of time.
const COLOURS = {
  light: ["#0068b5", "#cc4b00", "#00805c", "#a8457f", "#2d14c4", "#661f00", "#4f7fff", "#1b1e24"],
  dark: ["#5db8f5", "#ff8a4c", "#3fcf9f", "#ee93c6", "#ffe600", "#7a73ff", "#b36e50", "#e8eaee"],
};
const ORDERED = {
  light: ["#440f5c", "#3b528b", "#21858c", "#2f8f4e", "#8c8f00"],
  dark: ["#9a83f0", "#5aa6e8", "#37c4b0", "#86d45f", "#f3e04d"],
};
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [14, 4], [4, 4]];
const CLOCK = [1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 14400, 28800, 86400, 172800, 432000]; // seconds
const EDGE = { left: 54, right: 10, top: 8, bottom: 22 };
const LOG_FROM = 5; // times between the least and the greatest, from which a scale that fits is logarithmic
const MOST_DOTS = 60, MOST_ROWS = 14; // of a curve, of what is told

const state = {
  ...{ smooth: "40", x: "steps", y: "auto", of: "average", zoom: null }, // of curves
  ...{ off: [], hidden: [], folds: {}, sample: 0, at: 0 }, // runs, lines, what is open, step of samples, scrolled to
};
const panels = [];
let isDragging = false;

const theme = () => (isDark.matches && !isPrinted.matches ? "dark" : "light");
const inkOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColour = (run) => COLOURS[theme()][run % COLOURS.light.length];
const isOff = (run) => state.off.includes(data.runs[run].name);

function make(name, parent, attributes = {}, text = "") {
  const isDrawing = name === "svg" || name === "line";
  const made = isDrawing ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

const place = `report ${location.pathname}${location.search} ${document.title}`;
let kept = null; // where the browser keeps what was chosen; some keep nothing
try {
  kept = sessionStorage;
  Object.assign(state, JSON.parse(kept.getItem(place)));
} catch {}

function changed() {
  kept?.setItem(place, JSON.stringify(state));
  requestAnimationFrame(drawAll);
}

function toggle(list, value) {
  if (list.includes(value)) list.splice(list.indexOf(value), 1);
  else list.push(value);
  changed();
}

function zoom(from, to) {
  state.zoom = to > from ? [from, to] : null;
  changed();
}

function sums(differences) {
  let sum = 0;
  return differences.map((difference) => (sum += difference));
}

function placeOf(sorted, value) { // the first that is not less
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearest(sorted, value) {
  const at = Math.min(placeOf(sorted, value), sorted.length - 1);
  return at > 0 && value - sorted[at - 1] < sorted[at] - value ? at - 1 : at;
}

function along(run, steps) { // where steps lie on the chosen axis
  const { s, [state.x]: values } = data.runs[run].axis;
  if (!values || !s.length) return steps;
  return steps.map((step) => {
    const at = Math.min(placeOf(s, step), s.length - 1), share = (step - s[at - 1]) / (s[at] - s[at - 1]);
    return at === 0 || step >= s[at] ? values[at] : values[at - 1] + (values[at] - values[at - 1]) * share;
  });
}

function smoothed(steps, values, over) { // exponential in steps, so that thinned curves are smoothed as much
  let sum = 0, weight = 0;
  return values.map((value, at) => {
    const kept = Math.exp(-(at ? steps[at] - steps[at - 1] : 1) / over);
    sum = kept * sum + (1 - kept) * value;
    weight = kept * weight + (1 - kept);
    return sum / weight;
  });
}

function short(value) {
  const size = Math.abs(value), power = Math.min(5, Math.floor(Math.log10(size) / 3));
  if (size >= 1e4) return `${Number((value / 1000 ** power).toPrecision(4))}${" kMGTP"[power]}`;
  return size && size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(4)));
}

function shortX(value) {
  if (state.x !== "seconds") return short(value);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([size]) => value >= 2 * size) || [1, "s"];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}

function ticks(low, high, isLog, about, steps = []) {
  const found = [];
  if (isLog) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    const inside = found.filter((value) => value >= low && value <= high);
    const tens = inside.filter((value) => Number.isInteger(Number(Math.log10(value).toFixed(9))));
    if (inside.length > 1) return inside.length > about + 3 ? tens : inside;
  }
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = steps.find((step) => step >= rough) || power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, at) => (first + at) * step);
}

function look(panel, curve) {
  const number = panel.labels.indexOf(curve.label), colours = (panel.ordered ? ORDERED : COLOURS)[theme()];
  return {
    colour: isMany ? runColour(curve.run) : colours[number % colours.length],
    dash: isMany && panel.labels.length > 1 ? DASHES[number % DASHES.length] : [],
    alpha: state.of === "both" && curve.kind === "weights" ? 0.45 : 1,
  };
}

function nameOf(panel, curve) {
  const parts = isMany ? [data.runs[curve.run].name] : [];
  if (panel.labels.length > 1 || !isMany) parts.push(curve.label);
  if (state.of === "both" && curve.kind === "weights") parts.push("(weights)");
  return parts.join(" ");
}

function shown(panel) {
  const isEither = state.of === "both" || !panel.curves.some((curve) => curve.kind === state.of);
  return panel.curves.filter(
    ({ run, label, kind }) =>
      !isOff(run) && !state.hidden.includes(`${panel.number}/${label}`) && (isEither || kind === state.of),
  );
}

function prepare() { // what depends on the axis and on the smoothing
  const longest = Math.max(...data.runs.map((run) => run.axis.s.at(-1) || 1), 10);
  const over = Number(state.smooth) && Math.exp((state.smooth / 100) * Math.log(longest / 3));
  $("smoothed").textContent = over ? `over ${short(Number(over.toPrecision(2)))} steps` : "not";
  for (const curve of panels.flatMap((panel) => panel.curves)) {
    const isSmooth = over && curve.kind === "step" && curve.v.length > MOST_DOTS;
    curve.xs = along(curve.run, curve.steps);
    curve.smooth = isSmooth ? smoothed(curve.meanSteps, curve.mean, over) : null;
    curve.smoothXs = isSmooth ? along(curve.run, curve.meanSteps) : null;
  }
}

function range() { // of all panels
  if (state.zoom) return state.zoom;
  const curves = panels.flatMap(shown);
  const low = Math.min(...curves.map(({ xs }) => xs[0])), high = Math.max(...curves.map(({ xs }) => xs.at(-1)));
  return low < high ? [low, high] : Number.isFinite(low) ? [low - 1, low + 1] : [0, 1];
}

function heights(curves, from, to) {
  const values = curves.flatMap(({ xs, v, low, high }) => {
    const start = Math.max(0, placeOf(xs, from) - 1), end = placeOf(xs, to) + 1;
    return [v, low || [], high || []].flatMap((own) => own.slice(start, end)).filter((value) => value !== null);
  });
  if (!values.length) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  return low < high ? [low, high] : [low - (Math.abs(low) / 10 || 1), high + (Math.abs(high) / 10 || 1)];
}

function scale(panel, curves, [from, to]) {
  const [low, high] = heights(curves, from, to);
  const isLog = low > 0 && (state.y === "log" || (state.y === "auto" && panel.falls && high > LOG_FROM * low));
  const width = panel.plot.clientWidth - EDGE.left - EDGE.right;
  const height = panel.plot.clientHeight - EDGE.top - EDGE.bottom;
  const up = (value) => (isLog ? Math.log(Math.max(value, low / 10)) : value);
  const room = (up(high) - up(low)) * 0.04, bottom = up(low) - room, top = up(high) + room;
  return {
    isLog, low, high, width, height,
    x: (value) => EDGE.left + ((value - from) / (to - from)) * width,
    back: (pixel) => from + ((pixel - EDGE.left) / width) * (to - from),
    y: (value) => EDGE.top + height - ((up(value) - bottom) / (top - bottom)) * height,
  };
}

function drawAll() {
  prepare();
  const whole = range();
  for (const panel of panels) if (panel.plot.clientWidth) draw(panel, whole);
  $("reset").disabled = !state.zoom;
  all("article").forEach((card, run) => card.style.setProperty("--run", runColour(run)));
  const looks = data.runs.map((_, run) => ({ colour: runColour(run), dash: [], alpha: 1 }));
  if (isMany) fillLegend($("legend"), data.runs.map(({ name }, run) => [name, state.off, name, looks[run]]));
  for (const panel of panels.filter(({ labels }) => labels.length > 1)) {
    const grey = isMany ? { colour: inkOf("--quiet") } : {};
    const looks = panel.labels.map((label) => ({ ...look(panel, { label, run: 0 }), ...grey }));
    const keys = panel.labels.map((label) => `${panel.number}/${label}`);
    fillLegend(panel.legend, panel.labels.map((label, at) => [label, state.hidden, keys[at], looks[at]]));
  }
  for (const panel of panels) if (panel.at != null) point(panel, panel.at);
}

function draw(panel, whole) {
  const curves = shown(panel), { canvas, plot } = panel, dots = devicePixelRatio || 1;
  const pen = canvas.getContext("2d"), to = (panel.scale = scale(panel, curves, whole));
  canvas.width = plot.clientWidth * dots;
  canvas.height = plot.clientHeight * dots;
  pen.scale(dots, dots);
  drawGrid(pen, to, whole);
  pen.beginPath();
  pen.rect(EDGE.left, 0, to.width + 1, EDGE.top + to.height + 1);
  pen.clip();
  for (const curve of curves) {
    const { colour, dash, alpha } = look(panel, curve);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.setLineDash(dash);
    pen.globalAlpha = curve.smooth ? 0.25 * alpha : alpha;
    drawLine(pen, to, curve.xs, curve.v, curve.smooth ? 1 : 1.6);
    pen.globalAlpha = alpha;
    if (curve.smooth) drawLine(pen, to, curve.smoothXs, curve.smooth, 2);
    pen.setLineDash([]);
    if (curve.v.length <= MOST_DOTS) drawPoints(pen, to, curve);
  }
  pen.globalAlpha = 1;
  for (const mark of panel.marks) drawMark(pen, to, mark);
  const said = curves.slice(0, MOST_ROWS).map((curve) => `${nameOf(panel, curve)} ${short(curve.v.at(-1))}`);
  canvas.setAttribute("aria-label", `${panel.title}; last values: ${said.join(", ")}`);
}

function drawGrid(pen, to, whole) {
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = inkOf("--quiet");
  pen.strokeStyle = inkOf("--line");
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const value of ticks(to.low, to.high, to.isLog, 5)) {
    const y = Math.round(to.y(value)) + 0.5;
    drawPath(pen, [[EDGE.left, y], [EDGE.left + to.width, y]]);
    pen.fillText(short(value), EDGE.left - 6, y);
  }
  pen.textAlign = "center";
  for (const value of ticks(...whole, false, Math.ceil(to.width / 65), state.x === "seconds" ? CLOCK : []))
    pen.fillText(shortX(value), Math.min(to.x(value), EDGE.left + to.width - 12), EDGE.top + to.height + 13);
}

function drawPath(pen, points) {
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
}

function drawLine(pen, to, xs, values, width) {
  pen.lineJoin = "round";
  pen.lineWidth = width;
  drawPath(pen, xs.map((x, at) => [to.x(x), to.y(values[at])]));
}

function drawPoints(pen, to, curve) { // with their intervals
  pen.lineWidth = 1.2;
  curve.v.forEach((value, at) => {
    const x = to.x(curve.xs[at]), [low, high] = [curve.low, curve.high].map((own) => own?.[at] ?? value).map(to.y);
    pen.beginPath();
    pen.arc(x, to.y(value), 2.4, 0, 7);
    pen.fill();
    if (low !== high) for (const y of [low, high]) drawPath(pen, [[x - 4, y], [x + 4, y], [x, y], [x, to.y(value)]]);
  });
}

function drawMark(pen, to, { run, step }) { // a step that was left out: a triangle that hangs from the top
  if (isOff(run)) return;
  const x = to.x(along(run, [step])[0]);
  pen.fillStyle = pen.strokeStyle = isMany ? runColour(run) : inkOf("--bad");
  pen.lineWidth = 0.5;
  drawPath(pen, [[x, EDGE.top + to.height], [x, 0]]);
  drawPath(pen, [[x - 5, 0], [x + 5, 0], [x, 9]]);
  pen.fill();
}

function swatch(parent, { colour, dash, alpha }) {
  const svg = make("svg", parent, { viewBox: "0 0 20 8", "aria-hidden": "true" });
  const ink = { stroke: colour, "stroke-width": 3, "stroke-dasharray": dash.join(" "), opacity: alpha };
  make("line", svg, { x1: 0, y1: 4, x2: 20, y2: 4, ...ink });
}

function fillLegend(legend, entries) { // buttons are made once, so that the focus stays
  entries.forEach(([text, list, key, own], number) => {
    const button = legend.children[number] || make("button", legend, { type: "button" });
    button.onclick = () => toggle(list, key);
    button.replaceChildren();
    swatch(button, own);
    button.append(text);
    button.setAttribute("aria-pressed", String(!list.includes(key)));
  });
}

function point(panel, x) { // x on the axis; null: nothing is pointed at
  const [low, high] = range();
  for (const each of panels) {
    const isInside = x !== null && each.scale && x >= low && x <= high;
    each.cross.hidden = !isInside;
    each.values.hidden = !isInside || each !== panel;
    if (isInside) each.cross.style.left = `${each.scale.x(x)}px`;
  }
  panel.at = x;
  if (x !== null) tell(panel, x);
}

function tell(panel, x) {
  const { values, plot } = panel, curves = shown(panel), pixel = panel.scale.x(x);
  values.replaceChildren();
  const step = curves.length ? curves[0].steps[nearest(curves[0].xs, x)] : 0;
  const also = state.x === "steps" ? "" : `, ${shortX(x)}${state.x === "tokens" ? " tokens" : ""}`;
  make("div", values, {}, curves.length ? `step ${step.toLocaleString("en")}${also}` : "nothing is shown");
  for (const curve of curves.slice(0, MOST_ROWS)) {
    const at = nearest(curve.xs, x), row = make("div", values), near = curve.v.slice(Math.max(0, at - 1), at + 2);
    const value = curve.mean_s ? `${short(Math.min(...near))} to ${short(Math.max(...near))}` : short(curve.v[at]);
    swatch(row, look(panel, curve));
    make("span", row, {}, nameOf(panel, curve));
    const interval = curve.low?.[at] != null ? ` [${short(curve.low[at])}, ${short(curve.high[at])}]` : "";
    const mean = curve.smooth && short(curve.smooth[nearest(curve.smoothXs, x)]);
    make("span", row, {}, mean ? `${mean} (${value})` : value + interval);
  }
  if (curves.length > MOST_ROWS) make("div", values, {}, `and ${curves.length - MOST_ROWS} more`);
  for (const { run, step, text } of panel.marks)
    if (Math.abs(panel.scale.x(along(run, [step])[0]) - pixel) <= 4)
      make("div", values, {}, `step ${step.toLocaleString("en")} left out: ${text}`);
  const wide = values.offsetWidth, edge = plot.getBoundingClientRect().left;
  const left = pixel > plot.clientWidth / 2 ? pixel - wide - 10 : pixel + 10;
  values.style.left = `${Math.max(6 - edge, Math.min(left, document.body.clientWidth - edge - wide - 6))}px`;
}

function listen(panel) {
  const { plot, chosen } = panel;
  let start = 0;
  const inside = ({ clientX }) =>
    Math.min(Math.max(clientX - plot.getBoundingClientRect().left, EDGE.left), EDGE.left + panel.scale.width);
  const on = (name, react) => plot.addEventListener(name, react);
  on("pointerdown", (event) => {
    start = inside(event);
    point(panel, panel.scale.back(start));
    isDragging = event.button === 0;
    if (isDragging) plot.setPointerCapture(event.pointerId);
  });
  on("pointermove", (event) => {
    const pixel = inside(event);
    point(panel, panel.scale.back(pixel));
    chosen.hidden = !isDragging || Math.abs(pixel - start) < 6;
    chosen.style.left = `${Math.min(start, pixel)}px`;
    chosen.style.width = `${Math.abs(pixel - start)}px`;
  });
  on("pointerup", (event) => {
    if (!chosen.hidden) zoom(...[start, inside(event)].sort((a, b) => a - b).map(panel.scale.back));
  });
  for (const end of ["pointerup", "pointercancel"]) on(end, () => (isDragging = !(chosen.hidden = true)));
  on("pointerleave", (event) => event.pointerType === "touch" || point(panel, null)); // a finger has gone, to read
  on("blur", () => point(panel, null));
  on("dblclick", () => zoom(0, 0));
  on("keydown", (event) => press(panel, event));
}

function press(panel, event) {
  const [low, high] = range(), span = high - low, at = panel.at ?? (low + high) / 2;
  const far = span / (event.shiftKey ? 10 : 100);
  const moves = { ArrowLeft: at - far, ArrowRight: at + far, Home: low, End: high };
  const zooms = { "+": span / 4, "=": span / 4, "-": span, Escape: Infinity };
  if (event.ctrlKey || event.metaKey || !(event.key in moves || event.key in zooms)) return;
  event.preventDefault();
  if (event.key in moves) return point(panel, Math.min(high, Math.max(low, moves[event.key])));
  if (event.key === "Escape") point(panel, null);
  state.zoom = null;
  const whole = range(), half = zooms[event.key];
  const [from, to] = [Math.max(whole[0], at - half), Math.min(whole[1], at + half)];
  zoom(from, from > whole[0] || to < whole[1] ? to : from);
}

function showSamples(slider) {
  const figures = all(".samples").map((figure) => [figure, all("img", figure)]);
  const stepOf = (picture) => Number(picture.dataset.step);
  const steps = [...new Set(figures.flatMap(([, pictures]) => pictures.map(stepOf)))].sort((a, b) => a - b);
  const show = () => {
    const step = steps[slider.value];
    slider.setAttribute("aria-valuetext", `step ${step}`);
    for (const [figure, pictures] of figures) {
      const chosen = pictures.filter((picture) => stepOf(picture) <= step).at(-1) || pictures[0];
      for (const picture of pictures) picture.hidden = picture !== chosen;
      figure.querySelector("output").textContent = chosen.dataset.step;
    }
  };
  slider.max = steps.length - 1;
  slider.value = state.sample ? nearest(steps, state.sample) : slider.max;
  slider.addEventListener("input", () => {
    state.sample = slider.value === slider.max ? 0 : steps[slider.value]; // who looks at the last sees the next one too
    changed();
    show();
  });
  show();
}

function tellAges() {
  const units = [[86400, "days"], [3600, "hours"], [60, "minutes"], [1, "seconds"]];
  for (const time of all("time")) {
    const age = Math.max(0, Date.now() / 1000 - time.dataset.at);
    const [size, unit] = units.find(([size]) => age >= 2 * size) || units[3];
    time.dataset.text ||= time.textContent;
    time.textContent = `${time.dataset.text}, ${Math.floor(age / size)} ${unit} ago`;
  }
}

function reload() {
  if (isDragging || document.hidden) return setTimeout(reload, 500);
  state.at = scrollY;
  changed();
  location.reload();
}

function open(figure) {
  const number = Number(figure.dataset.panel), panel = { ...data.panels[number], number };
  panel.labels = [...new Set(panel.curves.map((curve) => curve.label))];
  for (const curve of panel.curves) {
    curve.steps = sums(curve.s);
    curve.meanSteps = curve.mean ? sums(curve.mean_s) : curve.steps;
    curve.mean ||= curve.v;
  }
  panel.legend = make("div", figure, { class: "legend" });
  const said = `${panel.title}: arrow keys move, plus and minus zoom`;
  panel.plot = make("div", figure, { class: "plot", tabindex: 0, role: "group", "aria-label": said });
  panel.canvas = make("canvas", panel.plot, { role: "img" });
  for (const name of ["cross", "chosen", "values"]) panel[name] = make("div", panel.plot, { class: name, hidden: "" });
  panel.values.setAttribute("role", "status");
  listen(panel);
  return panel;
}

function start() {
  panels.push(...all(".panel").map(open));
  for (const run of data.runs) run.axis.s = sums(run.axis.s);
  $("held").hidden = !panels.some((panel) => panel.curves.some((curve) => curve.kind === "weights"));
  for (const key of ["smooth", "x", "y", "of"]) {
    $(key).value = state[key];
    $(key).addEventListener("input", () => {
      if (key === "x") state.zoom = null;
      state[key] = $(key).value;
      changed();
    });
  }
  $("reset").addEventListener("click", () => zoom(0, 0));
  for (const fold of all("details")) {
    const name = fold.firstChild.textContent;
    fold.open = state.folds[name] ?? fold.open;
    fold.addEventListener("toggle", () => {
      state.folds[name] = fold.open;
      changed();
    });
  }
  if ($("sample")) showSamples($("sample"));
  drawAll();
  tellAges();
  setInterval(tellAges, 5000);
  addEventListener("resize", () => requestAnimationFrame(drawAll));
  for (const query of [isDark, isPrinted]) query.addEventListener("change", drawAll);
  if (data.refresh) setTimeout(reload, 1000 * data.refresh);
  if (state.at) scrollTo(0, state.at);
  state.at = 0;
}

start();
