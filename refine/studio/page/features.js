// The features that go best with a class, each with the images that excite it most.

import { show } from "./pixels.js";
import { classIndex } from "./controls.js";
import { onChange, state, touch } from "./state.js";
import { facts, post, whole } from "./wire.js";

const byId = (id) => document.getElementById(id);
let shownFor = null; // the class that the list is of

async function list() {
  const text = byId("feature-class").value || state.classes.paint || facts.classNames[0];
  const label = classIndex(text);
  if (label === shownFor || label === null || label === undefined) return;
  shownFor = label;
  byId("features-hint").textContent = "Looking…";
  try {
    const { json, bytes } = await whole(await post("/features", { label, count: 24 }));
    if (shownFor !== label) return;
    byId("features").replaceChildren(...json.features.map((feature, i) => row(feature, i, json, bytes[0])));
    byId("features-hint").textContent = `${facts.features} features; those that go best with ${facts.classNames[label]}, each with the images that excite it most.`;
  } catch (error) {
    byId("features").replaceChildren();
    byId("features-hint").textContent = error.message;
  }
  touch();
}

function row(feature, i, { images, height, width }, bytes) {
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "feature-choice", value: feature.feature });
  radio.addEventListener("change", () => { byId("feature").value = radio.value; touch(); });
  const canvas = document.createElement("canvas");
  const size = 3 * height * width, strip = { height, width: width * images, rgb: new Uint8Array(size * images) };
  for (let k = 0; k < images; k++) {
    for (let y = 0; y < height; y++) {
      const from = (i * images + k) * size + 3 * width * y;
      strip.rgb.set(bytes.subarray(from, from + 3 * width), 3 * (y * strip.width + k * width));
    }
  }
  show(canvas, strip);
  const words = feature.classes.map(([name, tied]) => `${name} ${tied.toFixed(2)}`).join(", ");
  label.append(radio, Object.assign(document.createElement("span"), { textContent: `${feature.feature}: ${words}` }), canvas);
  return label;
}

byId("feature-class").addEventListener("change", list);
byId("feature").addEventListener("input", touch);
onChange(() => {
  if (state.tab === "paint" && state.what === "feature") list();
  for (const radio of document.querySelectorAll("[name=feature-choice]")) radio.checked = radio.value === byId("feature").value;
});
