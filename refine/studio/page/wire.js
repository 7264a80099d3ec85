// Speaks with the studio's server: what is asked, and the stream of messages that answers.

export const facts = JSON.parse(document.getElementById("facts").textContent);
facts.classIndex = new Map(facts.classNames.map((name, i) => [name.toLowerCase(), i]));

class Problem extends Error {}

// Four bytes of length, as many of JSON, and the parts behind it.
function packed(json, parts) {
  const text = new TextEncoder().encode(JSON.stringify(json));
  return new Blob([new Uint32Array([text.length]), text, ...parts]);
}

export async function post(path, json, parts = [], signal = undefined) {
  const headers = { "Content-Type": "application/octet-stream", "X-Studio-Token": facts.token };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: packed(json, parts), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The studio does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({ error: `the studio answered ${response.status}` }));
  if (response.status === 403) said.error += " (what is on this page is lost then: save it first, if you can)";
  throw new Problem(said.error);
}

// The messages of an answer as they come: {json}, {frame} or {bytes}. A frame's pixels are RGB, a row after the other.
export async function* messages(response) {
  const reader = response.body.getReader();
  let buffer = new Uint8Array(0);
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The studio has stopped answering.");
    }
    if (part.done) break;
    const joined = new Uint8Array(buffer.length + part.value.length);
    joined.set(buffer);
    joined.set(part.value, buffer.length);
    buffer = joined;
    let at = 0;
    for (; buffer.length - at >= 5;) {
      const length = new DataView(buffer.buffer, at).getUint32(0, true);
      if (buffer.length - at < 4 + length) break;
      yield message(String.fromCharCode(buffer[at + 4]), buffer.slice(at + 5, at + 4 + length));
      at += 4 + length;
    }
    buffer = buffer.slice(at);
  }
}

function message(kind, content) {
  if (kind === "B") return { bytes: content };
  if (kind === "F") return { frame: frame(content) };
  const json = JSON.parse(new TextDecoder().decode(content));
  if (json.error) throw new Problem(json.error);
  return { json };
}

function frame(content) {
  const head = new DataView(content.buffer);
  return {
    step: head.getUint32(0, true),
    objective: head.getFloat32(4, true),
    confidence: head.getFloat32(8, true),
    seconds: head.getFloat32(12, true),
    picture: { height: head.getUint16(16, true), width: head.getUint16(18, true), rgb: content.subarray(20) },
  };
}

// All of a short answer: its JSON, merged, and its bytes in order.
export async function whole(response) {
  const all = { json: {}, bytes: [] };
  for await (const one of messages(response)) {
    if (one.json) Object.assign(all.json, one.json);
    if (one.bytes) all.bytes.push(one.bytes);
  }
  return all;
}
