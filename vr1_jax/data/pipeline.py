"""Batches for training: every step's prompts from one bucket, the same whatever machine, worker or restart.

Why it is built this way. Which records a step holds, and what takes a bad record's place, are pure functions of
(seed, step) and of what the record files say (`order`, `sources`). So

- every process of a multi-host run knows every step's bucket and order without asking another, and decodes only
  its own rows of it (a contiguous block, as a sharded batch axis wants them);
- a worker builds whole steps, in any number of workers;
- the state to save is the number of the next step, and nothing half-filled is ever pending.

The alternative, filling buckets from a stream as prompts turn out, needs every process to decode every record or
to talk about each bad one.

Importing Grain imports jax where jax is installed (its tree functions prefer jax's), in workers too. Nothing
here starts a backend, and workers are started with JAX_PLATFORMS=cpu, so that none can take a device.
"""

import contextlib
import copy
import dataclasses
import functools
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vr1_jax.data.assemble import Assembler, Order
from vr1_jax.data.collate import Bucket, PromptLayout
from vr1_jax.data.encode import Encoder, Media, ShuffleBy
from vr1_jax.data.quarantine import Refusal
from vr1_jax.data.sources import Group, Kind, Records, Selection, Source, fingerprint, group_records
from vr1_jax.errors import UserError
from vr1_jax.media.isolation import end_with_parent

ENDLESS = 1 << 40


@dataclass(frozen=True)
class Batching:
    """How records become batches. `rows` is the prompts of a step, over all processes.

    `weights` divide the steps among the kinds they name; a kind without a weight keeps its share of the records.
    None takes all records as they come. `selection` says which records those are. `shuffle` adds to every
    batch of videos the same prompts in another order of time. `answer_tokens` adds the answers to learn, padded
    to that length, and needs an encoder with `supervised`.
    """

    rows: int
    buckets: Mapping[Kind, Sequence[Bucket]]
    seed: int = 0
    weights: Mapping[Kind, float] | None = None
    selection: Selection = Selection()
    shuffle: ShuffleBy | None = None
    answer_tokens: int | None = None

    def __post_init__(self):
        if self.rows < 1:
            raise UserError(f"a batch of {self.rows} rows")
        if self.weights is not None and (min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0):
            raise UserError(f"weights must be positive, got {dict(self.weights)}")


@dataclass(frozen=True)
class Batch:
    """This process's rows of one step. Arrays have `types.Prompt`'s names, rows first.

    `shuffled` shares with `ordered` every array that is equal. `row_ids` number the rows of a step over all
    processes and refills.
    `refusals` were met on the way; `media` counts what a cache served ("cached", "decoded", "stale", "damaged").
    """

    step: int
    epoch: int
    kind: Kind
    bucket: Bucket
    ordered: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray] | None
    answers: dict[str, np.ndarray] | None
    rows: list[dict]
    row_ids: np.ndarray
    refusals: list[Refusal]
    media: dict[str, int]


