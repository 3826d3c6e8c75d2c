// Which curves are drawn, in which order, in which colours. Ordered frames are blue, shuffled ones orange, everywhere.

const ORDERED = css("ordered");
const SHUFFLED = css("shuffled");
const NEUTRAL = css("neutral");
const COLORS = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => css(`color-${n}`));

function one(name, label, color = COLORS[0], more = {}) {
  return { name, label, color, ...more };
}

function chartGroups() {
  const share = { include: [0] };
  const before = summary.before.heldout_accuracy;
  const loss = { title: "Loss", series: [one("loss", "loss")] };
  const supervised = !summary.metrics.reward; // then the loss is what tells
  return [
    ["Learning", [
      ...(supervised ? [loss] : []),
      { title: "Reward", series: [one("reward", "mean", COLORS[0]), one("reward_std", "spread within a group", COLORS[1])], ...share },
      {
        title: "Accuracy while training",
        series: [
          one("accuracy_video", "videos, ordered", ORDERED),
          one("accuracy_shuffled", "videos, shuffled", SHUFFLED),
          one("accuracy", "all ordered", NEUTRAL, { dashed: true }),
        ],
        ...share,
      },
      {
        title: "Held-out accuracy",
        note: "Bars are one standard error."
          + (before === undefined ? "" : " The line is the model that the run started from, all kinds."),
        marks: before === undefined ? [] : [before],
        series: [
          one("heldout_accuracy", "all", NEUTRAL, { dashed: true }),
          one("heldout_accuracy_video", "videos, ordered", ORDERED),
          one("heldout_accuracy_shuffled", "videos, shuffled", SHUFFLED),
          one("heldout_accuracy_image", "images", COLORS[2]),
          one("heldout_accuracy_text", "text", COLORS[3]),
          one("heldout_accuracy_blind", "frames blanked", COLORS[6]),
        ],
        ...share,
      },
      { title: "Held-out accuracy by source", series: named("heldout_accuracy/"), ...share },
      { title: "Held-out loss", series: [one("heldout_loss", "nats a token")], log: true },
    ]],
    ["Order of frames", [
      { title: "Temporal gap", note: "Accuracy with ordered frames less accuracy with shuffled ones.",
        series: [one("temporal_gap", "ordered − shuffled", COLORS[2])], include: [0], marks: [0] },
      { title: "Temporal signal", note: "How much the temporal bonus changes the advantages; at 0 it teaches nothing.",
        series: [one("temporal_signal", "change of advantages", COLORS[2]), one("temporal_bonus", "bonus, mean", COLORS[3])],
        ...share },
    ]],
    ["Answers", [
      { title: "Length", series: [one("length", "tokens of an answer")], ...share },
      { title: "Form", series: [
        one("format", "well-formed", COLORS[2]), one("cut_off", "cut off at the limit", COLORS[1]),
        one("distinct", "distinct within their group", COLORS[0]),
        one("heldout_format", "held-out, well-formed", NEUTRAL, { dashed: true })], ...share },
      { title: "Entropy", series: [one("entropy", "nats a token")], ...share },
      { title: "Groups", note: "Groups of equal rewards have no advantages.", series: [
        one("all_correct", "all right", css("right-ink")), one("all_wrong", "all wrong", css("wrong-ink")),
        one("no_signal", "without signal", NEUTRAL, { dashed: true })], ...share },
    ]],
    ["Optimisation", [
      ...(supervised ? [] : [loss]),
      { title: "KL to the reference", series: [one("kl", "k3, nats a token", COLORS[3])], ...share },
      { title: "Gradient norm", series: [one("grad_norm", "before clipping", COLORS[0])], log: true },
      { title: "Sampler against trainer", note: "Difference of their log-probs; the line is where the run warns.",
        series: [one("sampler_gap_mean", "mean", COLORS[0]), one("sampler_gap_max", "largest", COLORS[1])],
        log: true },
      { title: "Clipped tokens", series: [one("clipped_low", "low", COLORS[0]), one("clipped_high", "high", COLORS[1])],
        ...share },
      { title: "Ratio to the old policy", log: true, series: [
        one("ratio_max", "largest", COLORS[1]), one("ratio_mean", "mean", COLORS[0]), one("ratio_min", "smallest", COLORS[2])] },
    ]],
    ["Machine", [
      { title: "Seconds of a step", stacked: true, series: phases() },
      { title: "Memory of the host", series: [one("host_memory_gb", "GB, largest so far", COLORS[4])], ...share },
      { title: "Tokens of a step", series: [one("tokens", "in the loss", COLORS[5])], ...share },
      { title: "Skipped updates", series: [one("skipped", "so far", COLORS[1])], ...share },
    ]],
  ];
}

function named(prefix) {
  const names = Object.keys(summary.metrics).filter((name) => name.startsWith(prefix) && !name.endsWith("_error"));
  return names.map((name, n) => one(name, name.slice(prefix.length) || "unnamed", COLORS[n % COLORS.length]));
}

/** Phases of a step, the longest at the bottom. */
function phases() {
  const total = ({ name }) => summary.metrics[name].reduce((sum, value) => sum + (value ?? 0), 0);
  return named("seconds_").sort((a, b) => total(b) - total(a)).map((phase, n) => ({ ...phase, color: COLORS[n % COLORS.length] }));
}

const UNREMARKABLE = ["step", "skipped_in_a_row", "correct", "logp_gap_mean", "logp_gap_max"];

function hasValues({ name }) {
  return summary.metrics[name]?.some((value) => value !== null) ?? false;
}

let charts = [];

function buildCurves() {
  const groups = chartGroups();
  const known = new Set(groups.flatMap(([, specs]) => specs.flatMap(({ series }) => series.map(({ name }) => name))));
  const others = Object.keys(summary.metrics).filter(
    (name) => !known.has(name) && !UNREMARKABLE.includes(name) && !name.endsWith("_error"),
  );
  groups.push(["Everything else", others.map((name) => ({ title: name, series: [one(name, name)] }))]);
  for (const [title, specs] of groups) {
    const wanted = specs.map((spec) => ({ ...spec, series: spec.series.filter(hasValues) })).filter(({ series }) => series.length);
    const needed = wanted.filter(({ title: name, series }) => name !== "Skipped updates" || summary.metrics[series[0].name].some(Boolean));
    if (!needed.length) continue;
    const grid = make("div", { className: "grid" });
    $("charts").append(make("h3", {}, title), grid);
    for (const spec of needed) charts.push(new Chart(spec, grid));
  }
  const slider = $("smoothing");
  const count = summary.metrics.step.length;
  slider.max = String(Math.max(0, Math.floor(Math.log2(count))));
  slider.value = String(Math.max(0, Math.min(5, Math.floor(Math.log2(count / 12)))));
  slider.addEventListener("input", drawCurves);
  new ResizeObserver(drawCurves).observe($("charts"));
}

function drawCurves() {
  state.smoothing = 2 ** Number($("smoothing").value);
  $("smoothing-width").textContent = state.smoothing === 1 ? "1 step" : `${state.smoothing} steps`;
  for (const chart of charts) chart.draw();
  showCursor();
}

function setCursor(place) {
  state.cursor = place;
  for (const chart of charts) chart.point();
  showCursor();
}

function showCursor() {
  const place = state.cursor ?? placeOf(state.step);
  $("cursor-step").textContent = String(summary.metrics.step[place]);
}
