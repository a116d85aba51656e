// Spheres drawn by the processor: no WebGL, because the computers beside microscopes often have no graphics to speak of, or are looked at from afar.
//
// A sphere of one size looks the same everywhere: it is made once, as a list of pixels with their height and their brightness, and put down for
// every atom where it is nearer to the eye than what is there. Atoms are put down from front to back; now and then it is noted, for tiles of the
// image, behind which depth nothing can be seen any more, and atoms that lie there are passed over: most of them, in a particle.

const SHADES = 32, DEPTHS = 16, BUCKETS = 1024, TILE_BITS = 3, TILE = 1 << TILE_BITS, ROUNDS = 24, SMALLEST_PX = 0.6, FARTHEST = 0.45;
const LIGHT = [-0.45, 0.6, 0.66]; // from the upper left, behind the eye

/** Pixels of a sphere of this radius in an image of this stride: [offset, height, shade] of each. */
function sphere(radius, stride) {
  const reach = Math.ceil(radius), offsets = [], heights = [], shades = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const flat = (x * x + y * y) / (radius * radius);
    if (flat > 1 && (x || y)) continue;
    const z = Math.sqrt(Math.max(0, 1 - flat)), bright = Math.max(0, (LIGHT[0] * x - LIGHT[1] * y) / radius + LIGHT[2] * z);
    offsets.push(y * stride + x);
    heights.push(z * radius);
    shades.push(Math.round((SHADES - 1) * Math.min(1, (0.25 + 0.75 * bright) * (0.55 + 0.45 * z)))); // darker at the limb: a line around each
  }
  return { offsets: Int32Array.from(offsets), heights: Float32Array.from(heights), shades: Uint8Array.from(shades), reach };
}

