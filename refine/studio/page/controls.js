// The settings beside the image: what each tab shows of them, what a person has set, and what is asked of the studio.

import { isMasked, onChange, state, touch, work } from "./state.js";
import { facts } from "./wire.js";

const byId = (id) => document.getElementById(id);
const flags = [...document.querySelectorAll("[data-flag]")];
const NUMBERS = new Set(["steps", "eps", "step_size", "strength", "fidelity", "feature", "seed"]);
const OF_TAB = {
  refine: ["steps", "eps", "step_size", "loss"],
  paint: ["steps", "eps", "step_size", "strength", "fidelity"],
  inpaint: ["steps", "eps", "step_size", "fill", "fidelity"],
  sketch: ["steps", "eps", "step_size"],
  translate: ["steps", "eps", "step_size"],
  superres: ["steps", "eps", "step_size", "factor", "start_from"],
  generate: ["steps", "eps", "step_size"],
  explain: [],
};
const GUESSES = new Set(["refine", "inpaint", "superres", "explain"]);
const PALETTE = [
  ["black", "#000000"], ["white", "#ffffff"], ["grey", "#808080"], ["brown", "#7a4a1e"], ["red", "#d0202a"], ["orange", "#ee7d1a"],
  ["yellow", "#f6d32d"], ["green", "#2e8b3d"], ["dark green", "#1c4d24"], ["sky", "#8ec5f0"], ["blue", "#1a5fb4"], ["sand", "#d9c08c"],
];

// The text of the class control -> an index; null where it is empty; undefined where there is no such class.
export function classIndex(text) {
  const name = text.trim().toLowerCase();
  if (name === "") return null;
  const known = facts.classIndex.get(name);
  if (known !== undefined) return known;
  return /^\d+$/.test(name) && Number(name) < facts.classNames.length ? Number(name) : undefined;
}

function largestSide(tab = state.tab, here = work()) {
  if (tab === "sketch" || !here) return facts.imageSize;
  const side = Math.max(here.picture.height, here.picture.width);
  return tab === "superres" ? side * Number(option("factor", tab)) : tab === "generate" ? facts.imageSize : side;
}

function usual(name, tab) {
  if (name === "factor") return state.factorChoice ?? 2;
  if (name === "loss") return "ce";
  if (name === "start_from") return "nearest";
  const ball = facts.defaults[tab]?.[largestSide(tab) <= 64 ? "small" : "large"];
  if (tab === "refine" && name === "step_size") return ""; // the command's: 1.5 * eps / steps
  return ball?.[name] ?? "";
}

const option = (name, tab = state.tab) => state.options[tab][name] ?? (name === "factor" ? (state.factorChoice ?? 2) : usual(name, tab));

// What is asked of the studio for this image; null, with the reason on the page, where a control is not right.
export function asked(here) {
  const tab = state.tab, options = {};
  const isFeature = tab === "paint" && state.what === "feature";
  for (const name of [...OF_TAB[tab], ...(isFeature ? ["feature"] : [])]) {
    const text = String(name === "feature" ? byId("feature").value : option(name)).trim();
    if (byId(name).validity.badInput) return complain(`${name}: is no number`);
    if (text === "") {
      if (name === "feature") return complain("feature: choose one below, or give its number");
      continue;
    }
    options[name] = NUMBERS.has(name) || name === "factor" ? Number(text) : text;
  }
  if (tab === "generate") options.seed = here.seed;
  if (options.steps > facts.mostSteps) return complain(`steps: ${options.steps} is above ${facts.mostSteps}, the most that are taken here`);
  for (const name of ["steps", "feature", "seed"]) {
    if (name in options && !Number.isInteger(options[name])) return complain(`${name}: ${options[name]} is no whole number`);
  }
  let label = tab === "generate" ? here.label : classIndex(byId("class").value);
  if (isFeature) label = null;
  if (label === undefined) return complain(`class: ${byId("class").value.trim()} is none of the classifier's ${facts.classNames.length} classes`);
  if (label === null && !isFeature && !GUESSES.has(tab)) return complain("class: choose one; on this tab the classifier does not guess");
  if (isMasked(tab) && !here.mask.includes(255)) return complain("mask: nothing is painted yet; paint on the image where the change is to be");
  return { tab, label, options, masked: isMasked(tab) };
}

// Shows what is wrong, and which control it is about; null clears it.
export function complain(message) {
  for (const control of document.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  byId("problem-box").hidden = message === null;
  byId("problem").textContent = message ?? "";
  if (message === null) return null;
  const name = message.split(":")[0];
  const control = flags.find((one) => one.dataset.flag === name);
  if (control) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", "problem");
    control.focus({ preventScroll: true });
    control.scrollIntoView({ block: "center" });
  }
  return null;
}

function set(name, value) {
  if (name === "class") state.classes[state.tab] = value;
  else if (name === "factor") { state.factorChoice = Number(value); state.options.superres.factor = value; }
  else if (name !== "seed" && name !== "feature") state.options[state.tab][name] = value;
  touch();
}

