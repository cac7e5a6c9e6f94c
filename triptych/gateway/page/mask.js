// A mask, without the page: pixels that are painted or not, and the list of what was done, so that it can be undone.

/**
 * One thing done to a mask: a stroke through points (in pixels), or everything cleared or inverted.
 * @typedef {{kind: "stroke", erase: boolean, radius: number, points: [number, number][]} | {kind: "clear" | "invert"}} Operation
 */

export class Mask {
  /** @param {number} width @param {number} height @param {readonly Operation[]} [operations] */
  constructor(width, height, operations = []) {
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height);
    this.operations = [];
    for (const operation of operations) this.apply(operation);
  }

  /** @param {Operation} operation */
  apply(operation) {
    this.operations.push(operation);
    if (operation.kind === "clear") this.pixels.fill(0);
    else if (operation.kind === "invert") this.pixels.forEach((value, place) => (this.pixels[place] = value ? 0 : 255));
    else operation.points.forEach((point, place, points) => this.#segment(operation, points[place - 1] ?? point, point));
  }

  /** Lengthens the last stroke. */
  extend(point) {
    const stroke = this.operations.at(-1);
    const last = stroke.points.at(-1);
    stroke.points.push(point);
    this.#segment(stroke, last, point);
  }

  undo() {
    const kept = this.operations.slice(0, -1);
    this.operations = [];
    this.pixels.fill(0);
    for (const operation of kept) this.apply(operation);
  }

  /** What was done up to now; later strokes do not change it. */
  snapshot() {
    return this.operations.map((operation) => structuredClone(operation));
  }

  /** How much is painted, 0 to 1. */
  get share() {
    return this.pixels.reduce((sum, value) => sum + (value ? 1 : 0), 0) / this.pixels.length;
  }

  /** A PNG: white where to paint anew, black where to keep. */
  toBlob() {
    const canvas = this.#draw((value) => [value, value, value, 255]);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** A canvas that is opaque where to paint anew, and else transparent. */
  toStencil() {
    return this.#draw((value) => [0, 0, 0, value]);
  }

  /** Every pixel whose centre is within the radius of the line from one point to the next. */
  #segment({ radius, erase }, [x0, y0], [x1, y1]) {
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length = dx * dx + dy * dy || 1;
    const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
    const right = Math.min(this.width - 1, Math.ceil(Math.max(x0, x1) + radius));
    const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
    const bottom = Math.min(this.height - 1, Math.ceil(Math.max(y0, y1) + radius));
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const [px, py] = [x + 0.5 - x0, y + 0.5 - y0];
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        if (Math.hypot(px - along * dx, py - along * dy) <= radius) this.pixels[y * this.width + x] = erase ? 0 : 255;
      }
    }
  }

  #draw(colour) {
    const canvas = document.createElement("canvas");
    canvas.width = this.width;
    canvas.height = this.height;
    const image = new ImageData(this.width, this.height);
    this.pixels.forEach((value, place) => image.data.set(colour(value), 4 * place));
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }
}
