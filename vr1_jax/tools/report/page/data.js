// What the other parts share: elements, packed data, and the one state of the page.

const $ = (id) => document.getElementById(id);

/** An element; children that are strings become text, never markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const parsed = new Promise((resolve) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve);
  else resolve();
});

/** The content of a packed element: base64 of gzip of JSON. */
async function unpack(id) {
  if (!$(id)) await parsed; // large files are still being read when the page is already there
  const bytes = Uint8Array.from(atob($(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Short, in the digits that matter. */
function format(value) {
  return shorten(value).replace("-", "−");
}

function shorten(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  if (size >= 100) return value.toFixed(0);
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  return `${Math.round(value * 100)} %`;
}

function css(name) {
  return `var(--${name})`;
}

let summary; // of the run; see write.py
const state = { step: 0, prompt: 0, cursor: null, smoothing: 0 };

/** Place of a step among those with numbers. */
function placeOf(step) {
  const steps = summary.metrics.step;
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

/** The step nearest to this one of those whose answers are in the file. */
function nearestShown(step) {
  return summary.shown.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best));
}
