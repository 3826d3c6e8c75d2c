// The answers of one step: its questions on the left, one question with frames and answers on the right.

let answerMap;
let shownStep = null; // whose answers are on the page
let page = []; // its questions

async function showStep() {
  const step = nearestShown(state.step);
  const steps = summary.shown;
  const place = steps.indexOf(step);
  $("step-number").value = String(step);
  $("step-slider").value = String(place);
  $("step-slider").setAttribute("aria-valuetext", `step ${step}`);
  $("step-before").disabled = place === 0;
  $("step-after").disabled = place === steps.length - 1;
  $("step-note").textContent =
    step === state.step ? "" : `The answers of step ${state.step} are not in this file; these are of step ${step}.`;
  if (step !== shownStep) {
    const found = await unpack(`step-${step}`);
    if (nearestShown(state.step) !== step) return; // another step was chosen meanwhile
    page = found;
    shownStep = step;
    $("prompts").replaceChildren(...page.map(promptButton));
  }
  state.prompt = Math.min(state.prompt, page.length - 1);
  markPrompt();
  await showPrompt(page[state.prompt]);
  document.body.dataset.shown = `${shownStep}/${state.prompt}`;
}

function promptButton(prompt, number) {
  const label = make("span", { className: "question" }, ...visible(prompt.problem.slice(0, 160)));
  const button = make("button", { type: "button", className: "prompt-button" },
    make("span", { className: "number" }, String(number + 1)), label,
    make("span", { className: "marks" }, ...prompt.groups.map(marks)));
  button.addEventListener("click", () => select({ prompt: number }));
  return button;
}

/** A square for each answer of a group: filled if right. */
function marks(group, number) {
  const name = number ? "shuffled" : "ordered";
  const right = group.filter(({ correct }) => correct).length;
  const squares = group.map(({ correct }) => make("i", { className: correct ? "right" : "wrong" }));
  return make("span", { className: `mark-row ${name}`, title: `${name}: ${right} of ${group.length} right` }, ...squares);
}

function markPrompt() {
  [...$("prompts").children].forEach((button, n) => button.setAttribute("aria-current", String(n === state.prompt)));
  const list = $("prompts"); // only the list scrolls, not the page
  const chosen = list.children[state.prompt];
  if (!chosen) return;
  list.scrollTop = Math.min(chosen.offsetTop, Math.max(list.scrollTop, chosen.offsetTop + chosen.offsetHeight - list.clientHeight));
  list.scrollLeft = Math.min(chosen.offsetLeft, Math.max(list.scrollLeft, chosen.offsetLeft + chosen.offsetWidth - list.clientWidth));
}

async function showPrompt(prompt) {
  const frames = await frameStrips(prompt);
  const about = [prompt.problem_type, prompt.data_type, prompt.path, `${prompt.file}, record ${prompt.index}`];
  if (prompt.attempt) about.push(`batch ${prompt.attempt + 1} of the step`);
  const options = (prompt.options ?? []).map((option) => make("li", {}, ...visible(option)));
  const names = prompt.groups.length > 1 ? ["Answers to ordered frames", "Answers to shuffled frames"] : ["Answers"];
  const groups = prompt.groups.map((group, n) => {
    const right = group.filter(({ correct }) => correct).length;
    const title = make("h4", {}, `${names[n]} `, make("small", {}, `${right} of ${group.length} right`));
    return make("div", { className: `group ${n ? "shuffled" : "ordered"}` }, title, ...group.map(answerCard));
  });
  $("prompt").replaceChildren(
    make("p", { className: "about" }, ...about.filter(Boolean).map((text) => make("span", {}, ...visible(text)))),
    plain(prompt.problem, "text problem"),
    options.length ? make("ul", { className: "options" }, ...options) : "",
    make("div", { className: "solution" }, make("span", {}, "Right answer"), plain(prompt.solution.replace(/^\s*<answer>(.*)<\/answer>\s*$/s, "$1"))),
    frames,
    make("div", { className: "color-scale" }, "Ground of a token: ", make("span", {}, "certain"), make("i"),
      make("span", {}, "1 in 100 or less")),
    make("div", { className: "groups" }, ...groups),
  );
}

