// Line charts and stacked areas in SVG, over the steps of the run.

const MARGIN = { left: 46, right: 12, top: 8, bottom: 20 };
const HEIGHT = 170;

function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Mean over the `width` places around each, of those that have a value; null where none has. */
function smooth(values, width) {
  if (width <= 1) return values;
  const sums = [0];
  const counts = [0];
  values.forEach((value, n) => {
    sums.push(sums[n] + (value ?? 0));
    counts.push(counts[n] + (value === null ? 0 : 1));
  });
  const half = width / 2;
  return values.map((_, n) => {
    const from = Math.max(0, Math.ceil(n - half));
    const to = Math.min(values.length, Math.ceil(n + half));
    return counts[to] > counts[from] ? (sums[to] - sums[from]) / (counts[to] - counts[from]) : null;
  });
}

function isSparse(values) {
  return values.filter((value) => value !== null).length < values.length / 2;
}

/** Round numbers that cover [low, high]. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  const every = Math.max(1, Math.ceil((high - low) / 4));
  for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power += every) found.push(power);
  return found.length > 1 ? found : [low, high];
}

/** One chart: `spec` says what is drawn (see curves.js). */
class Chart {
  constructor(spec, container) {
    this.spec = spec;
    this.series = spec.series.map((one) => ({ ...one, values: summary.metrics[one.name] }));
    for (const one of this.series) one.sparse = isSparse(one.values);
    this.svg = shape("svg", { class: "plot", role: "img", height: HEIGHT, "aria-label": this.describe() });
    this.legend = make("ul", { className: "legend" });
    this.readouts = this.series.map((one) => {
      const value = make("b");
      const swatch = make("i", { className: one.dashed ? "dashed" : "", style: { "--ink": one.color } });
      this.legend.append(make("li", {}, swatch, `${one.label} `, value));
      return value;
    });
    const title = make("h4", { title: spec.series.map((one) => one.name).join(", ") }, spec.title);
    this.element = make("figure", { className: "chart" }, title, this.legend, this.svg);
    if (spec.note) this.element.append(make("figcaption", {}, spec.note));
    container.append(this.element);
    this.svg.addEventListener("pointermove", (event) => setCursor(this.placeAt(event)));
    this.svg.addEventListener("pointerleave", () => setCursor(null));
    this.svg.addEventListener("click", (event) => select({ step: summary.metrics.step[this.placeAt(event)] }));
  }

  describe() {
    const last = (values) => format(values.findLast((value) => value !== null));
    const parts = this.series.map(({ label, values }) => `${label} ${last(values)}`);
    return `${this.spec.title}, at the end: ${parts.join(", ")}`;
  }

  placeAt(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const [first, last] = this.ends();
    const share = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    return placeOf(first + Math.min(1, Math.max(0, share)) * (last - first));
  }

  ends() {
    const steps = summary.metrics.step;
    return [steps[0], steps[steps.length - 1]];
  }