class Pipeline:
    """All batches of a run, addressed by step.

        pipeline = Pipeline(sources, encoder, layout, media, batching, known=quarantine.known)
        quarantine.start(pipeline.unreadable, len(pipeline.records))
        with pipeline.batches(start=state, workers=4) as batches:
            for batch in batches:
                quarantine.add(batch.refusals, served=...)

    `sizes` [N, 3] are needed where a kind has several buckets. `known` are (file, index) of refused records.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        layout: PromptLayout,
        media: Media,
        batching: Batching,
        *,
        sizes: np.ndarray | None = None,
        known: frozenset[tuple[str, int]] = frozenset(),
        shard_index: int = 0,
        shard_count: int = 1,
    ):
        if not 0 <= shard_index < shard_count:
            raise UserError(f"process {shard_index} of {shard_count}")
        if batching.rows % shard_count:
            raise UserError(f"{batching.rows} rows do not divide among {shard_count} processes")
        if (batching.answer_tokens is None) != (encoder.supervised is None):
            raise UserError("answer_tokens and the encoder's supervised go together")
        _check_buckets(batching, layout)
        self.records = Records(sources)
        kinds, copies, self.unreadable = self.records.survey(batching.selection, batching.seed)
        self.groups, too_large = group_records(self.records, kinds, batching.buckets, sizes, copies)
        self.unreadable += too_large
        self._order = Order(
            [len(group.records) for group in self.groups],
            batching.rows,
            batching.seed,
            None if batching.weights is None else _shares(self.groups, batching.weights),
        )
        self._fingerprint = fingerprint(
            self.groups, {"rows": batching.rows, "seed": batching.seed, "batches": self._order.batches}
        )
        count = batching.rows // shard_count
        known_records = (n for n in range(len(self.records)) if self.records.key(n) in known) if known else ()
        self._assembler = Assembler(
            self.records,
            self.groups,
            self._order,
            encoder,
            layout,
            media,
            batching.seed,
            first=shard_index * count,
            count=count,
            shuffle=batching.shuffle,
            answer_tokens=batching.answer_tokens,
            known=frozenset(known_records),
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def batches(self, start: Mapping | None = None, workers: int = 0, ahead: int = 2) -> "Batches":
        """Batches from a saved state on, or from the first. `ahead` are kept ready, by each worker if any."""
        step = 0
        if start is not None:
            if start.get("order") != self._fingerprint:
                raise UserError(
                    "the saved position belongs to other records, buckets or batch settings; "
                    "restore them, or start the data from the beginning"
                )
            step = start["step"]
        return Batches(self, step, workers, ahead)

    def _stream(self, step: int, workers: int, ahead: int):
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain asks for its flags' values; the program takes no absl flags
            flags.FLAGS.mark_as_parsed()
        steps = grain.MapDataset.range(step, ENDLESS).map(self._assembler)
        stream = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
            stream = stream.mp_prefetch(options, worker_init_fn=_belong_to_the_run)
        iterator = iter(stream)
        with _environment(JAX_PLATFORMS="cpu"):
            iterator.start_prefetch()
        return iterator

    @functools.cached_property
    def _refiller(self) -> Assembler:
        """Beside the one that works ahead: what it remembers and reads with is not shared between threads."""
        return dataclasses.replace(self._assembler, media=copy.copy(self._assembler.media), _refused={})

    def _refill(self, step: int, number: int) -> Batch:
        return self._batch(self._refiller(step, number))

    def _batch(self, element: dict) -> Batch:
        group, ordered = self.groups[element["group"]], element["ordered"]
        return Batch(
            step=element["step"],
            epoch=element["step"] // self.steps_per_epoch,
            kind=group.kind,
            bucket=group.bucket,
            ordered=ordered,
            shuffled=ordered | element["shuffled"] if "shuffled" in element else None,
            answers=element.get("answers"),
            rows=element["rows"],
            row_ids=element["row_ids"],
            refusals=[Refusal(**refusal) for refusal in element["refusals"]],
            media=element["media"],
        )


class Batches(Iterator[Batch]):
    """Endless batches, prepared ahead. Close it, or use it in a `with`, to end its workers."""

    def __init__(self, pipeline: Pipeline, step: int, workers: int, ahead: int):
        self._pipeline, self._next = pipeline, step
        self._stream = pipeline._stream(step, workers, ahead)
        self._refills = ThreadPoolExecutor(1, thread_name_prefix="refill")

    def __next__(self) -> Batch:
        batch = self._pipeline._batch(next(self._stream))
        self._next = batch.step + 1
        return batch

    def refill(self, number: int) -> "Future[Batch]":
        """Further batch `number` (1, 2, ...) of the step last taken: its group, and so its kind and its bucket.

        It is made while the caller works on the batch before. The position to save does not know of it.
        """
        return self._refills.submit(self._pipeline._refill, self._next - 1, number)

    def state(self) -> dict[str, int | str]:
        """What `Pipeline.batches` needs to go on after the last batch taken; JSON, for any worker count."""
        return {"step": self._next, "order": self._pipeline._fingerprint}

    def close(self) -> None:
        self._refills.shutdown(wait=False, cancel_futures=True)
        self._stream.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_buckets(batching: Batching, layout: PromptLayout) -> None:
    for bucket in (bucket for buckets in batching.buckets.values() for bucket in buckets):
        if bucket.patches % layout.merge**2:
            raise UserError(f"a bucket of {bucket}: patches must be a multiple of {layout.merge**2}")


def _shares(groups: Sequence[Group], weights: Mapping[Kind, float]) -> list[float]:
    """Each group's part of the steps: its kind's, spread by the number of records."""
    counts = {kind: sum(len(g.records) for g in groups if g.kind == kind) for kind in {g.kind for g in groups}}
    if lacking := sorted(kind for kind, weight in weights.items() if weight > 0 and kind not in counts):
        raise UserError(f"image_share wants {', '.join(lacking)} records, and there are none")
    share = {kind: count / sum(counts.values()) for kind, count in counts.items()}
    weighted = sum(share.get(kind, 0.0) for kind in weights)
    share |= {kind: weighted * weight / sum(weights.values()) for kind, weight in weights.items()}
    return [share[g.kind] * len(g.records) / counts[g.kind] for g in groups]


@contextlib.contextmanager
def _environment(**settings: str) -> Iterator[None]:
    """Variables for child processes started inside."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _belong_to_the_run(worker: int, workers: int) -> None:
    """A worker ends when the main process says so or ends itself; schedulers send SIGTERM to all processes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
