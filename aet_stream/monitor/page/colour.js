// Colour maps as 256 packed pixels; each from a few stops, linear in sRGB between them.

const STOPS = {
  grey: ["#000000", "#ffffff"],
  // viridis (van der Walt and Smith, CC0), every sixteenth part
  viridis: ["#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e", "#1f988b", "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"],
  inferno: ["#000004", "#140b34", "#390963", "#5f136e", "#85216b", "#a92e5e", "#cb4149", "#e65d2f", "#f78212", "#fcad11", "#f6d746", "#fcffa4"],
  "blue-white-red": ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"],
  "blue-black-red": ["#9eb0ff", "#5aa0dd", "#2d7597", "#1a4155", "#11202a", "#120c0b", "#32120a", "#5c2216", "#94523f", "#cb8a7d", "#ffacac"],
};

export const MAPS = Object.keys(STOPS);

const made = {};

/** (256) Uint32, ABGR as ImageData has it in memory. */
export function map(name) {
  if (!made[name]) {
    const stops = STOPS[name].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    made[name] = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(at), stops.length - 2);
      const [r, g, b] = [0, 1, 2].map((c) => Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c])));
      made[name][i] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
  }
  return made[name];
}

export const isDiverging = (name) => name.startsWith("blue-");