for (const control of flags) control.addEventListener("input", () => set(control.dataset.flag, control.value));
for (const name of ["steps", "eps"]) {
  byId(`${name}-range`).addEventListener("input", (event) => set(name, String(Math.round(event.target.value * 100) / 100)));
}
for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", () => { state.tool = radio.value; touch(); });
for (const radio of document.querySelectorAll("[name=what]")) radio.addEventListener("change", () => { state.what = radio.value; touch(); });
byId("brush").addEventListener("input", (event) => { state.brush = Number(event.target.value); touch(); });
byId("colour").addEventListener("input", (event) => { state.colour = event.target.value; touch(); });

byId("classes").replaceChildren(...facts.classNames.map((name) => Object.assign(document.createElement("option"), { value: name })));
byId("palette").replaceChildren(...PALETTE.map(([name, hex]) => {
  const label = Object.assign(document.createElement("label"), { className: "swatch", title: name });
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "palette", value: hex });
  radio.setAttribute("aria-label", name);
  radio.addEventListener("change", () => { state.colour = hex; touch(); });
  const patch = document.createElement("span");
  patch.style.background = hex;
  label.append(radio, patch);
  return label;
}));
for (const factor of [2, 3, 4, 8]) byId("factor").append(new Option(`${factor} times`, factor));

byId("problem-close").addEventListener("click", () => complain(null));

export function brushSize(change) {
  state.brush = Math.min(Number(byId("brush").max), Math.max(1, state.brush + change));
  touch();
}

const fill = (control, value) => { if (control !== document.activeElement || control.tagName === "SELECT") control.value = value; };

onChange(() => {
  const tab = state.tab, here = work();
  document.querySelectorAll("[role=tab]").forEach((button) => {
    button.setAttribute("aria-selected", button.dataset.tab === tab);
    button.tabIndex = button.dataset.tab === tab ? 0 : -1;
  });
  byId("work").setAttribute("aria-labelledby", `tab-${tab}`);
  byId("pictures-title").textContent = tab === "generate" ? "Variants" : "Images";
  byId("pictures-box").hidden = tab === "sketch";
  byId("bring").hidden = byId("bring-hint").hidden = byId("size-field").hidden = tab === "generate";
  byId("seed-box").hidden = tab !== "generate";
  byId("tools-box").hidden = !(isMasked(tab) || tab === "sketch");
  byId("method-box").hidden = tab === "explain";
  byId("bars-box").hidden = tab !== "explain";
  byId("what").hidden = tab !== "paint" || facts.features === 0;
  const isFeature = tab === "paint" && state.what === "feature";
  byId("class-field").hidden = isFeature;
  byId("feature-box").hidden = !isFeature;
  for (const one of document.querySelectorAll(".of-mask")) one.hidden = !isMasked(tab);
  for (const one of document.querySelectorAll(".of-steps")) one.hidden = tab === "explain";
  for (const one of document.querySelectorAll(".of-sketch")) one.hidden = tab !== "sketch";
  for (const name of ["refine", "superres", "inpaint", "paint"]) {
    for (const one of document.querySelectorAll(`#method-box .of-${name}`)) {
      one.hidden = !one.classList.contains(`of-${tab}`);
    }
  }
  if (tab !== "sketch" && (state.tool === "line" || state.tool === "fill")) state.tool = "brush";
  for (const radio of document.querySelectorAll("[name=tool]")) radio.checked = radio.value === state.tool;
  for (const radio of document.querySelectorAll("[name=palette]")) radio.checked = radio.value === state.colour;
  fill(byId("colour"), state.colour);
  byId("brush").max = Math.max(8, Math.round((here ? Math.max(here.picture.height, here.picture.width) : facts.imageSize) / 2));
  byId("brush").value = state.brush;
  byId("brush-value").textContent = `${state.brush} px`;
  for (const name of OF_TAB[tab]) fill(byId(name), String(option(name)));
  byId("step_size").placeholder = tab === "refine" ? "1.5 · eps / steps" : "";
  byId("fidelity").placeholder = tab === "paint" ? "90" : "10";
  const ball = facts.defaults[tab]?.[largestSide(tab) <= 64 ? "small" : "large"];
  if (ball) {
    byId("steps-range").max = Math.max(100, ball.steps, Number(option("steps")) || 0);
    byId("steps-range").value = option("steps");
    byId("eps-range").max = Math.max(4 * ball.eps, Number(option("eps")) || 0);
    byId("eps-range").value = option("eps");
  }
  fill(byId("class"), state.classes[tab] ?? "");
  byId("class").placeholder = GUESSES.has(tab) ? "guessed" : "choose";
  const { guess } = here ?? {};
  byId("guess").hidden = isFeature || tab === "generate" || tab === "sketch" || !guess;
  byId("guess").textContent = guess ? `It sees ${facts.classNames[guess.label]} (${(100 * guess.probability).toFixed(0)} %)${GUESSES.has(tab) ? "; leave empty to take that" : ""}.` : "";
});