/** [kind][depth][shade] as packed pixels, from [red, green, blue] of each kind: farther atoms are dimmer. */
function palette(colours) {
  const table = new Uint32Array(colours.length * DEPTHS * SHADES);
  colours.forEach((colour, kind) => {
    for (let depth = 0; depth < DEPTHS; depth++) for (let shade = 0; shade < SHADES; shade++) {
      const dim = (1 - (1 - FARTHEST) * (depth / (DEPTHS - 1))) * (shade / (SHADES - 1)), gloss = 255 * Math.max(0, shade / (SHADES - 1) - 0.88) * 2.2;
      const [r, g, b] = colour.map((value) => Math.min(255, Math.round(value * dim * 1.12 + gloss)));
      table[(kind * DEPTHS + depth) * SHADES + shade] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
  });
  return table;
}

/** Draws (n, 3) places, each of a kind, into images. */
export class Spheres {
  constructor(places, kinds, colours) {
    this.places = places;
    this.kinds = kinds;
    this.count = kinds.length;
    this.colours = palette(colours);
    this.width = this.height = this.margin = 0;
    this.seen = new Float32Array(3 * this.count);
    this.order = new Int32Array(this.count);
    this.counts = new Int32Array(BUCKETS + 1);
  }

  /** `turn`: nine numbers, row by row; `scale`: pixels by unit of length; `radii`: of each kind, in pixels; moved [right, up], in pixels. */
  draw([width, height], turn, scale, radii, [right, up] = [0, 0]) {
    const margin = Math.ceil(Math.max(...radii, 1)) + 1;
    if (width !== this.width || height !== this.height || margin > this.margin || margin < this.margin / 2) this.make(width, height, margin);
    const { stride, image, depths, seen, order } = this;
    image.fill(0);
    depths.fill(-Infinity);
    this.look(turn, scale, width / 2 + right, height / 2 - up);
    const key = `${radii} ${stride}`;
    if (key !== this.made) Object.assign(this, { made: key, spheres: radii.map((radius) => sphere(Math.max(SMALLEST_PX, radius), stride)) });
    const { spheres } = this, edge = this.margin, round = Math.ceil(this.count / ROUNDS);
    this.walls.fill(-Infinity);
    for (let i = 0; i < this.count; i++) {
      if (i && i % round === 0) this.build();
      const atom = order[i], { offsets, heights, shades, reach } = spheres[this.kinds[atom]];
      const x = Math.round(seen[3 * atom]), y = Math.round(seen[3 * atom + 1]), z = seen[3 * atom + 2];
      if (x < -reach || y < -reach || x >= width + reach || y >= height + reach) continue;
      if (this.hidden(x + edge, y + edge, reach, z + reach)) continue;
      const base = (y + edge) * stride + x + edge, colour = this.colour(atom, z);
      for (let k = 0; k < offsets.length; k++) {
        const at = base + offsets[k], nearer = z + heights[k];
        if (nearer > depths[at]) { depths[at] = nearer; image[at] = this.colours[colour + shades[k]]; }
      }
    }
    const out = new ImageData(width, height), pixels = new Uint32Array(out.data.buffer);
    for (let y = 0; y < height; y++) pixels.set(image.subarray((y + edge) * stride + edge, (y + edge) * stride + edge + width), y * width);
    return out;
  }

  /** The depth behind which nothing can be seen in each tile. */
  build() {
    const { walls, tiles, stride, depths } = this;
    for (let row = 0; row < walls.length / tiles; row++) for (let column = 0; column < tiles; column++) {
      let wall = Infinity;
      const first = row * TILE * stride + column * TILE;
      for (let y = 0; y < TILE && wall > -Infinity; y++) for (let at = first + y * stride, end = at + TILE; at < end; at++) if (depths[at] < wall) wall = depths[at];
      walls[row * tiles + column] = wall;
    }
  }

  hidden(x, y, reach, front) {
    const { walls, tiles } = this;
    for (let row = (y - reach) >> TILE_BITS, last = (y + reach) >> TILE_BITS; row <= last; row++)
      for (let at = row * tiles + ((x - reach) >> TILE_BITS), end = row * tiles + ((x + reach) >> TILE_BITS); at <= end; at++) if (walls[at] < front) return false;
    return true;
  }

  colour(atom, z) {
    const depth = Math.round(((this.front - z) / (this.front - this.back || 1)) * (DEPTHS - 1));
    return (this.kinds[atom] * DEPTHS + depth) * SHADES;
  }

  make(width, height, margin) {
    const tiles = Math.ceil((width + 2 * margin) / TILE), rows = Math.ceil((height + 2 * margin) / TILE);
    Object.assign(this, { width, height, margin, tiles, stride: tiles * TILE, walls: new Float32Array(tiles * rows) });
    this.image = new Uint32Array(this.stride * rows * TILE);
    this.depths = new Float32Array(this.image.length);
  }

  /** Where each atom is seen, and which lie in front: sorted into buckets. */
  look(turn, scale, middleX, middleY) {
    const { places, seen, order, counts, count } = this;
    let front = -Infinity, back = Infinity;
    for (let i = 0; i < count; i++) {
      const x = places[3 * i], y = places[3 * i + 1], z = places[3 * i + 2], depth = scale * (turn[6] * x + turn[7] * y + turn[8] * z);
      seen[3 * i] = middleX + scale * (turn[0] * x + turn[1] * y + turn[2] * z);
      seen[3 * i + 1] = middleY - scale * (turn[3] * x + turn[4] * y + turn[5] * z);
      seen[3 * i + 2] = depth;
      if (depth > front) front = depth;
      if (depth < back) back = depth;
    }
    const across = (BUCKETS - 1) / (front - back || 1), bucket = (i) => ((front - seen[3 * i + 2]) * across) | 0;
    counts.fill(0);
    for (let i = 0; i < count; i++) counts[bucket(i) + 1]++;
    for (let i = 0; i < BUCKETS; i++) counts[i + 1] += counts[i];
    for (let i = 0; i < count; i++) order[counts[bucket(i)]++] = i;
    Object.assign(this, { front, back });
  }
}
