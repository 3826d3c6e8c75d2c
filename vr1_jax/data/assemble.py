"""One step's prompts as arrays: the part of the pipeline that runs in worker processes.

A step's batch is computed from the step's number alone, so any worker can build any step.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vr1_jax.data.collate import DoesNotFit, PromptLayout, collate, collate_answers, mrope_positions, require_fit
from vr1_jax.data.encode import Encoded, Encoder, Media, ShuffleBy, shuffled_patches, shuffled_slots
from vr1_jax.data.quarantine import Refusal, RefusedErrors
from vr1_jax.data.sources import Group, Records
from vr1_jax.errors import UserError
from vr1_jax.media.cache import CachedMedia

# Which record stands where: a pure function of the seed and the step.
#
# Records are sorted into *groups*, one to a bucket, and every step takes its prompts from one group. An epoch has
# as many steps as it takes to see every record once, the groups' turns shuffled. A group's records are an endless
# sequence of passes, each shuffled anew; a batch may take the end of one pass and the start of the next, so no
# record is left out and none has a fixed neighbour.
#
# A place whose record turns out bad is filled by the record at the same place of another shuffled order of the
# group, then by the ones after it. That order depends on nothing that was decoded, so neither other processes nor
# earlier steps need to be asked. The price is that about as many good records are seen twice in a pass as there
# are bad ones.
#
# A step may ask for further batches of its own group. They too come from shuffled orders of their own, so that how
# often steps ask changes nothing for the steps after them.

TURNS, PLACES, SUBSTITUTES, REFILLS = range(4)  # what a stream of random numbers is for


class Order:
    """Batches of `rows` records from groups of the given sizes. `shares` are the groups' parts of the steps."""

    def __init__(self, sizes: Sequence[int], rows: int, seed: int, shares: Sequence[float] | None = None):
        self.sizes, self.rows, self.seed = tuple(sizes), rows, seed
        batches = [-(-size // rows) for size in sizes]
        if shares is not None:
            total = sum(batches)
            batches = [max(1, round(total * share)) if share > 0 else 0 for share in shares]
        self.batches = tuple(batches)

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.batches)

    def batch(self, step: int) -> tuple[int, int]:
        """The step's group, and the place of the batch's first row in the group's endless sequence."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        groups, earlier = _turns(self.seed, self.batches, epoch)
        group = int(groups[turn])
        return group, (epoch * self.batches[group] + int(earlier[turn])) * self.rows

    def record(self, group: int, place: int, attempt: int = 0, refill: int = 0) -> int:
        """Which record fills a place, after `attempt` of them were refused; of further batch `refill`, if any."""
        size = self.sizes[group]
        number, offset = divmod(place, size)
        if refill:
            return int(_permutation(self.seed, REFILLS, group, number, size, refill)[(offset + attempt) % size])
        if attempt == 0:
            return int(_permutation(self.seed, PLACES, group, number, size)[offset])
        substitutes = _permutation(self.seed, SUBSTITUTES, group, number, size)
        return int(substitutes[(offset + attempt - 1) % size])


@lru_cache(maxsize=4)
def _turns(seed: int, batches: tuple[int, ...], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each step of an epoch its group, and how many earlier steps of the epoch had the same one."""
    groups = np.repeat(np.arange(len(batches)), batches)
    groups = groups[np.random.default_rng([seed, TURNS, epoch]).permutation(len(groups))]
    earlier = np.empty(len(groups), np.int64)
    for group, count in enumerate(batches):
        earlier[groups == group] = np.arange(count)
    return groups, earlier


@lru_cache(maxsize=16)
def _permutation(seed: int, purpose: int, group: int, number: int, size: int, *refill: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose, group, number, *refill]).permutation(size)


MAX_TRIES = 200  # with half of all records bad, a place stays empty once in 10^60


