// From numbers to pixels: histogram, percentiles, colour. No DOM in here but an offscreen canvas.

import { isDiverging, map } from "./colour.js";

const BINS = 1024;
const SAMPLES = 1 << 16;

/** Counts over the image's whole range, from at most 65536 of its pixels; and these in order, because one hot pixel leaves the others a bin. */
export function histogram(image) {
  const { data, offset, scale } = image;
  const step = Math.max(1, Math.floor(data.length / SAMPLES)) | 1;
  const sorted = new data.constructor(Math.ceil(data.length / step));
  for (let i = 0; i < sorted.length; i++) sorted[i] = data[i * step];
  sorted.sort();
  const low = sorted[0], high = sorted[sorted.length - 1];
  const counts = new Uint32Array(BINS);
  const per = high > low ? (BINS - 1) / (high - low) : 0;
  for (const number of sorted) counts[Math.round((number - low) * per)]++;
  return { counts, sorted, offset, scale, low: offset + scale * low, high: offset + scale * high };
}

/** The value below which `percent` of the pixels are. */
export function percentile({ sorted, offset, scale }, percent) {
  const at = Math.ceil((percent / 100) * sorted.length) - 1;
  return offset + scale * sorted[Math.max(0, Math.min(sorted.length - 1, at))];
}

export function value(image, x, y) {
  return image.offset + image.scale * image.data[y * image.width + x];
}

/** Colour the image into a canvas of its own size. `window` is [black, white] in counts. */
export function paint(image, canvas, name, [black, white]) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  const context = canvas.getContext("2d");
  const target = context.createImageData(image.width, image.height);
  const pixels = new Uint32Array(target.data.buffer);
  const colours = map(name);
  const { data } = image;
  const per = (255 * image.scale) / (white - black || 1e-30);
  const from = (black - image.offset) / image.scale;
  if (data instanceof Uint16Array) {
    const table = new Uint32Array(65536);
    for (let i = 0; i < 65536; i++) table[i] = colours[Math.max(0, Math.min(255, (i - from) * per + 0.5)) | 0];
    for (let i = 0; i < data.length; i++) pixels[i] = table[data[i]];
  } else {
    for (let i = 0; i < data.length; i++) pixels[i] = colours[Math.max(0, Math.min(255, (data[i] - from) * per + 0.5)) | 0];
  }
  context.putImageData(target, 0, 0);
}

/** [black, white]: from percentiles; a diverging map is centred on the median; `width` in counts may be given from outside. */
export function windowOf(histogram, name, low, high, width = null) {
  let black = percentile(histogram, low), white = percentile(histogram, high);
  if (isDiverging(name)) {
    const middle = percentile(histogram, 50);
    const half = width === null ? Math.max(middle - black, white - middle, 1e-12) : width / 2;
    return [middle - half, middle + half];
  }
  return width === null ? [black, Math.max(white, black + 1e-12)] : [black, black + width];
}

/** A round length in about a fifth of the width: [length in units, text]. */
export function scaleBar(widthPx, pixelSizeNm) {
  const unit = pixelSizeNm ? widthPx * pixelSizeNm : widthPx;
  const wish = unit / 4.5, power = 10 ** Math.floor(Math.log10(wish));
  const length = power * [5, 2, 1].find((step) => step * power <= wish);
  return [length / (pixelSizeNm || 1), `${+length.toPrecision(3)} ${pixelSizeNm ? "nm" : "px"}`];
}
