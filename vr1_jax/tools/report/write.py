"""A run as one HTML file: its numbers, its answers, its frames. Nothing is loaded from anywhere else.

The charts in page/ are written by hand: a library would be more lines, bring a licence, and draw neither the map
of answers nor tokens and frames.
"""

import base64
import gzip
import hashlib
import html
import json
import math
import statistics
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from vr1_jax.files import check_output_file, whole_file
from vr1_jax.media.reader import MediaReader
from vr1_jax.progress import Progress
from vr1_jax.tools.report.findings import find
from vr1_jax.tools.report.pages import Clips, TokenTexts, share_correct, show_prompt, spread_out
from vr1_jax.tools.report.run_files import Run, read_run
from vr1_jax.weights.checkpoint_dir import HF

MEGABYTES = 24.0
SCRIPTS = ("data.js", "chart.js", "curves.js", "map.js", "text.js", "answers.js", "page.js")  # in this order


class Written(NamedTuple):
    """What went into the file. `notes` say what is missing from it."""

    steps: int
    steps_with_answers: int
    steps_shown: int
    notes: list[str]


def write_report(
    run: Path, out: Path, *, force: bool = False, megabytes: float = MEGABYTES, media_root: Path | None = None
) -> Written:
    """The report of a run's directory as one HTML file.

    Numbers of all steps are in it. Answers and frames are kept of as many steps as fit in `megabytes`, spread
    evenly. Media are read under `media_root`, by default where the run's config says.
    """
    check_output_file(out, force=force)
    files = read_run(run)
    threshold = files.setting("grpo.threshold", 0.5)
    columns, table = _survey(files, threshold)
    steps, strips, notes = {}, [], []
    if table:
        with MediaReader() as reader:
            clips = Clips(files, media_root, reader)
            steps = _pack_steps(files, sorted(table), clips, int(megabytes * 1e6))
        strips, notes = clips.strips, clips.note()
    if len(steps) < len(table):
        notes.append(
            f"answers and frames of {len(steps)} of {len(table)} steps are in this file, spread evenly, to "
            f"keep it near {megabytes:g} MB; numbers of all steps are"
        )
    summary = {
        "run": files.path.resolve().name,
        "environment": files.environment,
        "metrics": columns,
        "before": files.before,
        "map": table,
        "shown": list(steps),
        "threshold": threshold,
        "refused": dict(files.refused),
        "notes": [*dict.fromkeys(files.notes), *notes],
        "findings": find(files, columns),
    }
    with whole_file(out) as file:
        file.write(_page(summary))
        for step, packed in steps.items():
            file.write(f'<script type="text/plain" id="step-{step}">{packed}</script>\n')
        for number, strip in enumerate(strips):
            file.write(f'<script type="application/json" id="strip-{number}">{strip}</script>\n')
        file.write("</body>\n</html>\n")
    return Written(len(columns["step"]), len(table), len(steps), summary["notes"])


def _survey(run: Run, threshold: float) -> tuple[dict[str, list], dict[int, list]]:
    """Every number of every step by name, and for each step with answers its prompts' shares of correct ones."""
    lines, table = {line["step"]: dict(line) for line in run.metrics}, {}
    with Progress("steps read", max(1, len(run.rollouts))) as progress:
        for step in sorted(run.rollouts):
            if prompts := run.prompts(step):
                table[step] = [share_correct(prompt, threshold) for prompt in prompts]
                # The share of a group's answers that are left without those that repeat another word by word.
                ordered = [prompt["groups"][0]["texts"] for prompt in prompts]
                distinct = statistics.fmean(len(set(texts)) / len(texts) for texts in ordered)
                lines.setdefault(step, {"step": step})["distinct"] = distinct
            progress.advance()
    steps = sorted(lines)
    names = sorted({name for line in lines.values() for name in line} - {"step"})
    return {"step": steps, **{name: [_number(lines[step].get(name)) for step in steps] for name in names}}, table


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _pack_steps(run: Run, steps: list[int], clips: Clips, budget: int) -> dict[int, str]:
    """Answers of as many steps as the budget of bytes holds, with the strips of frames that they need."""
    tokenizer = run.path / HF / "tokenizer.json"
    texts = TokenTexts(tokenizer) if tokenizer.is_file() else None
    if texts is None:
        run.notes.append(f"no {HF}/tokenizer.json: answers are shown without the log-probs of their tokens")
    packed, left = {}, budget
    with Progress("answers packed", budget, "B") as progress:
        for step in spread_out(steps):
            before = len(clips.strips)
            prompts = run.prompts(step)
            page = [show_prompt(prompt, texts, run) | {"frames": clips.show(prompt)} for prompt in prompts]
            content = _pack(page)
            size = len(content) + sum(map(len, clips.strips[before:]))
            if size > left and packed:
                del clips.strips[before:]  # what only this step needs
                break
            packed[step] = content
            progress.advance(size)
            left -= size
    return dict(sorted(packed.items()))


def _pack(content: Any) -> str:
    """JSON, gzipped, in base64: nothing in it can end the element that holds it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


def _page(summary: dict[str, Any]) -> str:
    """The document up to the answers. It may run this script and this style, and reach nothing else."""
    page = resources.files(__package__) / "page"
    style = (page / "style.css").read_text("utf-8")
    parts = "\n".join((page / name).read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}\n}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_sha256(style)}'; "
        f"script-src 'sha256-{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )
    template = Template((page / "page.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(summary["run"]), policy=policy, style=style, script=script, summary=_pack(summary)
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