@dataclasses.dataclass(frozen=True)
class Assembler:
    """Builds the rows first..first + count - 1 of any step. `known` records are passed over untried."""

    records: Records
    groups: list[Group]
    order: Order
    encoder: Encoder
    layout: PromptLayout
    media: Media
    seed: int
    first: int
    count: int
    shuffle: ShuffleBy | None
    answer_tokens: int | None
    known: frozenset[int]
    # Refused in this process: the same refusal without decoding the file again.
    _refused: dict[int, Refusal] = dataclasses.field(default_factory=dict)

    def __call__(self, step: int, refill: int = 0) -> dict:
        """Nested dicts of arrays, which Grain passes between processes in shared memory."""
        number, place = self.order.batch(int(step))
        refusals: dict[int, Refusal] = {}
        rows = range(self.first, self.first + self.count)
        chosen = [self._fill(number, place + row, refill, refusals) for row in rows]
        encoded = [item for _, item in chosen]
        bucket = self.groups[number].bucket
        tokenizer, geometry = self.encoder.tokenizer, self.encoder.geometry
        values = 3 * geometry.temporal * geometry.patch**2
        ordered = collate(
            [item.prompt for item in encoded], bucket, self.layout, pad_token=tokenizer.pad_token, values=values
        )
        batch = {
            "step": int(step),
            "group": number,
            "ordered": ordered,
            "rows": [_row(record, item) for record, item in chosen],
            "row_ids": np.arange(rows.start, rows.stop, dtype=np.int32) + refill * self.order.rows,
            "refusals": [dataclasses.asdict(refusal) for refusal in refusals.values()],
            "media": dict(self.media.take_counts()) if isinstance(self.media, CachedMedia) else {},
        }
        if self.shuffle and self.groups[number].kind == "video":
            batch["shuffled"], orders = self._shuffled(int(step), chosen, ordered)
            for row, order in zip(batch["rows"], orders, strict=True):
                row["shuffled_by"], row["order"] = self.shuffle, order.tolist()
        if self.answer_tokens is not None:
            batch["answers"] = self._answers(encoded, bucket.tokens)
        return batch

    def _fill(self, number: int, place: int, refill: int, refusals: dict[int, Refusal]) -> tuple[int, Encoded]:
        """The record for a place of a group: its own, or the first good one of its substitutes."""
        group = self.groups[number]
        tried = Counter()
        for attempt in range(MAX_TRIES):
            record = int(group.records[self.order.record(number, place, attempt, refill)])
            if record in self.known:
                continue
            try:
                if record not in self._refused:
                    return record, self._encode(record, group)
            except RefusedErrors as error:
                self._refused[record] = self._refusal(record, error)
            refusals[record] = self._refused[record]
            tried[refusals[record].reason] += 1
        reasons = ", ".join(f"{reason} {count}" for reason, count in tried.most_common()) or "all known"
        raise UserError(f"{MAX_TRIES} records of kind {group.kind} in a row cannot be used ({reasons})")

    def _encode(self, record: int, group: Group) -> Encoded:
        source, index = self.records.locate(record)
        encoded = self.encoder(source.records[index], self.media, source.media_root)
        require_fit(encoded.prompt, group.bucket)
        # What does not go together must be refused here, where another record can take the place.
        mrope_positions(encoded.prompt.tokens, encoded.prompt.blocks, self.layout)
        if self.answer_tokens is not None and len(encoded.supervised.target) > self.answer_tokens:
            raise DoesNotFit(
                f"an answer of {len(encoded.supervised.target)} tokens does not fit {self.answer_tokens}"
            )
        return encoded

    def _refusal(self, record: int, error: Exception) -> Refusal:
        source, index = self.records.locate(record)
        return Refusal.of(error, str(source.records.path), index, source.records[index])

    def _shuffled(
        self, step: int, chosen: list[tuple[int, Encoded]], ordered: dict
    ) -> tuple[dict, list[np.ndarray]]:
        """The arrays in which the shuffled prompts differ from the ordered ones, and their orders."""
        chances = [np.random.default_rng([self.seed, step, record]) for record, _ in chosen]
        items = [item for _, item in chosen]
        if self.shuffle == "slices":
            units = ordered["patches"].shape[2] // self.layout.merge**2
            rows = zip(items, ordered["visual_slots"], chances, strict=True)
            slots, orders = zip(*(shuffled_slots(item, row, units, rng) for item, row, rng in rows), strict=True)
            return {"visual_slots": np.stack(slots)}, list(orders)
        patches, orders = np.zeros_like(ordered["patches"]), []
        for row, item, rng in zip(patches, items, chances, strict=True):
            values, order = shuffled_patches(item, rng, self.encoder.geometry)
            row[: values.shape[0], : values.shape[1]] = values
            orders.append(order)
        return {"patches": patches}, orders

    def _answers(self, encoded: list[Encoded], prompt_tokens: int) -> dict:
        supervised = [item.supervised for item in encoded]
        answers = collate_answers(
            [item.target for item in supervised],
            [item.target_loss for item in supervised],
            self.answer_tokens,
            self.encoder.tokenizer.pad_token,
        )
        answers["prompt_loss"] = np.zeros((len(encoded), prompt_tokens), bool)
        for row, item in zip(answers["prompt_loss"], supervised, strict=True):
            row[prompt_tokens - len(item.prompt) :] = item.prompt_loss
        return answers


def _row(record: int, encoded: Encoded) -> dict:
    """What rewards, logs and reports need to know of a record."""
    sample = encoded.sample
    fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    del fields["extras"]
    return fields | {
        "record": record,
        "options": list(sample.options),
        "is_video": sample.is_video,
        "frames": 0 if encoded.view is None else len(encoded.view.frames),
        "frame_indices": list(encoded.indices),
        "seconds_per_slice": encoded.seconds_per_slice,
    }
