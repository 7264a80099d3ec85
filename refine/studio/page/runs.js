// Runs: what is asked of the studio, the frames as they come, and their chart.

import { Result, draw, isMasked, onChange, result, state, strip, touch, work } from "./state.js";
import { asked, complain } from "./controls.js";
import { messages, post } from "./wire.js";

const byId = (id) => document.getElementById(id);
const parts = (ask, input, mask) => (ask.tab === "generate" ? [] : [input.rgb, ...(isMasked(ask.tab) ? [mask] : [])]);

export async function run(here = work()) {
  if (state.run || !here) return false;
  const ask = asked(here);
  if (!ask) return false;
  const done = new Result(ask, here);
  const controller = new AbortController();
  const tab = state.tab;
  state.run = { controller };
  state.wipe = 0;
  complain(null);
  say("waiting", "Waiting for the studio…");
  for (const other of [...state.pictures, ...state.seeds, state.sketch]) forgetFrames(other, tab, here);
  here.results[tab] = done;
  try {
    const input = tab === "explain" ? explained(here) : here.picture;
    done.input = input;
    for await (const one of messages(await post("/run", { ...ask, height: tab === "generate" ? 0 : input.height, width: tab === "generate" ? 0 : input.width }, parts(ask, input, here.mask), controller.signal))) {
      if (one.json?.ahead !== undefined) say("waiting", one.json.ahead ? `${one.json.ahead} before you` : "Your turn…");
      else if (one.json?.probs) done.probs = one.json.probs;
      else if (one.json && !one.json.done) done.info = one.json;
      if (one.frame) {
        if (done.frames.length === 0) done.began = performance.now();
        done.add(one.frame);
        if (tab === "generate") { here.picture = done.frames[0].picture; done.input = here.picture; }
        progress(done);
      }
      if (one.json?.done) done.isWhole = true;
    }
    if (!done.isWhole) throw new Error("The studio broke the run off.");
    if (tab === "explain") await explainBefore(here, done, controller.signal);
    end("done", done.info.steps === undefined ? "" : finished(done));
    return true;
  } catch (error) {
    if (!done.frames.length) delete here.results[tab];
    if (error.name === "AbortError") end("stopped", `Stopped at step ${done.last?.step ?? 0}.`);
    else {
      complain(error.message);
      end("failed", "");
    }
    return false;
  }
}

// Explain looks at what is shown: the latest result of any tab, else the image; and, to compare, at the image as it came.
function explained(here) {
  const latest = Object.entries(here.results).filter(([tab, one]) => tab !== "explain" && one.frame).map(([, one]) => one.frame.picture);
  return latest.at(-1) ?? here.picture;
}

async function explainBefore(here, done, signal) {
  done.before = null;
  if (here.first === done.input) return;
  const ask = { tab: "explain", height: here.first.height, width: here.first.width, label: done.info.label };
  for await (const one of messages(await post("/run", ask, [here.first.rgb], signal))) if (one.json?.probs) done.before = one.json.probs;
}

// What the classifier sees in a new image, asked quietly.
export async function guess(here) {
  if (here.guess || here.isGuessing) return;
  here.isGuessing = true;
  const picture = here.picture;
  try {
    for await (const one of messages(await post("/run", { tab: "explain", height: picture.height, width: picture.width }, [picture.rgb]))) {
      if (one.json?.probs && here.picture.rgb.length === picture.rgb.length) {
        const best = one.json.probs.indexOf(Math.max(...one.json.probs));
        here.guess = { label: best, probability: one.json.probs[best] };
      }
    }
  } catch { /* it is only a hint; a run says what is wrong */ }
  here.isGuessing = false;
  touch();
}

export function stop() {
  state.isStoppingAll = true;
  state.run?.controller.abort();
}

export async function runAll() {
  const name = strip();
  state.isStoppingAll = false;
  for (let i = 0; i < state[name].length; i++) {
    state.at[name] = i;
    touch();
    if (!(await run()) || state.isStoppingAll) return;
  }
}

function forgetFrames(here, tab, current) {
  for (const [name, one] of Object.entries(here.results)) {
    if ((here === current && name === tab) || one.frames.length < 3) continue;
    one.frames = [one.frames[0], one.frame, one.last].filter((frame, i, all) => all.indexOf(frame) === i);
    one.shown = one.frames.length - 1;
  }
}

function say(kind, text) {
  document.body.dataset.state = kind;
  state.status = text;
  touch();
}

// A page that says how a run ended shows its last frame already, even in a tab in the background, which draws nothing by itself.
function end(kind, text) {
  state.run = null;
  say(kind, text);
  draw();
}

