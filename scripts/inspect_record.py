"""Shows what one record becomes: text, tokens, which of them the loss counts, how many are visual.

python scripts/inspect_record.py --records train.json --index 17 --media-root media --model DIR
"""

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from vr1_jax.data.frames import IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, MediaError, VisualGeometry
from vr1_jax.data.prompts import LossOn, Preset, Stage, encode_prompt, encode_supervised, prompt_style
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.data.tokenizer import ChatTokenizer, TokenizerError, load_tokenizer


@dataclass(frozen=True)
class Media:
    """What was read of a record's image or video."""

    description: str
    visual_tokens: int


def read_media(sample: Sample, root: Path | None, budget: FrameBudget) -> Media:
    if sample.data_type == "text":
        return Media("none", 0)
    if root is None:
        raise RecordError("--media-root is needed to read its media", "path", sample.index, sample.file)
    from vr1_jax.data.media import MediaReader

    path, geometry = sample.media(root), VisualGeometry()
    with MediaReader() as reader:
        if sample.data_type == "image":
            height, width, _ = reader.image(path, IMAGE_BUDGET).shape
            return Media(
                f"image, {width}x{height} after resizing", (height // geometry.unit) * (width // geometry.unit)
            )
        clip = reader.frame_folder(path, budget) if sample.data_type == "frames" else reader.video(path, budget)
    count, height, width, _ = clip.frames.shape
    slices = -(-count // geometry.temporal)
    return Media(
        f"{count} of {clip.total_frames} frames, {width}x{height} after resizing, {slices} temporal slices, "
        f"read by {clip.reader}; frames {', '.join(map(str, clip.indices))} at "
        f"{', '.join(f'{time:.2f}' for time in clip.timestamps)} s",
        slices * (height // geometry.unit) * (width // geometry.unit),
    )


def inspect(sample: Sample, tokenizer: ChatTokenizer, media: Media, chosen: argparse.Namespace) -> dict[str, Any]:
    stage = chosen.stage or ("sft" if sample.process else "rl")
    style = prompt_style(chosen.preset, stage)
    if sample.process is None:
        prompt, target = encode_prompt(sample, tokenizer, media.visual_tokens, style), []
        supervised = [False] * len(prompt)
    else:
        tokens = encode_supervised(sample, tokenizer, media.visual_tokens, style, chosen.loss_on)
        prompt, target = tokens.prompt, tokens.target
        supervised = tokens.prompt_loss + tokens.target_loss
    return {
        "file": sample.file,
        "index": sample.index,
        "data_type": sample.data_type,
        "problem_type": sample.problem_type,
        "answer": sample.answer,
        "stage": stage,
        "media": media.description,
        "visual_tokens": media.visual_tokens,
        "prompt_tokens": len(prompt),
        "target_tokens": len(target),
        "supervised_tokens": sum(supervised),
        "tokens": prompt + target,
        "supervised": supervised,
        "text": tokenizer.hf.decode(prompt + target),
    }


def print_report(report: dict[str, Any], tokenizer: ChatTokenizer) -> None:
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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="JSON list or JSON lines")
    parser.add_argument("--index", type=int, default=0, help="which record, from 0; negative from the end")
    parser.add_argument("--media-root", type=Path, help="what the records' paths are relative to")
    parser.add_argument("--model", "--tokenizer", type=Path, required=True, help="directory with tokenizer.json")
    parser.add_argument("--preset", choices=get_args(Preset), default="fixed", help="whose wording of prompts")
    parser.add_argument(
        "--stage", choices=get_args(Stage), help="default: sft for records with reasoning, else rl"
    )
    parser.add_argument(
        "--loss-on", choices=get_args(LossOn), default="answer", help="what supervised loss counts"
    )
    parser.add_argument("--frames", type=int, default=TRAINING_BUDGET.max_frames, help="most frames of a video")
    parser.add_argument(
        "--frame-pixels", type=int, default=TRAINING_BUDGET.max_pixels, help="pixels of a frame after resizing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a report")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    try:
        budget = FrameBudget(
            min_frames=min(TRAINING_BUDGET.min_frames, chosen.frames),
            max_frames=chosen.frames,
            min_pixels=chosen.frame_pixels,
            max_pixels=chosen.frame_pixels,
        )
    except ValueError as error:
        print(f"inspect_record: --frames or --frame-pixels: {error}", file=sys.stderr)
        return 2
    try:
        sample = read_sample(chosen.records, chosen.index)
        media = read_media(sample, chosen.media_root, budget)
        tokenizer = load_tokenizer(chosen.model)
    except (RecordError, MediaError, TokenizerError) as error:
        print(f"inspect_record: {error}", file=sys.stderr)
        return 1
    report = inspect(sample, tokenizer, media, chosen)
    if chosen.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report, tokenizer)
    return 0


def read_sample(records: Path, index: int) -> Sample:
    file = RecordFile(records)
    if not -len(file) <= index < len(file):
        raise RecordError(f"has {len(file)} records, there is no --index {index}", file=str(records))
    return file[index]


if __name__ == "__main__":
    sys.exit(main())