  x(step) {
    const [first, last] = this.ends();
    return MARGIN.left + ((step - first) / (last - first || 1)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const [low, high] = this.domain;
    const shown = this.log ? Math.max(low, Math.log10(value)) : value;
    return HEIGHT - MARGIN.bottom - ((shown - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  }

  draw() {
    this.width = this.svg.clientWidth || 320;
    const layers = this.spec.stacked ? this.stack() : this.lines();
    this.cursor = shape("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    this.selected = shape("line", { class: "selected", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    this.svg.replaceChildren(...this.axes(), this.selected, ...layers, this.cursor);
    this.point();
  }

  /** Raw values faint, their running means over them; sparse values as points with their errors. */
  lines() {
    this.fit(this.series.flatMap((one) => this.reach(one)));
    const raw = [];
    const means = [];
    for (const one of this.series) {
      one.means = one.sparse ? one.values : smooth(one.values, state.smoothing);
      const style = `stroke: ${one.color}`;
      const kind = one.dashed ? " dashed" : "";
      if (one.sparse) means.push(...this.points(one));
      else if (state.smoothing > 1) raw.push(shape("path", { class: "raw", d: this.path(one.values), style }));
      means.push(shape("path", { class: `mean${kind}`, d: this.path(one.means), style }));
    }
    const marks = (this.spec.marks ?? []).map((value) => {
      const y = this.y(value);
      return shape("line", { class: "mark", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y });
    });
    return [...marks, ...raw, ...means];
  }

  reach({ name, values }) {
    const errors = summary.metrics[`${name}_error`];
    if (!errors) return values;
    return values.flatMap((value, n) => (value === null ? [] : [value - (errors[n] ?? 0), value + (errors[n] ?? 0)]));
  }

  points({ name, values, color }) {
    const errors = summary.metrics[`${name}_error`];
    const marks = [];
    const r = values.filter((value) => value !== null).length > 60 ? 1.6 : 3;
    values.forEach((value, n) => {
      if (value === null) return;
      const x = this.x(summary.metrics.step[n]);
      if (errors?.[n]) {
        const [y1, y2] = [this.y(value - errors[n]), this.y(value + errors[n])];
        marks.push(shape("line", { class: "error", x1: x, x2: x, y1, y2, style: `stroke: ${color}` }));
      }
      marks.push(shape("circle", { class: "point", cx: x, cy: this.y(value), r, style: `fill: ${color}` }));
    });
    return marks;
  }

  stack() {
    const steps = summary.metrics.step;
    let below = steps.map(() => 0);
    for (const one of this.series) {
      one.means = smooth(one.values.map((value) => value ?? 0), state.smoothing);
      one.below = below;
      below = below.map((value, n) => value + one.means[n]);
    }
    this.fit([0, ...below]);
    return this.series.map((one) => {
      const top = one.means.map((value, n) => value + one.below[n]);
      const back = one.below.map((value, n) => `${this.x(steps[n]).toFixed(1)},${this.y(value).toFixed(1)}`).reverse();
      return shape("path", { class: "area", d: `${this.path(top)}L${back.join("L")}Z`, style: `fill: ${one.color}` });
    });
  }

  /** Chooses the values' scale. */
  fit(values) {
    const present = values.filter((value) => value !== null);
    let low = present.reduce((a, b) => Math.min(a, b), Infinity);
    let high = present.reduce((a, b) => Math.max(a, b), -Infinity);
    this.log = Boolean(this.spec.log) && low > 0 && high > 30 * low;
    if (this.log) [low, high] = [Math.log10(Math.max(low, high / 1e5)), Math.log10(high)];
    else {
      for (const value of [...(this.spec.include ?? []), ...(this.spec.marks ?? [])]) {
        [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 0.5;
    const floor = this.spec.include?.includes(low);
    this.domain = [floor ? low : low - room, high + room];
  }

  axes() {
    const parts = [];
    const [low, high] = this.domain;
    for (const tick of this.log ? logTicks(low, high) : ticks(low, high, 4)) {
      const y = this.y(this.log ? 10 ** tick : tick);
      parts.push(shape("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }));
      const label = format(this.log ? 10 ** tick : Number(tick.toPrecision(6)));
      parts.push(shape("text", { class: "tick", x: MARGIN.left - 6, y: y + 3.5, "text-anchor": "end" }, label));
    }
    for (const tick of ticks(...this.ends(), Math.max(2, this.width / 64)).filter(Number.isInteger)) {
      const text = { class: "tick", x: this.x(tick), y: HEIGHT - 4, "text-anchor": "middle" };
      parts.push(shape("text", text, String(tick)));
    }
    return parts;
  }

  /** Values as an SVG path that passes over gaps (steps of images have no shuffled answers); extremes per pixel. */
  path(values) {
    const steps = summary.metrics.step;
    const parts = [];
    const thin = Math.max(1, Math.ceil(values.length / (2 * this.width)));
    for (let n = 0; n < values.length; n += thin) {
      const bin = values.slice(n, n + thin).filter((value) => value !== null);
      if (!bin.length) continue;
      for (const value of thin > 1 ? [Math.min(...bin), Math.max(...bin)] : bin) {
        parts.push(`${this.x(steps[n]).toFixed(1)},${this.y(value).toFixed(1)}`);
      }
    }
    return parts.length ? `M${parts.join("L")}` : "";
  }

  /** Shows the step under the pointer, or the selected one. */
  point() {
    const place = state.cursor ?? placeOf(state.step);
    const x = this.x(summary.metrics.step[place]);
    for (const [line, at] of [[this.cursor, x], [this.selected, this.x(state.step)]]) {
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
    }
    this.cursor.style.display = state.cursor === null ? "none" : "";
    this.series.forEach((one, n) => {
      const known = one.sparse ? one.values.slice(0, place + 1).findLast((value) => value !== null) : one.values[place];
      const error = one.sparse ? summary.metrics[`${one.name}_error`]?.findLast((e, m) => m <= place && e !== null) : null;
      this.readouts[n].textContent = format(known) + (error ? ` ± ${Number(error.toPrecision(2))}` : "");
      this.readouts[n].title = one.sparse ? "" : `mean of the steps around it ${format(one.means[place])}`;
    });
  }
}
