// The image on the page: zoom, wipe, mask, and the brush of a mouse, a finger, a pen or the keyboard.

import { asLarge, colourOf, fill, show, showMask, stroke, wiped } from "./pixels.js";
import { isMasked, isPainted, onChange, result, state, touch, work } from "./state.js";

const byId = (id) => document.getElementById(id);
const image = byId("image"), overlay = byId("overlay"), cursor = byId("cursor"), stage = byId("stage");
let at = null; // where the brush is, in pixels of the image
let pen = null; // {from, before} while it is down

function shownPicture() {
  const here = work(), done = result();
  if (!here) return null;
  const frame = done?.frame;
  if (!frame) return here.picture;
  const before = asLarge(done.input, frame.picture);
  return state.showsOriginal ? before : wiped(before, frame.picture, state.wipe / 100);
}

// Small images grow by whole device pixels, so that each of theirs is a square; large ones shrink smoothly.
function scale(picture) {
  const room = Math.min(stage.clientWidth - 16, stage.clientHeight - 16);
  const fits = Math.min(room / picture.width, room / picture.height);
  const whole = (factor) => Math.max(1, Math.floor(factor * devicePixelRatio)) / devicePixelRatio;
  if (state.zoom) return state.zoom;
  return fits >= 1 / devicePixelRatio ? whole(fits) : fits;
}

export function zoom(way) {
  const picture = shownPicture();
  if (!picture) return;
  const step = 1 / devicePixelRatio, now = scale(picture);
  const next = way > 0 ? Math.max(now + step, Math.round(now * 1.5)) : Math.min(now - step, Math.round(now / 1.5));
  state.zoom = way === 0 ? 0 : Math.min(64, Math.max(step, next));
  touch();
}

onChange(() => {
  const picture = shownPicture(), here = work();
  byId("frame").classList.toggle("loading", !picture);
  document.body.classList.toggle("paints", isPainted());
  if (!picture) {
    image.style.width = image.style.height = "0";
    overlay.hidden = cursor.hidden = true;
    return;
  }
  show(image, picture);
  const factor = scale(picture);
  for (const canvas of [image, overlay]) {
    canvas.style.width = `${picture.width * factor}px`;
    canvas.style.height = `${picture.height * factor}px`;
    canvas.style.imageRendering = factor * devicePixelRatio >= 1 ? "pixelated" : "auto";
  }
  document.body.dataset.painted = isMasked() ? here.mask.reduce((sum, level) => sum + (level > 0), 0) : "";
  overlay.hidden = !isMasked() || state.showsOriginal || state.run !== null;
  if (!overlay.hidden) showMask(overlay, here.mask, here.picture, !result()?.frame);
  showCursor(factor * (picture.width / here.picture.width));
  const tab = byId(`tab-${state.tab}`).textContent;
  const frame = result()?.frame;
  image.setAttribute("aria-label", `${tab}: ${here.name}, ${picture.width} by ${picture.height} pixels${frame ? `, step ${frame.step}` : ""}`);
});

function showCursor(factor) {
  cursor.hidden = !at || !isPainted();
  if (cursor.hidden) return;
  const size = state.tool === "fill" ? 1 : state.brush;
  cursor.style.width = cursor.style.height = `${Math.max(3, size * factor)}px`;
  cursor.style.left = `${at.x * factor}px`;
  cursor.style.top = `${at.y * factor}px`;
}

function pointOf(event) {
  const box = image.getBoundingClientRect(), { height, width } = work().picture;
  return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
}

function penDown(point) {
  if (!isPainted() || state.run) return;
  const here = work();
  here.remember();
  delete here.results[state.tab === "sketch" ? "sketch" : ""]; // a drawing that goes on is no longer what was run
  pen = { from: point, last: point, base: here.picture.rgb };
  if (state.tool === "fill" && state.tab === "sketch") fill(here.picture, clipped(point), colourOf(state.colour));
  else draw(point, point);
}

const clipped = (point) => {
  const { height, width } = work().picture;
  return { x: Math.min(width - 1, Math.max(0, point.x)), y: Math.min(height - 1, Math.max(0, point.y)) };
};

function draw(from, to) {
  const here = work(), { height, width } = here.picture;
  const erases = state.tool === "eraser";
  if (state.tab === "sketch") {
    if (state.tool === "line") here.picture.rgb = pen.base.slice();
    const colour = erases ? [255, 255, 255] : colourOf(state.colour);
    stroke(height, width, state.tool === "line" ? pen.from : from, to, state.brush, (i) => here.picture.rgb.set(colour, 3 * i));
  } else {
    stroke(height, width, from, to, state.brush, (i) => { here.mask[i] = erases ? 0 : 255; });
  }
  touch();
}

function penMoved(point) {
  at = point;
  if (pen && state.tool !== "fill") draw(pen.last, point);
  if (pen) pen.last = point;
  touch();
}

image.addEventListener("pointerdown", (event) => {
  if (!isPainted() || !work() || !event.isPrimary || (event.pointerType === "mouse" && event.button !== 0)) return;
  event.preventDefault();
  image.focus({ preventScroll: true, focusVisible: false });
  image.setPointerCapture(event.pointerId);
  at = pointOf(event);
  penDown(at);
});
image.addEventListener("pointermove", (event) => {
  if (!isPainted() || !work() || !event.isPrimary) return;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const one of steps.length ? steps : [event]) penMoved(pointOf(one));
});
for (const kind of ["pointerup", "pointercancel"]) image.addEventListener(kind, () => { pen = null; touch(); });
image.addEventListener("pointerleave", () => { if (!pen) { at = null; touch(); } });

// By keyboard: arrows move the brush, P is the pen.
image.addEventListener("keydown", (event) => {
  if (!isPainted() || !work() || event.ctrlKey || event.metaKey || event.altKey) return;
  const { height, width } = work().picture, far = event.shiftKey ? 8 : 1;
  const way = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
  if (way) {
    at ??= { x: width / 2, y: height / 2 };
    penMoved({ x: Math.min(width, Math.max(0, at.x + way[0])), y: Math.min(height, Math.max(0, at.y + way[1])) });
  } else if (event.key.toLowerCase() === "p") {
    at ??= { x: width / 2, y: height / 2 };
    if (!event.repeat) penDown(at);
  } else return;
  event.preventDefault();
  event.stopPropagation();
});
image.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "p") { pen = null; touch(); }
});
image.addEventListener("blur", () => { pen = null; at = null; touch(); });
addEventListener("resize", touch);
