// What leaves the page: the folder on the studio's machine, a PNG, a GIF, a mask.

import { complain } from "./controls.js";
import { maskPicture, png } from "./pixels.js";
import { isMasked, onChange, result, state, touch, work } from "./state.js";
import { facts, post } from "./wire.js";

const byId = (id) => document.getElementById(id);
const MOST_GIF_FRAMES = 60;

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export async function save() {
  const done = result(), frame = done?.frame;
  if (state.run) return;
  if (!frame) return complain("result: there is none yet; run first");
  if (state.tab !== "explain" && frame.step === 0) return complain("step: at step 0 nothing has been done yet; choose a later one");
  complain(null);
  const { info, asked, input, mask } = done;
  const isSeed = asked.tab === "generate";
  const options = asked.tab === "explain" ? {} : { ...asked.options, eps: info.eps, step_size: info.step_size, steps: frame.step };
  const request = {
    ...asked, options, label: info.label, step: frame.step,
    height: isSeed ? 0 : input.height, width: isSeed ? 0 : input.width,
    result_height: frame.picture.height, result_width: frame.picture.width,
  };
  const parts = [...(isSeed ? [] : [input.rgb]), ...(isMasked(asked.tab) ? [mask] : []), frame.picture.rgb];
  try {
    const said = await (await post("/save", request, parts)).json();
    state.saved = { ...said, of: done };
  } catch (error) {
    complain(error.message);
  }
  touch();
}

async function saveGif() {
  const frames = result()?.frames ?? [];
  if (frames.length < 2) return complain("gif: there are no steps yet; run first");
  complain(null);
  const { height, width } = frames[0].picture;
  const most = Math.max(2, Math.min(MOST_GIF_FRAMES, Math.floor(facts.mostGifBytes / (3 * height * width))));
  const count = Math.min(most, frames.length);
  const chosen = Array.from({ length: count }, (_, k) => frames[Math.round((k * (frames.length - 1)) / (count - 1))]);
  try {
    const request = { height, width, steps: chosen.map((frame) => frame.step), name: result().info.name };
    download(await (await post("/gif", request, chosen.map((frame) => frame.picture.rgb))).blob(), `${state.tab}.gif`);
  } catch (error) {
    complain(error.message);
  }
}

onChange(() => {
  const saved = state.saved?.of === result() ? state.saved : null;
  byId("saved").textContent = saved ? `Saved in ${saved.folder}` : "A folder on the studio's machine, with the command that makes the picture again.";
  byId("command-box").hidden = !saved;
  if (saved) byId("command").value = saved.command;
});

byId("save").addEventListener("click", save);
byId("gif").addEventListener("click", saveGif);
byId("download").addEventListener("click", async () => {
  const here = work(), picture = result()?.frame?.picture ?? here?.picture;
  if (picture) download(await png(picture), `${state.tab}.png`);
});
byId("mask-save").addEventListener("click", async () => {
  const { mask, picture } = work();
  download(await png(maskPicture(mask, picture.height, picture.width)), "mask.png");
});
byId("copy").addEventListener("click", async () => {
  byId("command").select();
  try {
    await navigator.clipboard.writeText(byId("command").value);
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
  } catch { /* it is selected: Ctrl-C copies it */ }
});
