// All that the page knows. Whatever changes it calls touch(); the views then draw themselves once, before the next frame.

import { blank, noMask } from "./pixels.js";
import { facts } from "./wire.js";

const MOST_UNDO = 60;
const MOST_FRAME_BYTES = 96 << 20; // of one run; beyond it every second frame is forgotten

// An image under a person's hand: its pixels, its mask, what can be undone, and the last run of each tab on it.
export class Work {
  constructor(name, picture, more = {}) {
    Object.assign(this, { name, picture, mask: noMask(picture), first: picture, results: {}, undone: [], done: [], guess: null }, more);
  }

  remember() {
    this.done.push({ picture: this.picture, mask: this.mask });
    if (this.done.length > MOST_UNDO) this.done.shift();
    this.undone = [];
    this.picture = { ...this.picture, rgb: this.picture.rgb.slice() };
    this.mask = this.mask.slice();
  }

  replace(picture) { // with a result, perhaps of another size
    this.remember();
    const same = picture.height === this.picture.height && picture.width === this.picture.width;
    this.picture = { ...picture, rgb: picture.rgb.slice() };
    if (!same) this.mask = noMask(picture);
    this.guess = null;
    this.results = {}; // they are of what was there before
  }

  step(from, to) {
    const state = from.pop();
    if (!state) return false;
    to.push({ picture: this.picture, mask: this.mask });
    const { rgb } = state.picture, now = this.picture.rgb;
    if (rgb.length !== now.length || rgb.some((level, i) => level !== now[i])) Object.assign(this, { guess: null, results: {} });
    Object.assign(this, state);
    return true;
  }

  undo() { return this.step(this.done, this.undone); }
  redo() { return this.step(this.undone, this.done); }
}

// What came of one run.
export class Result {
  constructor(asked, work) {
    Object.assign(this, { asked, input: work.picture, mask: work.mask, info: null, frames: [], points: [], shown: 0, probs: null });
  }

  add(frame) {
    const follows = this.shown >= this.frames.length - 1;
    this.frames.push(frame);
    this.points.push({ step: frame.step, objective: frame.objective, confidence: frame.confidence });
    if (this.frames.length * frame.picture.rgb.length > MOST_FRAME_BYTES) {
      this.frames = this.frames.filter((_, i) => i % 2 === 0 || i === this.frames.length - 1);
    }
    if (follows) this.shown = this.frames.length - 1;
  }

  get frame() { return this.frames[this.shown]; }
  get last() { return this.frames[this.frames.length - 1]; }
}

export const state = {
  tab: "paint",
  pictures: [],
  seeds: [],
  at: { pictures: 0, seeds: 0 },
  sketch: new Work("sketch", blank(facts.imageSize, facts.imageSize)),
  options: Object.fromEntries(facts.tabs.map((tab) => [tab, {}])), // by tab: what a person has set
  classes: {}, // by tab: the text of the class control
  what: "class",
  tool: "brush",
  brush: 8,
  colour: "#1a5fb4",
  size: "square", // at which new pictures are worked on
  zoom: 0, // 0: as large as fits
  wipe: 0,
  showsOriginal: false,
  saved: null, // {folder, command, of: the result}
  run: null, // {controller, result, started}
  status: "",
};

export const strip = () => (state.tab === "generate" ? "seeds" : "pictures");
export const work = () => (state.tab === "sketch" ? state.sketch : state[strip()][state.at[strip()]] ?? null);
export const result = () => work()?.results[state.tab] ?? null;
export const isMasked = (tab = state.tab) => tab === "paint" || tab === "inpaint";
export const isPainted = () => isMasked() || state.tab === "sketch";

const views = [];
let isDue = false;
export const onChange = (view) => views.push(view);
export function draw() {
  isDue = false;
  for (const view of views) view();
}
export function touch() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { if (isDue) draw(); });
}
