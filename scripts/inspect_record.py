"""Shows what one record becomes: text, tokens, which of them the loss counts, how many are visual.

    python scripts/inspect_record.py --records train.json --index 17 --media-root media --model DIR

The record goes the way that it goes in training: with reasoning (or --stage sft) as an example to learn, else as a
question to answer. Exit code: 0 done, 1 failed, 2 wrong usage.
"""

import json
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vr1_jax.arguments import Budgets
from vr1_jax.command_line import run_command

if TYPE_CHECKING:
    from vr1_jax.data.encode import Encoded
    from vr1_jax.data.records import Sample
    from vr1_jax.data.tokenizer import ChatTokenizer


@dataclass(frozen=True, kw_only=True)
class Arguments(Budgets):
    records: Path  # JSON list or JSON lines
    # Hugging Face, converted or run directory
    model: Annotated[Path, tyro.conf.arg(aliases=("--tokenizer",))]
    media_root: Path | None = None  # directory that the record's path is relative to
    index: int = 0  # which record, from 0; negative from the end
    preset: Literal["fixed", "upstream"] = "fixed"  # whose wording of prompts
    stage: Literal["sft", "rl", "evaluation"] | None = None  # None: sft for records with reasoning, else rl
    loss_on: Literal["answer", "upstream"] = "answer"  # what supervised loss counts
    json: bool = False  # one JSON object instead of a report


def show(chosen: Arguments) -> None:
    frames, images = chosen.budgets()
    from vr1_jax.data.encode import GEOMETRY, Encoder
    from vr1_jax.data.prompts import prompt_style
    from vr1_jax.data.tokenizer import load_tokenizer
    from vr1_jax.media.reader import MediaReader
    from vr1_jax.weights.checkpoint_dir import assets_directory

    sample = read_sample(chosen.records, chosen.index)
    if chosen.media_root is None and sample.data_type != "text":
        sample.refuse("--media-root is needed to read its media", "path")
    tokenizer = load_tokenizer(assets_directory(chosen.model))
    stage = chosen.stage or ("sft" if sample.process else "rl")
    encoder = Encoder(
        tokenizer,
        frames,
        images,
        GEOMETRY,
        prompt_style(chosen.preset, stage),
        chosen.loss_on if stage == "sft" else None,
    )
    with MediaReader(unit=GEOMETRY.unit) as reader:
        encoded = encoder(sample, reader, chosen.media_root or Path())
    report = inspect(encoded, stage, tokenizer)
    if chosen.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report, tokenizer)


def describe_media(encoded: "Encoded") -> str:
    if (view := encoded.view) is None:
        return "none"
    count, height, width, _ = view.frames.shape
    if (clip := view.clip) is None:
        return f"image, {width}x{height} after resizing"
    return (
        f"{count} of {clip.total_frames} frames, {width}x{height} after resizing, {view.block.grid[0]} temporal "
        f"slices, read by {clip.reader}; frames {', '.join(map(str, clip.indices))} at "
        f"{', '.join(f'{time:.2f}' for time in clip.timestamps)} s"
    )


def inspect(encoded: "Encoded", stage: str, tokenizer: "ChatTokenizer") -> dict[str, Any]:
    sample, prompt, learned = encoded.sample, encoded.prompt.tokens.tolist(), encoded.supervised
    target = [] if learned is None else learned.target
    supervised = [False] * len(prompt) if learned is None else learned.prompt_loss + learned.target_loss
    return {
        "file": sample.file,
        "index": sample.index,
        "data_type": sample.data_type,
        "problem_type": sample.problem_type,
        "answer": sample.answer,
        "stage": stage,
        "media": describe_media(encoded),
        "visual_tokens": sum(token in (tokenizer.image_token, tokenizer.video_token) for token in prompt),
        "prompt_tokens": len(prompt),
        "target_tokens": len(target),
        "supervised_tokens": sum(supervised),
        "tokens": prompt + target,
        "supervised": supervised,
        "text": tokenizer.hf.decode(prompt + target),
    }


def read_sample(records: Path, index: int) -> "Sample":
    from vr1_jax.data.record_file import RecordFile
    from vr1_jax.data.records import RecordError

    file = RecordFile(records)
    if not -len(file) <= index < len(file):
        raise RecordError(f"has {len(file)} records, there is no --index {index}", file=str(records))
    return file[index]


def print_report(report: dict[str, Any], tokenizer: "ChatTokenizer") -> None:
    for name, value in report.items():
        if name not in ("tokens", "supervised", "text"):
            print(f"{name.replace('_', ' ')}: {value}")
    print("\nposition  token   in loss  text")
    position = 0
    for (token, counts), run in groupby(zip(report["tokens"], report["supervised"], strict=True)):
        repeats = len(list(run))
        times = f"  x {repeats}" if repeats > 1 else ""
        print(f"{position:8}  {token:6}  {'yes' if counts else '-':7}  {tokenizer.hf.decode([token])!r}{times}")
        position += repeats
    visual = tokenizer.hf.decode([tokenizer.video_token]), tokenizer.hf.decode([tokenizer.image_token])
    text = report["text"]
    for placeholder in visual:
        run = placeholder * report["visual_tokens"]
        text = text.replace(run, f"{placeholder} x {report['visual_tokens']}") if run else text
    print(f"\n{text}")


def main(arguments: list[str] | None = None) -> int:
    return run_command("inspect_record", show, Arguments, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
