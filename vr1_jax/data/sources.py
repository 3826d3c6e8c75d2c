"""Record files with their media, and which records can share a batch.

A *group* is the records of one bucket. With one bucket per kind (image, video, text) the kind decides, which the
record itself tells. With several per kind the sizes must be known beforehand, see `sizes`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vr1_jax.data.collate import Bucket, DoesNotFit
from vr1_jax.data.quarantine import Refusal
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.records import RecordError, Sample
from vr1_jax.errors import UserError

Kind = Literal["image", "video", "text"]
KINDS: tuple[Kind, ...] = ("image", "video", "text")
UNUSED = -1
SELECTION = 3  # what a stream of random numbers is for, see `order`


def kind_of(sample: Sample) -> Kind:
    """Folders of frames are videos."""
    return "video" if sample.is_video else sample.data_type


@dataclass(frozen=True)
class Source:
    """A file of records and the directory that its media paths are relative to."""

    records: RecordFile
    media_root: Path


@dataclass(frozen=True)
class Selection:
    """Which records are drawn, and how often."""

    # By `data_source`, 1 where none is given: 2 is twice in every pass, 0 never, 0.5 a random half of its records.
    weights: Mapping[str, float] = field(default_factory=dict)
    pass_rate: tuple[float, float] | None = None  # lowest and highest; a record without one is left out

    def copies(self, sources: Sequence[str | None], rates: Sequence[float | None], seed: int) -> np.ndarray:
        """How often each record stands in a pass."""
        if unknown := sorted(self.weights.keys() - set(sources)):
            there = ", ".join(repr(source) for source in sorted(set(sources) - {None})[:_SHOWN_SOURCES])
            raise UserError(f"data.source_weights names {unknown[0]!r}; the records' data_source is {there}")
        chance = np.random.default_rng([seed, SELECTION]).random(len(sources))
        copies = np.floor([self.weights.get(source, 1.0) for source in sources] + chance).astype(np.int64)
        if self.pass_rate is not None:
            low, high = self.pass_rate
            known = np.array(rates, np.float64)  # None becomes nan, which lies nowhere
            if np.isnan(known).all():
                raise UserError(
                    "data.pass_rate is set, and no record has a pass_rate; scripts/annotate.py adds it"
                )
            copies[~((low <= known) & (known <= high))] = 0
        if not copies.any():
            raise UserError("data.source_weights and data.pass_rate leave no record")
        return copies


@dataclass(frozen=True)
class Group:
    """Records that are batched together, as numbers into all sources' records; some may stand there repeatedly."""

    kind: Kind
    bucket: Bucket
    records: np.ndarray


class Records:
    """All records of all sources, numbered through; picklable."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(source.records) for source in self.sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, record: int) -> tuple[Source, int]:
        """The source of a record, and its index there."""
        number = int(np.searchsorted(self._starts, record, side="right")) - 1
        return self.sources[number], int(record - self._starts[number])

    def key(self, record: int) -> tuple[str, int]:
        """What names the record in a quarantine file."""
        source, index = self.locate(record)
        return str(source.records.path), index

    def survey(self, selection: Selection, seed: int) -> tuple[np.ndarray, np.ndarray, list[Refusal]]:
        """For every record the number of its kind (UNUSED where it is not drawn) and how often it is drawn in a
        pass; and the records that cannot be parsed."""
        kinds, refusals = np.full(len(self), UNUSED, np.int8), []
        sources: list[str | None] = [None] * len(self)
        rates: list[float | None] = [None] * len(self)
        for record in range(len(self)):
            source, index = self.locate(record)
            try:
                sample = source.records[index]
                kinds[record], sources[record] = KINDS.index(kind_of(sample)), sample.data_source
                rates[record] = sample.pass_rate
            except RecordError as error:
                refusals.append(Refusal.of(error, str(source.records.path), index))
        copies = selection.copies(sources, rates, seed)
        return np.where(copies > 0, kinds, UNUSED), copies, refusals


def group_records(
    records: Records,
    kinds: np.ndarray,
    buckets: Mapping[Kind, Sequence[Bucket]],
    sizes: np.ndarray | None,
    copies: np.ndarray,
) -> tuple[list[Group], list[Refusal]]:
    """Each record in the cheapest bucket of its kind that holds it, and those too large for all of them."""
    groups, refusals = [], []
    if sizes is not None and sizes.shape != (len(records), 3):
        raise UserError(f"sizes of {len(sizes)} records for {len(records)}: run choose_buckets --sizes again")
    for number, kind in enumerate(KINDS):
        members = np.flatnonzero(kinds == number)
        choice = sorted(buckets.get(kind, ()), key=cost)
        if len(members) and not choice:
            raise UserError(f"{len(members)} records are of kind {kind}, and no bucket is: add one")
        if len(choice) > 1 and sizes is None:
            raise UserError(f"{len(choice)} buckets for {kind} need the records' sizes")
        for bucket in choice:
            held = np.ones(len(members), bool)
            if sizes is not None:  # unknown sizes are -1: such a record meets its refusal when it is decoded
                held = (sizes[members] <= (bucket.slices, bucket.patches, bucket.tokens)).all(axis=1)
            if held.any():
                groups.append(Group(kind, bucket, np.repeat(members[held], copies[members[held]])))
            members = members[~held]
        refusals += [_too_large(records, int(record), Bucket(*sizes[record].tolist())) for record in members]
    if not groups:
        raise UserError("no record can be used")
    return groups, refusals


def _too_large(records: Records, record: int, size: Bucket) -> Refusal:
    source, index = records.locate(record)
    error = DoesNotFit(f"a prompt of {size} fits no bucket")
    return Refusal.of(error, str(source.records.path), index, source.records[index])


_SHOWN_SOURCES = 8
PATCH_COST = 0.1  # a patch passes through a tenth of the parameters that a token does (7B: 0.67 of 7.6 billion)


def cost(bucket: Bucket) -> float:
    """What a prompt of this shape costs, in tokens."""
    return bucket.tokens + PATCH_COST * bucket.slices * bucket.patches


def fingerprint(groups: Sequence[Group], settings: Mapping) -> str:
    """Equal for equal groups and settings: a saved position means the same record only then."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for group in groups:
        digest.update(f"{group.kind} {group.bucket}".encode())
        digest.update(group.records.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