async function frameStrips(prompt) {
  if (!prompt.frames) return "";
  if (prompt.frames.missing) return make("p", { className: "missing" }, "No frames: ", ...visible(prompt.frames.missing));
  const id = `strip-${prompt.frames.strip}`;
  if (!$(id)) await parsed;
  const strip = JSON.parse($(id).textContent);
  const ordered = [...Array(strip.count).keys()];
  const box = make("div", { className: "strips", style: {
    "--picture": `url(data:image/webp;base64,${strip.webp})`,
    "--count": strip.count,
    "--columns": Math.min(strip.count, 8),
    "--width": `${strip.width}px`,
    "--shape": `${strip.width} / ${strip.height}`,
  } });
  const single = strip.count === 1;
  box.append(frameRow(strip, ordered, single ? "image" : "in order", "ordered"));
  if (prompt.order) box.append(frameRow(strip, prompt.order, "shuffled", "shuffled"));
  const light = (event) => {
    const frame = event.target.closest?.(".frame")?.dataset.frame;
    for (const other of box.querySelectorAll(".frame")) other.classList.toggle("lit", other.dataset.frame === frame);
  };
  box.addEventListener("pointerover", light);
  box.addEventListener("pointerleave", light);
  return box;
}

function frameRow(strip, order, label, name) {
  const frames = order.map((number) => {
    const seconds = strip.seconds[number];
    const when = seconds === undefined ? "" : `${seconds.toFixed(1)} s`;
    const place = strip.count > 1 ? (100 * number) / (strip.count - 1) : 0;
    const picture = make("span", { className: "picture", style: { "background-position": `${place}% 0` } });
    const caption = strip.count > 1 ? make("span", { className: "caption" }, make("b", {}, String(number + 1)), ` ${when}`) : "";
    const title = `frame ${number + 1} of ${strip.count}` + (when ? `, number ${strip.indices[number]} of the file, at ${when}` : "");
    return make("span", { className: "frame", role: "img", "aria-label": title, title, "data-frame": String(number) }, picture, caption);
  });
  return make("div", { className: `strip ${name}` }, make("span", { className: "strip-name" }, label),
    make("div", { className: "frames" }, ...frames));
}

function answerCard(answer, number) {
  const verdict = make("span", { className: answer.correct ? "verdict right" : "verdict wrong" }, answer.correct ? "✓ right" : "✗ wrong");
  const head = make("div", { className: "answer-head" }, make("span", { className: "number" }, String(number + 1)), verdict);
  if (answer.advantage !== undefined) head.append(advantageBar(answer));
  head.append(make("span", { className: "faint" }, `${answer.tokens} tokens`));
  if (!answer.stopped) head.append(make("span", { className: "badge" }, "cut off at the limit"));
  const parts = Object.entries(answer.parts).filter(([name, value]) => value !== 0 || name === "accuracy" || name === "format");
  const chips = parts.map(([name, value]) => make("span", { className: "part", "data-part": name }, `${name} `, make("b", {}, format(value))));
  if (answer.reward !== undefined) chips.unshift(make("span", { className: "part total" }, "reward ", make("b", {}, format(answer.reward))));
  return make("section", { className: "answer-card" }, head, make("div", { className: "parts" }, ...chips), coloured(answer));
}

function advantageBar({ advantage, added }) {
  const size = Math.min(1, Math.abs(advantage) / 2.5) * 50;
  const bar = make("span", { className: `advantage ${advantage < 0 ? "down" : "up"}` }, make("i", { style: {
    "width": `${size}%`, "left": `${advantage < 0 ? 50 - size : 50}%`,
  } }));
  const title = `advantage ${format(advantage)}` + (added ? `, of it ${format(added)} temporal bonus` : "");
  return make("span", { className: "advantage-box", title }, "advantage ", make("b", {}, format(advantage)), bar);
}
