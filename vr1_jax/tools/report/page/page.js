// Puts the page together, and keeps step and question in its address.

const VERDICTS = { good: "✓", watch: "!", bad: "✗", unknown: "?" };

function buildHead() {
  const { environment } = summary;
  const config = environment.config ?? {};
  const steps = summary.metrics.step;
  const facts = [
    ["stage", { rl: (config.rollout?.shuffled_group ?? 0) > 0 ? "T-GRPO" : "GRPO", sft: "SFT" }[config.stage] ?? config.stage],
    ["model", config.model],
    ["steps", config.steps ? `${steps.at(-1) + 1} of ${config.steps}` : steps.at(-1) + 1],
    ["a step", config.prompts_per_step && [
      `${config.prompts_per_step} questions`,
      config.stage === "rl" ? ` × ${config.rollout?.group} + ${config.rollout?.shuffled_group} answers` : "",
    ].join("")],
    ["devices", devices(environment.devices)],
    ["commit", environment.commit?.replace(/^([0-9a-f]{10})[0-9a-f]*/, "$1")],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  for (const [name, value] of facts) {
    $("facts").append(make("span", { className: "fact" }, make("small", {}, name), " ", ...visible(String(value))));
  }
  for (const note of summary.notes) $("notes").append(make("li", {}, ...visible(note)));
  $("findings").append(...summary.findings.map(findingCard));
}

function devices(names) {
  if (!names?.length) return undefined;
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} × ${name}`).join(", ");
}

function findingCard({ question, verdict, headline, details, metric }) {
  const title = make("h3", {}, make("span", { className: `light ${verdict}`, "aria-label": verdict }, VERDICTS[verdict]), question);
  const card = make("div", { className: `finding ${verdict}` }, title, make("p", { className: "headline" }, headline));
  const values = metric && summary.metrics[metric];
  if (values?.some((value) => value !== null)) card.append(sparkline(values));
  card.append(make("ul", {}, ...details.map((detail) => make("li", {}, ...visible(detail)))));
  return card;
}

function sparkline(values) {
  const present = smooth(values, isSparse(values) ? 1 : Math.max(1, values.length / 30))
    .map((value, n) => [n / Math.max(1, values.length - 1), value]).filter(([, value]) => value !== null);
  const low = present.reduce((best, [, value]) => Math.min(best, value), Infinity);
  const high = present.reduce((best, [, value]) => Math.max(best, value), -Infinity);
  const points = present.map(([x, value]) => `${(x * 200).toFixed(1)},${(32 - ((value - low) / (high - low || 1)) * 28).toFixed(1)}`);
  const line = shape("polyline", { points: points.join(" ") });
  return shape("svg", { class: "sparkline", viewBox: "0 0 200 36", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
}

function buildSetup() {
  const rows = flatten({ ...summary.environment });
  const body = make("dl", { className: "settings" });
  for (const [name, value] of rows) body.append(make("dt", {}, ...visible(name)), make("dd", {}, ...visible(value)));
  $("settings").append(rows.length ? body : make("p", { className: "hint" }, "The run left no environment.json."));
}

function flatten(value, prefix = "") {
  if (value === null || typeof value !== "object") return [[prefix, String(value)]];
  if (Array.isArray(value) && !value.some((item) => typeof item === "object")) return [[prefix, value.join(", ") || "none"]];
  return Object.entries(value).flatMap(([name, item]) => flatten(item, prefix ? `${prefix}.${name}` : name));
}

/** Goes to a step or a question; the page's address follows. */
function select(wish) {
  Object.assign(state, wish);
  if (wish.step !== undefined && wish.prompt === undefined) state.prompt = 0;
  history.replaceState(null, "", summary.shown.length ? `#step=${state.step}&prompt=${state.prompt + 1}` : `#step=${state.step}`);
  showSelection();
}

function showSelection() {
  for (const chart of charts) chart.point();
  showCursor();
  if (!summary.shown.length) return;
  answerMap.draw();
  showStep().catch((error) => {
    $("step-note").textContent = `These answers cannot be read: ${error.message}`;
    throw error;
  });
}

/** Step and question of the address; the last step without one. */
function readAddress() {
  const wish = new URLSearchParams(location.hash.slice(1));
  const steps = summary.metrics.step;
  const step = Number.parseInt(wish.get("step") ?? "", 10);
  state.step = steps[Number.isNaN(step) ? steps.length - 1 : placeOf(step)];
  state.prompt = Math.max(0, (Number.parseInt(wish.get("prompt") ?? "", 10) || 1) - 1);
  return wish.has("step");
}

/** The next step with answers, or with numbers if there are none. */
function move(by) {
  const steps = summary.shown.length ? summary.shown : summary.metrics.step;
  const place = steps.indexOf(summary.shown.length ? nearestShown(state.step) : state.step);
  const next = steps[Math.min(steps.length - 1, Math.max(0, place + by))];
  if (next !== state.step) select({ step: next, prompt: state.prompt });
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches?.("input")) return;
  const big = event.shiftKey ? 10 : 1;
  if (event.key === "ArrowLeft") move(-big);
  else if (event.key === "ArrowRight") move(big);
  else if (event.key === "j" && state.prompt + 1 < page.length) select({ prompt: state.prompt + 1 });
  else if (event.key === "k" && state.prompt > 0) select({ prompt: state.prompt - 1 });
  else return;
  event.preventDefault();
}

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  answerMap?.draw();
}

function listen() {
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => { readAddress(); showSelection(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => answerMap?.draw());
  $("theme").addEventListener("click", toggleTheme);
  $("step-before").addEventListener("click", () => move(-1));
  $("step-after").addEventListener("click", () => move(1));
  $("step-slider").max = String(Math.max(0, summary.shown.length - 1));
  $("step-slider").addEventListener("input", (event) => select({ step: summary.shown[Number(event.target.value)], prompt: state.prompt }));
  $("step-number").addEventListener("change", (event) => {
    const step = Number.parseInt(event.target.value, 10);
    if (!Number.isNaN(step)) select({ step: summary.metrics.step[placeOf(step)], prompt: state.prompt });
  });
  explainTokens($("prompt"));
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", (event) => { // the address is the step's
      event.preventDefault();
      document.querySelector(link.getAttribute("href")).scrollIntoView({ behavior: "smooth" });
    });
  }
}

async function start() {
  summary = await unpack("summary");
  const addressed = readAddress();
  document.body.classList.toggle("without-answers", !summary.shown.length);
  buildHead();
  buildCurves();
  buildSetup();
  if (summary.shown.length) answerMap = new AnswerMap($("map"));
  listen();
  drawCurves();
  showSelection();
  if (addressed && summary.shown.length) $("answers").scrollIntoView();
  document.body.dataset.ready = "true";
}

start();
