// Puts the page together: tabs, buttons, keys, seeds, and the bars of Explain.

import "./stage.js";
import "./features.js";
import { brushSize, classIndex, complain } from "./controls.js";
import { openFirst } from "./files.js";
import { blank, noMask } from "./pixels.js";
import { guess, run, runAll, scrub, stop } from "./runs.js";
import { save } from "./saving.js";
import { zoom } from "./stage.js";
import { Work, onChange, result, state, touch, work } from "./state.js";
import { facts, messages, post } from "./wire.js";

const byId = (id) => document.getElementById(id);
const SEEDS = 6;
const ABOUT = {
  refine: "A few steps towards the image's class: what is there already becomes clearer.",
  paint: "Paint on the image where a class, or a feature of the classifier, is to appear.",
  inpaint: "Paint over what is to go: it is filled in with what the classifier expects.",
  sketch: "Draw something, and say what it is.",
  translate: "Turn the image into one of another class.",
  superres: "Enlarge the image, with the detail that its class has.",
  generate: "Images of a class from random seeds.",
  explain: "What the classifier sees, and which change of the image would raise the class most.",
};

byId("classifier").textContent = `${facts.ckpt} · sees ${facts.imageSize} × ${facts.imageSize} px · ${facts.classNames.length} classes · ${facts.precision}`;

function choose(tab) {
  if (state.run) {
    complain("run: it goes on; stop it first (Esc), then change the tab");
    return;
  }
  state.tab = tab;
  state.status = "";
  state.showsOriginal = false;
  complain(null);
  if (tab === "generate" && !state.seeds.length) drawSeeds(0);
  const here = work();
  if (here && tab !== "generate" && tab !== "sketch") guess(here);
  document.body.dataset.state = "idle";
  touch();
}

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const button of tabs) {
  button.addEventListener("click", () => choose(button.dataset.tab));
  button.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.stopPropagation();
    event.preventDefault();
    const next = tabs[(tabs.indexOf(button) + way + tabs.length) % tabs.length];
    choose(next.dataset.tab);
    next.focus();
  });
}

// The variants of Generate: what the steps would begin with, drawn from consecutive seeds.
async function drawSeeds(first) {
  const label = classIndex(state.classes.generate ?? facts.classNames[0]);
  if (label === null || label === undefined) return complain("class: choose one; it is drawn from");
  byId("seed").value = first;
  state.seeds = [];
  state.at.seeds = 0;
  for (let seed = first; seed < first + SEEDS; seed++) {
    state.seeds.push(new Work(`seed ${seed}`, blank(facts.imageSize, facts.imageSize, 128), { seed, label }));
  }
  touch();
  const drawn = state.seeds;
  try {
    for (const here of drawn) {
      const ask = { tab: "generate", label, options: { seed: here.seed, steps: 1 } };
      for await (const one of messages(await post("/run", ask))) {
        if (one.frame?.step === 0 && !here.results.generate) here.picture = here.first = one.frame.picture;
      }
      if (drawn !== state.seeds) return null;
      touch();
    }
  } catch (error) {
    complain(error.message);
  }
  return null;
}

// Run; of Generate, from seeds of the class that is written there now.
async function start() {
  if (state.tab === "generate" && classIndex(state.classes.generate ?? "") !== work()?.label) {
    await drawSeeds(Number(byId("seed").value) || 0);
    if (classIndex(state.classes.generate ?? "") !== work()?.label) return;
  }
  await run();
}

function redraw() {
  if (!state.run) drawSeeds(Number(byId("seed").value || 0) + SEEDS);
}

function keep() {
  const frame = result()?.frame, here = work();
  if (!frame || byId("keep").disabled) return;
  here.replace(frame.picture);
  state.status = `Kept step ${frame.step} as the image.`;
  guess(here);
  touch();
}

function undone(way) {
  const here = work();
  if (state.run || !here?.[way]()) return;
  if (state.tab === "sketch") delete here.results.sketch;
  if (!here.guess && state.tab !== "sketch") guess(here);
  touch();
}

