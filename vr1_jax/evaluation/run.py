"""A benchmark from its files to its output: `scripts/evaluate.py` without the command line."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vr1_jax.config_files import flat
from vr1_jax.data.prompts import Presentation
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError
from vr1_jax.errors import UserError
from vr1_jax.evaluation.answering import Asking, Clock, Questions, answer_questions, chunk_size
from vr1_jax.evaluation.benchmarks import recognise
from vr1_jax.evaluation.chat import ChatModel, load_chat_model
from vr1_jax.evaluation.journal import Journal, OtherSettings
from vr1_jax.evaluation.results import final_acc, result_of, summarize
from vr1_jax.files import whole_file
from vr1_jax.progress import Progress
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import make_mesh
from vr1_jax.weights.checkpoint_dir import ASSETS, PARAMS, assets_directory, find_checkpoint, is_checkpoint

CHANNELS = 3
# What may differ between a run and its resumption: the same files elsewhere are the same files.
NAMES = ("model.name", "annotations.name")


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how. The last four fields change no answer beyond rounding."""

    model: Path
    annotations: Path
    media_root: Path
    out: Path
    asked: Presentation = Presentation().evaluated()
    sampling: SamplingConfig = SamplingConfig(1024, temperature=0.01, top_p=0.001)
    rules: str = "fixed"
    dtype: str | None = None
    seed: int = 0
    samples: int = 1  # answers to each question
    limit: int | None = None  # the first records only
    tensor: int = 1  # devices that hold the weights together
    rows: int | None = None  # at once on one device; None for as many as fit
    workers: int | None = None  # threads that read media, each with a process of its own
    force: bool = False


def journal_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.answers.jsonl")


def timing_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.timing.json")


def evaluate(evaluation: Evaluation) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the output file; its content without the single results, and where the time went."""
    records = RecordFile(evaluation.annotations)
    numbers = range(len(records))[: evaluation.limit]
    if not numbers:
        raise UserError(f"{evaluation.annotations}: holds no records")
    mesh = make_mesh(data=-1, fsdp=1, tensor=evaluation.tensor)
    chat = load_chat_model(evaluation.model, dtype=evaluation.dtype, presentation=evaluation.asked, mesh=mesh)
    questions = Questions(records, evaluation.media_root, chat)
    passport = describe(evaluation, chat)
    with _open_journal(evaluation, passport) as journal, Progress("answered", len(numbers)) as progress:
        known = len(journal)
        clock = answer_questions(questions, numbers, _asking(evaluation, chat), journal, progress)
        timing = _timing(clock, chat, len(numbers) - known)
        benchmark = recognise(evaluation.annotations.stem, (_record(records, number) for number in numbers))
        results = [result_of(_record(records, number), journal[number], evaluation.rules) for number in numbers]
    content = {
        "final_acc": [final_acc(results)],
        "summary": summarize(results, benchmark, evaluation.rules, evaluation.samples),
        "passport": passport,
    }
    with whole_file(evaluation.out) as file:
        json.dump({"results": results} | content, file, indent=1, ensure_ascii=False)
        file.write("\n")
    with whole_file(timing_path(evaluation.out)) as file:
        json.dump(timing, file, indent=1)
    journal.path.unlink()
    return content, timing


def check_media(evaluation: Evaluation) -> list[str]:
    """Why records cannot be asked, as far as files tell before any model is loaded; an error if none can."""
    records, found = RecordFile(evaluation.annotations), []
    for number in (numbers := range(len(records))[: evaluation.limit]):
        try:
            sample = records[number]
            if sample.path is not None:
                sample.media(evaluation.media_root)
        except RecordError as error:
            found.append(str(error))
    if found and len(found) == len(numbers):
        raise UserError(f"no record can be asked; the first: {found[0]}")
    return found


def describe(evaluation: Evaluation, chat: ChatModel) -> dict[str, Any]:
    """All that the answers depend on; and `rules`, which they do not."""
    asked = evaluation.asked
    passport = {
        "model": {
            "name": evaluation.model.name,
            "weights_sha256": weights_hash(evaluation.model),
            "assets_sha256": assets_hash(evaluation.model),
        },
        "annotations": {
            "name": evaluation.annotations.name,
            "sha256": file_hash(evaluation.annotations),
            "limit": evaluation.limit,
        },
        "rules": evaluation.rules,
        "prompt": {"preset": asked.prompt} | dataclasses.asdict(asked.style),
        "frames": dataclasses.asdict(asked.frames),
        "images": dataclasses.asdict(asked.images),
        "positions": asked.positions,
        "spacing": asked.spacing,
        "decoding": dataclasses.asdict(evaluation.sampling),
        "seed": evaluation.seed,
        "samples": evaluation.samples,
        "dtype": str(chat.dtype),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    return json.loads(json.dumps(passport))


def _open_journal(evaluation: Evaluation, passport: dict[str, Any]) -> Journal:
    settings = flat({name: value for name, value in passport.items() if name != "rules"})
    settings = {name: value for name, value in settings.items() if name not in NAMES}
    path = journal_path(evaluation.out)
    try:
        return Journal(path, settings)
    except OtherSettings:
        if not evaluation.force:
            raise
    path.unlink()
    return Journal(path, settings)


def _asking(evaluation: Evaluation, chat: ChatModel) -> Asking:
    frames = evaluation.asked.frames
    frame_bytes = int(frames.pixel_range(frames.max_frames)[1]) * CHANNELS
    return Asking(
        evaluation.sampling,
        evaluation.seed,
        chat.batcher(evaluation.rows),
        chunk_size(frame_bytes, frames.max_frames),
        evaluation.workers,
        evaluation.samples,
    )


def _record(records: RecordFile, number: int) -> Any:
    """As it goes into the output: what no file can hold (half a surrogate pair) becomes a question mark."""
    try:
        text = json.dumps(records.raw(number), ensure_ascii=False)
    except RecordError:
        return {}
    return json.loads(text.encode("utf-8", "replace"))


def _timing(clock: Clock, chat: ChatModel, answered: int) -> dict[str, Any]:
    total = clock.total
    return {
        "questions": answered,
        "seconds": round(total, 3),
        "by_activity": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
        "share_waiting_for_media": round(clock.seconds.get("waiting for media", 0.0) / total, 4),
        "devices": jax.device_count(),
        "batches_split_over": chat.devices,
    }


# What a result depends on, as hashes and versions: the same identity gives the same answers.

# Assets that decide what the model is asked and when it stops; licences and image processors do not.
ASKING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
LIBRARIES = ("vr1_jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "decord", "av", "pillow", "numpy")


def weights_hash(model: Path) -> str:
    """Of the safetensors files of a Hugging Face directory, or of a checkpoint's newest arrays."""
    if is_checkpoint(model):
        root = find_checkpoint(model).directory / PARAMS
        return _hash(root, (path for path in root.rglob("*") if path.is_file()))
    return _hash(model, model.glob("*.safetensors"))


def assets_hash(model: Path) -> str:
    """Of config, tokenizer, chat template and stop tokens."""
    root = assets_directory(model)
    return _hash(root, (root / name for name in ASKING if name in ASSETS and (root / name).is_file()))


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(root: Path, files: Iterable[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()
