// Sampled text, which may hold anything: shown as text nodes, its invisible characters made visible.

// Controls but newline and tab, direction overrides, zero-width spaces, byte-order marks, halves of surrogate pairs,
// tag characters. Joiners stay: emoji are made of them.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udfff]|[\u{e0000}-\u{e007f}]/gu;

function codeOf(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Nodes that show a text as it is. */
function visible(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    nodes.push(text.slice(from, match.index), make("span", { className: "control" }, codeOf(match[0])));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

function plain(text, className = "text") {
  return make("div", { className, dir: "auto" }, ...visible(text ?? ""));
}

/** How strongly a token is coloured: 0 at probability 1, full at one in a hundred. */
function surprise(logp) {
  return Math.min(1, -logp / Math.log(100));
}

/** An answer, each token on a ground that tells how unlikely it was. Tokens that share a character go together. */
function coloured({ pieces, logps }) {
  const box = make("div", { className: "text answer", dir: "auto" });
  let pending = [];
  pieces.forEach((piece, n) => {
    const special = Array.isArray(piece);
    pending.push(n);
    if (piece === "" && n + 1 < pieces.length && !Array.isArray(pieces[n + 1])) return;
    const known = pending.map((place) => logps[place]).filter((logp) => logp !== null);
    const token = make("span", { className: special ? "token special" : "token" });
    token.append(...visible(special ? piece[0] : piece.replaceAll("\n", "↵\n")));
    if (known.length) {
      const logp = known.reduce((sum, value) => sum + value, 0);
      token.style.setProperty("--surprise", `${Math.round(100 * surprise(logp))}%`);
      token.dataset.logp = logp.toFixed(2);
      if (pending.length > 1) token.dataset.tokens = String(pending.length);
    }
    box.append(token);
    pending = [];
  });
  return box;
}

function showTooltip(event, title, text) {
  const tooltip = $("tooltip");
  tooltip.replaceChildren(make("b", {}, ...visible(title)), make("div", {}, text));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
  const below = event.clientY + 18 + height < window.innerHeight;
  tooltip.style.left = `${Math.max(8, left)}px`;
  tooltip.style.top = `${below ? event.clientY + 18 : event.clientY - height - 10}px`;
}

function hideTooltip() {
  $("tooltip").hidden = true;
}

/** One listener for all tokens of the page. */
function explainTokens(container) {
  container.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".token[data-logp]");
    if (!token) return hideTooltip();
    const logp = Number(token.dataset.logp);
    const tokens = token.dataset.tokens ? `, ${token.dataset.tokens} tokens together` : "";
    const chance = Math.exp(logp);
    const shown = chance >= 0.001 ? `${Number((100 * chance).toPrecision(3))} %` : chance.toExponential(1);
    showTooltip(event, JSON.stringify(token.textContent), `log-prob ${token.dataset.logp}, probability ${shown}${tokens}`);
  });
  container.addEventListener("pointerleave", hideTooltip);
}