const acts = {
  run: start,
  stop,
  keep,
  undo: () => undone("undo"),
  redo: () => undone("redo"),
  "zoom-in": () => zoom(1),
  "zoom-out": () => zoom(-1),
  "zoom-fit": () => zoom(0),
  "run-all": runAll,
  "run-seeds": runAll,
  redraw,
  use() {
    const here = work(), picture = result()?.frame?.picture ?? here.picture;
    state.pictures.push(new Work(here.name, { ...picture }, { choice: "square" }));
    state.at.pictures = state.pictures.length - 1;
    choose("refine");
  },
  "mask-clear"() { const here = work(); here.remember(); here.mask = noMask(here.picture); touch(); },
  "mask-invert"() { const here = work(); here.remember(); here.mask = here.mask.map((level) => 255 - level); touch(); },
  "sketch-clear"() {
    state.sketch.replace(blank(facts.imageSize, facts.imageSize));
    delete state.sketch.results.sketch;
    touch();
  },
};
for (const [id, act] of Object.entries(acts)) byId(id).addEventListener("click", act);
byId("seed").addEventListener("change", () => drawSeeds(Math.max(0, Math.floor(Number(byId("seed").value) || 0))));
byId("class").addEventListener("change", () => {
  const label = classIndex(byId("class").value);
  if (state.tab === "generate" && !state.run && label !== work()?.label) drawSeeds(Number(byId("seed").value) || 0);
});
byId("wipe").addEventListener("input", (event) => { state.wipe = Number(event.target.value); touch(); });
byId("scrub").addEventListener("input", (event) => scrub(Number(event.target.value)));

// Keys act on the page, but for those that the control in focus needs itself.
const isText = (element) => element.matches("input:not([type=range]):not([type=radio]), textarea, select");
const keys = {
  "[": () => brushSize(-1),
  "]": () => brushSize(1),
  x() { state.tool = state.tool === "eraser" ? "brush" : "eraser"; touch(); },
  k: keep,
  r() { if (state.tab === "generate") redraw(); },
  "+": () => zoom(1),
  "-": () => zoom(-1),
  0: () => zoom(0),
  ArrowLeft: () => scrub((result()?.shown ?? 0) - 1),
  ArrowRight: () => scrub((result()?.shown ?? 0) + 1),
};
addEventListener("keydown", (event) => {
  if (!event.key) return; // browsers send such a one where a suggestion is taken
  const at = document.activeElement, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "s") save();
    else if (key === "z" && !(isText(at) && at.type !== "number")) undone(event.shiftKey ? "redo" : "undo");
    else if (key === "y") undone("redo");
    else return;
    event.preventDefault();
    return;
  }
  if (event.altKey || event.defaultPrevented) return;
  if (key === "Escape") {
    if (state.run) event.preventDefault();
    byId("help").open = false;
    complain(null);
    stop();
  } else if (key === "Enter" && !at.matches("button:not([role=tab]), summary, textarea, select, [type=file], [type=color]")) {
    event.preventDefault();
    start();
  } else if (key === " " && !isText(at) && !at.matches("button, summary, [type=radio]")) {
    event.preventDefault();
    state.showsOriginal = true;
    touch();
  } else if (key in keys && !isText(at) && !(key.startsWith("Arrow") && at.matches("[type=range], [type=radio]"))) {
    event.preventDefault();
    keys[key]();
  }
});
addEventListener("keyup", (event) => {
  if (event.key === " " && state.showsOriginal) { state.showsOriginal = false; touch(); }
});
addEventListener("blur", () => { state.showsOriginal = false; touch(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", touch);

function probability(p) {
  const cell = document.createElement("td");
  if (p === undefined) return cell;
  const box = Object.assign(document.createElement("span"), { className: "probability" });
  const bar = document.createElement("i"), part = document.createElement("b");
  part.style.width = `${100 * p}%`;
  bar.append(part);
  box.append(bar, Object.assign(document.createElement("span"), { textContent: `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %` }));
  cell.append(box);
  return cell;
}

onChange(() => {
  byId("about").textContent = ABOUT[state.tab];
  const done = state.tab === "explain" ? result() : null, probs = done?.probs;
  byId("bars").hidden = !probs;
  byId("bars-hint").hidden = !!probs;
  if (!probs) return;
  const before = done.before ?? probs, after = done.before ? probs : null;
  const order = before.map((_, c) => c).sort((a, b) => Math.max(before[b], after?.[b] ?? 0) - Math.max(before[a], after?.[a] ?? 0)).slice(0, 10);
  byId("bars").querySelector("tbody").replaceChildren(...order.map((c) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("td"), { textContent: facts.classNames[c] }), probability(before[c]), probability(after?.[c]));
    return row;
  }));
  byId("bars-after").hidden = !after;
});

try {
  await openFirst();
  choose("paint");
} catch (error) {
  complain(error.message);
  document.body.dataset.state = "failed";
}
