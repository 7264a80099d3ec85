// Pictures that people bring: chosen, dropped, pasted, or taken by the camera. The studio decodes them.

import { complain } from "./controls.js";
import { guess } from "./runs.js";
import { Work, onChange, state, touch, work } from "./state.js";
import { show } from "./pixels.js";
import { facts, post, whole } from "./wire.js";

const byId = (id) => document.getElementById(id);

async function decoded(file, side, square) {
  if (file.size > facts.mostFileBytes) {
    throw new Error(`image: ${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB; at most ${Math.floor(facts.mostFileBytes / 2 ** 20)} are taken`);
  }
  const { json, bytes } = await whole(await post("/image", { name: file.name || "image", side, square }, [file]));
  return { picture: { height: json.height, width: json.width, rgb: bytes[0] }, was: json.was, isCropped: json.cropped };
}

const sizes = [...new Set([64, 128, 224, 256, 384, 512])].filter((side) => side > facts.imageSize && side <= facts.mostSide);
byId("size").replaceChildren(
  new Option(`${facts.imageSize} × ${facts.imageSize} (as seen)`, "square"),
  ...sizes.map((side) => new Option(`whole, up to ${side}`, side)),
);

const sideOf = (choice) => (choice === "square" ? [Math.min(facts.imageSize, facts.mostSide), true] : [Number(choice), false]);

export async function bring(files) {
  const images = [...files];
  if (!images.length) return;
  if (state.tab === "generate") state.tab = "refine";
  complain(null);
  for (const file of images) {
    byId("pictures-box").setAttribute("aria-busy", "true");
    try {
      const choice = state.size;
      const { picture, was, isCropped } = await decoded(file, ...sideOf(choice));
      const here = new Work(file.name || "pasted", picture, { file, was, isCropped, choice });
      if (state.tab === "sketch") {
        state.sketch.replace(picture);
        delete state.sketch.results.sketch;
      } else {
        state.pictures.push(here);
        state.at.pictures = state.pictures.length - 1;
        guess(here);
      }
    } catch (error) {
      complain(error.message);
    }
    byId("pictures-box").removeAttribute("aria-busy");
    touch();
  }
}

byId("size").addEventListener("change", async () => {
  const here = work(), choice = byId("size").value;
  state.size = choice;
  if (!here?.file) return touch();
  try {
    const { picture, was, isCropped } = await decoded(here.file, ...sideOf(choice));
    here.replace(picture);
    Object.assign(here, { was, isCropped, choice, first: here.picture, results: {} });
    guess(here);
  } catch (error) {
    complain(error.message);
  }
  touch();
});

async function loadMask(file) {
  const here = work();
  complain(null);
  try {
    const { picture } = await decoded(file, facts.mostSide, false);
    const { height, width } = here.picture;
    if (picture.height !== height || picture.width !== width) {
      throw new Error(`mask: ${file.name} is ${picture.width}x${picture.height}, the image is ${width}x${height}; they must be equal`);
    }
    here.remember();
    for (let i = 0; i < here.mask.length; i++) {
      here.mask[i] = picture.rgb[3 * i] + picture.rgb[3 * i + 1] + picture.rgb[3 * i + 2] >= 382.5 ? 255 : 0;
    }
  } catch (error) {
    complain(error.message);
  }
  touch();
}

byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => { bring(event.target.files); event.target.value = ""; });
byId("mask-load").addEventListener("click", () => byId("mask-file").click());
byId("mask-file").addEventListener("change", (event) => { if (event.target.files[0]) loadMask(event.target.files[0]); event.target.value = ""; });

addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  bring(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    bring(event.clipboardData.files);
  }
});

let stream = null;
function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("viewfinder").hidden = true;
  byId("camera").focus();
}
byId("camera").addEventListener("click", async () => {
  complain(null);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("video").srcObject = stream;
    byId("viewfinder").hidden = false;
    byId("snap").focus();
  } catch (error) {
    complain(`camera: cannot be had (${error.message ?? error.name}); choose a file instead`);
  }
});
byId("no-snap").addEventListener("click", closeCamera);
byId("snap").addEventListener("click", async () => {
  const video = byId("video");
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  closeCamera();
  bring([new File([blob], "camera.png", { type: "image/png" })]);
});

// What the page opens with.
export async function openFirst() {
  const { json, bytes } = await whole(await post("/first", {}));
  const here = new Work("photograph", { height: json.height, width: json.width, rgb: bytes[0] }, { credit: json.credit, choice: "square" });
  here.mask = bytes[1];
  state.pictures.push(here);
  Object.assign(state.options.paint, json.options);
  state.classes = { paint: facts.classNames[json.label], translate: facts.classNames[json.label], sketch: facts.classNames[json.label], generate: facts.classNames[json.label] };
  guess(here);
}

function tile(here, isChosen, choose) {
  const button = Object.assign(document.createElement("button"), { type: "button", title: here.name });
  const canvas = document.createElement("canvas");
  const done = here.results[state.tab];
  show(canvas, done?.frame?.picture ?? here.picture);
  const name = Object.assign(document.createElement("span"), { textContent: here.name });
  button.append(canvas, name);
  button.setAttribute("aria-pressed", isChosen);
  button.addEventListener("click", choose);
  return button;
}

let drawn = "";
onChange(() => {
  const name = state.tab === "generate" ? "seeds" : "pictures", all = state[name];
  byId("size").value = work()?.file ? work().choice : state.size;
  const now = JSON.stringify([name, state.at[name], state.tab, all.map((one) => [one.name, one.picture.rgb.length, state.run ? "" : one.results[state.tab]?.frame?.step, one.done.length, one.undone.length, one.seed, one.label])]);
  if (now === drawn) return;
  const focused = [...byId("pictures").children].indexOf(document.activeElement);
  drawn = now;
  byId("pictures").replaceChildren(...all.map((here, i) => tile(here, i === state.at[name], () => { if (!state.run) { state.at[name] = i; touch(); } })));
  if (focused >= 0) byId("pictures").children[focused]?.focus();
});

onChange(() => {
  const here = work();
  if (!here) return;
  const { height, width } = here.picture, size = facts.imageSize;
  const was = here.was ? ` (was ${here.was[1]} × ${here.was[0]}${here.isCropped ? ", its middle" : ""}${here.was[0] * here.was[1] > height * width ? ", made smaller" : ""})` : "";
  byId("caption").textContent = `${here.credit ? `${here.credit} · ` : ""}${width} × ${height} px${was} · the classifier sees ${size} × ${size} px`;
});