const time = (seconds) => (seconds < 0.95 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`);

function progress(done) {
  const { step, seconds } = done.last, { steps } = done.info;
  document.body.dataset.state = "running";
  if (steps === undefined) state.status = "";
  else if (step === 0) state.status = `Step 0 of ${steps}`;
  else {
    const each = seconds / (step + 1);
    state.status = `Step ${step} of ${steps} · ${time(each)} a step · ${time(each * (steps - step))} left`;
  }
  touch();
}

function finished(done) {
  const { steps, name } = done.info, { seconds } = done.last, { feature } = done.asked.options;
  return `${steps} steps ${feature === undefined ? `towards ${name}` : `of feature ${feature}`} in ${time(seconds)}`;
}

onChange(() => {
  const done = result(), here = work();
  const frame = done?.frame, isRunning = state.run !== null;
  document.body.dataset.frames = done?.frames.length ?? 0;
  document.body.dataset.step = frame?.step ?? "";
  byId("status").setAttribute("aria-live", document.body.dataset.state === "running" ? "off" : "polite");
  byId("status").textContent = state.status;
  byId("of-class").textContent = done?.info?.name ?? "the class";
  byId("run").disabled = isRunning || !here;
  byId("stop").disabled = !isRunning;
  byId("keep").disabled = isRunning || !frame || (state.tab !== "explain" && frame.step === 0) || state.tab === "explain" || state.tab === "generate";
  byId("undo").disabled = isRunning || !here?.done.length;
  byId("redo").disabled = isRunning || !here?.undone.length;
  byId("run-all").disabled = byId("run-seeds").disabled = isRunning;
  byId("run-all").hidden = state.pictures.length < 2 || state.tab === "sketch";
  const total = done?.info?.steps ?? 0;
  byId("progress").max = total || 1;
  byId("progress").value = done?.last?.step ?? 0;
  byId("wipe").disabled = !frame;
  byId("wipe").value = state.wipe;
  byId("scrub").max = Math.max(0, (done?.frames.length ?? 1) - 1);
  byId("scrub").value = done?.shown ?? 0;
  byId("scrub").disabled = !done || done.frames.length < 2;
  byId("scrub-value").textContent = frame ? `${frame.step}${total ? ` of ${total}` : ""}` : "–";
  byId("scrub").setAttribute("aria-valuetext", frame ? `step ${frame.step}` : "no steps yet");
  byId("chart-figure").hidden = state.tab === "explain";
  drawChart(done);
});

function drawChart(done) {
  const canvas = byId("chart");
  if (!canvas.clientWidth) return;
  const ratio = devicePixelRatio, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const points = done?.points ?? [], colours = getComputedStyle(document.documentElement);
  const shown = points.find((point) => point.step === done?.frame?.step);
  byId("confidence").textContent = shown ? `${(100 * shown.confidence).toFixed(1)} %` : "–";
  byId("objective").textContent = shown && Number.isFinite(shown.objective) ? shown.objective.toPrecision(3) : "–";
  if (points.length < 1 || done.info?.steps === undefined) {
    canvas.setAttribute("aria-label", "No steps yet");
    context.fillStyle = colours.getPropertyValue("--soft");
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText("Run, and objective and confidence grow here with the steps.", width / 2, height / 2, width - 16 * ratio);
    return;
  }
  const first = points[0], last = points.at(-1), pad = 8 * ratio;
  canvas.setAttribute("aria-label", `Confidence from ${(100 * first.confidence).toFixed(1)} to ${(100 * last.confidence).toFixed(1)} percent, objective from ${first.objective.toPrecision(3)} to ${last.objective.toPrecision(3)}, in ${last.step} steps`);
  const at = (step) => pad + (step / Math.max(1, done.info.steps)) * (width - 2 * pad);
  const low = Math.min(...points.map((p) => p.objective)), high = Math.max(...points.map((p) => p.objective));
  const line = (value, colour, dash) => {
    context.strokeStyle = context.fillStyle = colours.getPropertyValue(colour);
    context.lineWidth = 2 * ratio;
    context.setLineDash(dash.map((length) => length * ratio));
    context.beginPath();
    for (const point of points) context.lineTo(at(point.step), height - pad - value(point) * (height - 2 * pad));
    context.stroke();
    context.setLineDash([]);
    if (shown) {
      context.beginPath();
      context.arc(at(shown.step), height - pad - value(shown) * (height - 2 * pad), 3.5 * ratio, 0, 7);
      context.fill();
    }
  };
  line((point) => point.confidence, "--accent", []);
  line((point) => (high > low ? (point.objective - low) / (high - low) : 0.5), "--second", [5, 4]);
}

export function scrub(to) {
  const done = result();
  if (!done?.frames.length) return;
  done.shown = Math.min(done.frames.length - 1, Math.max(0, to));
  touch();
}
