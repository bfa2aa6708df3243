// The page: what the model can do, a prompt, the documents in the making, and those of the past.

import { Gone, Refused, isHealthy, keepToken, models, takeToken, withToken } from "./api.js";
import { Column } from "./column.js";
import { Composer } from "./composer.js";
import { Gallery } from "./gallery.js";
import { Transport, textOf } from "./player.js";
import { Selection, partsAround } from "./redo.js";
import { Settings } from "./settings.js";
import { download } from "./share.js";

const FIRST_POLL = 1000, LAST_POLL = 10_000; // milliseconds between questions whether the server is back
const LARGEST_PREVIEW = 64; // pixels of a picture that is shown at every step; larger ones at every fourth
const NUM_SEEDS = 2 ** 32;

const at = (id) => document.getElementById(id);
const page = { tip: at("tip"), announce, grown: () => transport.grow(), ended, retry };
const complain = (text) => ((at("complaint").textContent = text), (at("complaint").hidden = !text));
const composer = new Composer(at("prompt"), at("tools"), at("examples"), complain);
const transport = new Transport(at("replay"));
const gallery = new Gallery(at("gallery"), reopen, complain);
const sides = ["a", "b"].map((own) => ({ model: at(`model-${own}`), settings: new Settings(at(`settings-${own}`)) }));
let served = []; // as /v1/models lists them
let columns = [];
let selections = [];

const infoOf = (id) => served.find((own) => own.id === id)?.oneflow;
const isCompared = () => at("compare").getAttribute("aria-pressed") === "true";
const asked = () => (isCompared() ? sides : sides.slice(0, 1));
const rollSeed = () => (at("seed").value = Math.floor(Math.random() * NUM_SEEDS));

async function start() {
  takeToken();
  at("generate").addEventListener("click", () => compose());
  at("stop").addEventListener("click", stop);
  at("dice").addEventListener("click", rollSeed);
  at("compare").addEventListener("click", compare);
  at("another").addEventListener("click", () => rollSeed() && compose());
  at("share").addEventListener("click", share);
  at("copy").addEventListener("click", copyText);
  at("redo").addEventListener("click", redo);
  at("unselect").addEventListener("click", () => selections.forEach((own) => own.clear()));
  at("ask").addEventListener("close", () => at("token").value && (keepToken(at("token").value), load()));
  for (const side of sides) side.model.addEventListener("change", () => offer(side));
  at("report").addEventListener("click", () => (at("report").href = withToken("/report")));
  at("json").addEventListener("click", showModels);
  document.addEventListener("keydown", onKey);
  gallery.load();
  await load();
}

/** What is served: at the start, and when the server is back. */
async function load() {
  try {
    served = await models();
  } catch (error) {
    return trouble(error);
  }
  for (const side of sides) {
    const chosen = side.model.value;
    side.model.replaceChildren(...served.map(({ id }) => new Option(id, id, false, id === chosen)));
    side.model.closest(".model").hidden = served.length < 2;
    offer(side);
  }
  if (served.length > 1 && sides[1].model.selectedIndex === 0) sides[1].model.selectedIndex = 1;
  offer(sides[1]);
  at("generate").disabled = false;
}

/** Show what the model of a side can do. */
function offer(side) {
  const info = infoOf(side.model.value);
  side.settings.offer(info);
  if (side !== sides[0]) return;
  composer.offer(info);
  const [size, step] = [info.parameters, info.step].map((number) => number.toLocaleString("en"));
  at("model").textContent = side.model.value;
  at("about").textContent = `${size} parameters · step ${step} · ${info.objective}`;
  document.title = `${side.model.value} · oneflow_dist`;
}

/** As the server lists them; it may want a token for that, which a link does not carry. */
function showModels(event) {
  event.preventDefault();
  const blob = new Blob([JSON.stringify(served, null, 2)], { type: "application/json" });
  open(URL.createObjectURL(blob), "_blank", "noopener");
}

function compare() {
  const on = !isCompared();
  at("compare").setAttribute("aria-pressed", on);
  at("side-b").hidden = !on;
  document.body.classList.toggle("compares", on);
  if (on && sides[0].model.value === sides[1].model.value) sides[1].settings.write(sides[0].settings.values());
}

/** Generate what the composer says. */
function compose() {
  if (at("generate").disabled) return;
  const parts = composer.parts(), seed = at("seed").valueAsNumber || 0;
  generate(asked().map((side) => jobOf(side.model.value, parts, side.settings.values(), seed)));
}

