// The map of answers: a column for each step, a cell for each question, coloured by its share of right answers.

const MAP_LEFT = 74;
const MAP_GAP = 6;
const FEWEST_PIXELS = 1; // of a column; longer runs scroll

class AnswerMap {
  constructor(container) {
    this.steps = Object.keys(summary.map).map(Number).sort((a, b) => a - b);
    this.columns = this.steps.map((step) => {
      const cells = summary.map[step].map(([ordered, shuffled], prompt) => ({ ordered, shuffled, prompt }));
      return cells.sort((a, b) => b.ordered - a.ordered || (b.shuffled ?? -1) - (a.shuffled ?? -1));
    });
    this.rows = Math.max(...this.columns.map((cells) => cells.length));
    this.hasShuffled = this.columns.some((cells) => cells.some(({ shuffled }) => shuffled !== null));
    this.row = Math.max(2, Math.min(13, Math.floor(130 / this.rows)));
    this.canvas = make("canvas", { role: "img", "aria-label": "Share of right answers by step and question" });
    this.scroller = make("div", { className: "map-scroller" }, this.canvas);
    const scale = make("span", { className: "map-scale" }, "all wrong", make("i"), "all right");
    const kept = summary.shown.length < this.steps.length ? "Ticks below mark the steps whose answers are in this file." : "";
    container.append(this.scroller, make("p", { className: "hint" }, scale, kept));
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => { hideTooltip(); setCursor(null); });
    this.canvas.addEventListener("click", (event) => {
      const found = this.at(event);
      if (found) select({ step: found.step, prompt: found.cell ? found.cell.prompt : 0 });
    });
    new ResizeObserver(() => this.draw()).observe(container);
  }

  color(share) {
    if (share === null) return this.palette.none;
    const [from, to] = share < 0.5 ? [this.palette.wrong, this.palette.mixed] : [this.palette.mixed, this.palette.right];
    const part = share < 0.5 ? share * 2 : share * 2 - 1;
    return `rgb(${from.map((value, n) => Math.round(value + (to[n] - value) * part)).join(" ")})`;
  }

  readPalette() {
    const probe = make("span");
    this.canvas.parentElement.append(probe);
    const read = (name) => {
      probe.style.color = css(name);
      return getComputedStyle(probe).color;
    };
    const channels = (name) => read(name).match(/[\d.]+/g).slice(0, 3).map(Number);
    this.palette = {
      wrong: channels("wrong"), mixed: channels("mixed"), right: channels("right"),
      none: read("panel"), text: read("faint"), ink: read("ink"),
    };
    probe.remove();
  }

  draw() {
    this.readPalette();
    const room = this.scroller.clientWidth - MAP_LEFT - 8;
    this.column = Math.min(48, Math.max(FEWEST_PIXELS, room / this.steps.length));
    const panel = this.rows * this.row;
    const height = panel * (this.hasShuffled ? 2 : 1) + MAP_GAP * 2 + 26;
    const width = MAP_LEFT + this.column * this.steps.length + 8;
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(density, density);
    this.panels = [["ordered", 0]];
    if (this.hasShuffled) this.panels.push(["shuffled", panel + MAP_GAP]);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (const [name, top] of this.panels) {
      pen.fillStyle = this.palette.text;
      pen.fillText(name, 2, top + panel / 2);
      this.drawCells(pen, name, top);
    }
    this.bottom = this.panels.at(-1)[1] + panel;
    this.drawSteps(pen, this.bottom + 4);
  }

  drawCells(pen, name, top) {
    const line = this.column > 5 ? 1 : 0;
    this.columns.forEach((cells, n) => {
      const left = MAP_LEFT + Math.floor(n * this.column);
      const width = Math.max(1, Math.floor((n + 1) * this.column) - Math.floor(n * this.column) - line);
      cells.forEach((cell, m) => {
        pen.fillStyle = this.color(cell[name]);
        pen.fillRect(left, top + m * this.row, width, this.row - (this.row > 4 ? 1 : 0));
      });
    });
  }

  drawSteps(pen, top) {
    pen.fillStyle = this.palette.text;
    if (summary.shown.length < this.steps.length) {
      for (const step of summary.shown) pen.fillRect(this.left(step), top, Math.max(1, Math.min(3, this.column)), 4);
    }
    pen.textAlign = "center";
    const last = this.steps.length - 1;
    for (const place of ticks(0, last, Math.max(2, (this.column * last) / 90)).filter(Number.isInteger)) {
      pen.fillText(String(this.steps[place]), MAP_LEFT + (place + 0.5) * this.column, top + 13);
    }
    const place = this.steps.indexOf(nearestShown(state.step));
    pen.strokeStyle = this.palette.ink;
    pen.lineWidth = 1.5;
    pen.strokeRect(MAP_LEFT + place * this.column - 1.5, 0.75, Math.max(3, this.column + 2), this.bottom - 0.5);
  }

  left(step) {
    return MAP_LEFT + this.steps.indexOf(step) * this.column;
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const place = Math.floor((event.clientX - box.left - MAP_LEFT) / this.column);
    if (place < 0 || place >= this.steps.length) return null;
    const y = event.clientY - box.top;
    const top = this.hasShuffled && y >= this.panels[1][1] ? this.panels[1][1] : 0;
    return { step: this.steps[place], cell: this.columns[place][Math.floor((y - top) / this.row)] ?? null };
  }

  hover(event) {
    const found = this.at(event);
    if (!found?.cell) return hideTooltip();
    const { ordered, shuffled, prompt } = found.cell;
    const parts = [`${percent(ordered)} of the ordered answers right`];
    if (shuffled !== null) parts.push(`${percent(shuffled)} of the shuffled ones`);
    showTooltip(event, `Step ${found.step}, question ${prompt + 1}`, parts.join(", "));
    setCursor(placeOf(found.step));
  }
}
