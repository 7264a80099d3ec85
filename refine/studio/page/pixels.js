// Pictures {height, width, rgb} and masks (a byte for each pixel, 0 or 255) as typed arrays. Canvases only show them: what
// is read back from a canvas may have been changed by the browser.

export const blank = (height, width, level = 255) => ({ height, width, rgb: new Uint8Array(3 * height * width).fill(level) });
export const noMask = (picture) => new Uint8Array(picture.height * picture.width);

export function show(canvas, picture) {
  const { height, width, rgb } = picture;
  const rgba = new Uint8ClampedArray(4 * height * width).fill(255);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    rgba[i] = rgb[j];
    rgba[i + 1] = rgb[j + 1];
    rgba[i + 2] = rgb[j + 2];
  }
  setSize(canvas, height, width);
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
}

// The mask's edge and, unless a result is to be seen below it, its area. Small images have theirs drawn finer than a pixel.
export function showMask(canvas, mask, { height, width }, isFilled) {
  const k = Math.max(1, Math.floor(512 / Math.max(height, width)));
  const thick = Math.max(1, Math.round(k / 6));
  setSize(canvas, height * k, width * k);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width * k, height * k);
  const isIn = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] > 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      if (isFilled) {
        let end = x;
        if (!isIn(x - 1, y)) {
          while (isIn(end + 1, y)) end++;
          context.fillStyle = "rgb(255 40 120 / 30%)";
          context.fillRect(x * k, y * k, (end + 1 - x) * k, k);
        }
      }
      context.fillStyle = "rgb(255 40 120)";
      if (!isIn(x - 1, y)) context.fillRect(x * k, y * k, thick, k);
      if (!isIn(x + 1, y)) context.fillRect((x + 1) * k - thick, y * k, thick, k);
      if (!isIn(x, y - 1)) context.fillRect(x * k, y * k, k, thick);
      if (!isIn(x, y + 1)) context.fillRect(x * k, (y + 1) * k - thick, k, thick);
    }
  }
}

function setSize(canvas, height, width) {
  if (canvas.height !== height) canvas.height = height;
  if (canvas.width !== width) canvas.width = width;
}

// Enlarged to the other's size, every pixel as a block.
export function asLarge(picture, other) {
  if (picture.height === other.height && picture.width === other.width) return picture;
  const large = blank(other.height, other.width);
  for (let y = 0, to = 0; y < large.height; y++) {
    const row = Math.floor((y * picture.height) / large.height) * picture.width;
    for (let x = 0; x < large.width; x++, to += 3) {
      const from = 3 * (row + Math.floor((x * picture.width) / large.width));
      large.rgb.set(picture.rgb.subarray(from, from + 3), to);
    }
  }
  return large;
}

// The left `share` (0 to 1) of one picture, the rest of the other, of the same size.
export function wiped(left, right, share) {
  const until = Math.round(share * right.width);
  if (until === 0) return right;
  const both = { ...right, rgb: right.rgb.slice() };
  for (let y = 0; y < right.height; y++) {
    const row = 3 * y * right.width;
    both.rgb.set(left.rgb.subarray(row, row + 3 * until), row);
  }
  return both;
}

// Calls put(index) for each pixel of a round brush on the way from one point to another.
export function stroke(height, width, from, to, size, put) {
  const radius = size / 2;
  const count = Math.max(1, Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)));
  for (let k = 0; k <= count; k++) {
    const cx = from.x + ((to.x - from.x) * k) / count, cy = from.y + ((to.y - from.y) * k) / count;
    if (size <= 1) {
      const x = Math.floor(cx), y = Math.floor(cy);
      if (x >= 0 && y >= 0 && x < width && y < height) put(y * width + x);
      continue;
    }
    for (let y = Math.max(0, Math.floor(cy - radius)); y <= Math.min(height - 1, Math.ceil(cy + radius)); y++) {
      for (let x = Math.max(0, Math.floor(cx - radius)); x <= Math.min(width - 1, Math.ceil(cx + radius)); x++) {
        if ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius ** 2) put(y * width + x);
      }
    }
  }
}

// Colours the area of one colour around a point.
export function fill(picture, at, colour) {
  const { height, width, rgb } = picture;
  const first = Math.floor(at.y) * width + Math.floor(at.x);
  const old = rgb.slice(3 * first, 3 * first + 3);
  const isOld = (i) => rgb[3 * i] === old[0] && rgb[3 * i + 1] === old[1] && rgb[3 * i + 2] === old[2];
  if (old.every((level, c) => level === colour[c])) return;
  const left = [first];
  while (left.length) {
    const i = left.pop();
    if (!isOld(i)) continue;
    rgb.set(colour, 3 * i);
    const x = i % width;
    if (x > 0) left.push(i - 1);
    if (x < width - 1) left.push(i + 1);
    if (i >= width) left.push(i - width);
    if (i < width * (height - 1)) left.push(i + width);
  }
}

export const colourOf = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// A PNG (W3C PNG, 3rd edition) without the help of a canvas: header, deflated rows without filters, end.
export async function png(picture) {
  const { height, width, rgb } = picture;
  const rows = new Uint8Array(height * (3 * width + 1));
  for (let y = 0; y < height; y++) rows.set(rgb.subarray(3 * width * y, 3 * width * (y + 1)), y * (3 * width + 1) + 1);
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const deflated = new Uint8Array(await new Response(packed).arrayBuffer());
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([8, 2], 8);
  const begin = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  return new Blob([begin, chunk("IHDR", header), chunk("IDAT", deflated), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

function chunk(kind, content) {
  const whole = new Uint8Array(12 + content.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, content.length);
  whole.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  whole.set(content, 8);
  view.setUint32(8 + content.length, crc(whole.subarray(4, 8 + content.length)));
  return whole;
}

function crc(bytes) {
  let c = -1;
  for (const byte of bytes) {
    c ^= byte;
    for (let k = 0; k < 8; k++) c = (c >>> 1) ^ (0xedb88320 & -(c & 1));
  }
  return ~c >>> 0;
}

export const maskPicture = (mask, height, width) => {
  const picture = blank(height, width, 0);
  mask.forEach((level, i) => picture.rgb.fill(level, 3 * i, 3 * i + 3));
  return picture;
};