function jobOf(model, parts, settings, seed) {
  const { modalities } = infoOf(model);
  const isLarge = modalities.some((own) => Math.max(own.width ?? 0, own.height ?? 0) > LARGEST_PREVIEW);
  const changed = Object.entries(settings).map(([name, value]) => `${name} ${value}`);
  const request = { model, parts, settings, seed, preview_steps: isLarge ? 4 : 1 };
  return { request, modalities, title: [model, `seed ${seed}`, ...changed].join(" · ") };
}

/** Documents side by side, behind those that are to stay. */
function generate(jobs, staying = []) {
  const fresh = jobs.map((job) => new Column(job, page)); // the requests have left
  place([...staying, ...fresh]);
  at("stop").hidden = false;
  for (const column of fresh) column.run();
}

function place(shown) {
  for (const own of selections) own.close();
  for (const column of columns) if (!shown.includes(column)) column.close();
  columns = shown;
  selections = [];
  complain("");
  select();
  at("empty").hidden = true;
  at("after").hidden = true;
  at("columns").replaceChildren(...columns.map((column) => column.element));
  transport.attach(columns.map((column) => column.view));
}

function ended(column, error) {
  if (!error) {
    announce(column.summary);
    const { job, history } = column, { tokens } = history.last;
    const picture = tokens.find((token) => token.frames.length)?.frames.at(-1).source;
    gallery.add({ ...job, events: history.events, text: textOf(tokens), picture });
  } else if (error.name !== "AbortError") trouble(error);
  if (columns.includes(column) && !columns.some((own) => own.isRunning)) settle();
}

/** All columns have ended: they can be replayed, and parts of them redone. */
function settle() {
  at("stop").hidden = true;
  transport.grow();
  const done = columns.filter((column) => column.history.done);
  selections = done.map((column) => Object.assign(new Selection(column.view, select), { column }));
  at("after").hidden = !done.length;
}

function select(changed) {
  for (const own of selections) if (own !== changed && changed?.tokens.size && own.tokens.size) own.clear();
  const count = Math.max(0, ...selections.map((own) => own.tokens.size));
  at("selection").hidden = !count;
  at("hint").hidden = Boolean(count);
  at("selected").textContent = `${count} selected`;
  if (count) announce(`${count} selected`);
}

function redo() {
  const { tokens: chosen, column } = selections.find((own) => own.tokens.size);
  const { job, history } = column;
  const parts = partsAround(history.last.tokens, chosen, history.begin.objective);
  rollSeed();
  column.view.mark("redone", chosen);
  selections.forEach((own) => own.clear());
  generate([jobOf(job.request.model, parts, job.request.settings, at("seed").valueAsNumber)], [column]);
}

function retry(column) {
  generate([column.job], columns.filter((own) => own !== column));
}

function reopen(job) {
  place([new Column(job, page)]);
  if (infoOf(job.request.model) && !job.request.parts.some((part) => part.tokens || part.latent)) restore(job.request);
  settle();
  at("columns").scrollIntoView({ block: "nearest" });
}

/** The prompt and the settings of a past document, to go on from. */
function restore({ model, parts, settings, seed }) {
  sides[0].model.value = model;
  offer(sides[0]);
  composer.write(parts);
  sides[0].settings.write(settings);
  at("seed").value = seed;
}

function stop() {
  for (const column of columns) column.stop();
}

async function share() {
  const done = columns.filter((column) => column.history.done);
  const documents = done.map(({ job: { title, modalities }, history: { events } }) => ({ title, modalities, events }));
  const { model, seed } = done[0].job.request;
  try {
    await download(`${model}-${seed}.html`, `${model}, seed ${seed}`, documents);
  } catch (error) {
    complain(error.message);
  }
}

async function copyText() {
  const texts = columns.filter((column) => column.history.done).map((column) => column.history.done.text);
  try {
    await navigator.clipboard.writeText(texts.join("\n\n"));
    announce("copied");
  } catch {
    complain("the browser does not allow copying here; select the words and press Ctrl+C");
  }
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    compose();
  } else if (event.key === "Escape" && !at("ask").open) {
    if (columns.some((column) => column.isRunning)) stop();
    else selections.forEach((own) => own.clear());
  } else transport.key(event);
}

function announce(text) {
  at("live").textContent = text;
}

/** What concerns more than one document. */
function trouble(error) {
  if (error instanceof Gone) waitForServer();
  else if (error instanceof Refused && error.status === 401) at("ask").showModal();
  else if (error instanceof Refused) asked().forEach((side) => side.settings.blame(error.param));
  else complain(error.message);
}

/** Ask gently whether the server is back, and say so. */
async function waitForServer() {
  if (!at("gone").hidden) return;
  at("gone").hidden = false;
  for (let pause = FIRST_POLL; !(await isHealthy()); pause = Math.min(LAST_POLL, 1.5 * pause)) {
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  at("gone").hidden = true;
  announce("the server is back");
  await load();
}

start();
