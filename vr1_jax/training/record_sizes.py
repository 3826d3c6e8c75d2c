"""Sizes of a run's records, read once: RUN/sizes.npy, and RUN/sizes.json, what they depend on."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vr1_jax.data.ahead import cpu_count
from vr1_jax.data.encode import Encoder
from vr1_jax.data.sizes import measure
from vr1_jax.data.sources import Records, Source
from vr1_jax.files import read_json, write_json

TABLE, SETTINGS = "sizes.npy", "sizes.json"
_MOST_WORKERS = 16

log = logging.getLogger(__name__)


def keep(run: Path, sources: Sequence[Source], encoder: Encoder) -> None:
    """Measure all records, unless the run has their sizes. Media are taken to stay what they are: a run that goes
    on must find its records in the buckets where they were."""
    settings = _settings(sources, encoder)
    if (run / SETTINGS).is_file() and read_json(run / SETTINGS) == settings:
        return
    records = Records(sources)
    log.info(
        "reading the sizes of %d records, once (scripts/choose_buckets.py --sizes does it beforehand)",
        len(records),
    )
    done = 0

    def progress() -> None:
        nonlocal done
        done += 1
        if 10 * done // len(records) > 10 * (done - 1) // len(records):
            log.info("  %d of %d", done, len(records))

    workers = min(_MOST_WORKERS, cpu_count())
    found = measure(records, range(len(records)), encoder, workers=workers, progress=progress)
    (run / SETTINGS).unlink(missing_ok=True)
    with (run / TABLE).open("wb") as file:
        np.save(file, found.table)
        os.fsync(file.fileno())
    write_json(run / SETTINGS, settings)  # last: where it is, the table is whole


def kept(run: Path) -> np.ndarray:
    return np.load(run / TABLE)


def _settings(sources: Sequence[Source], encoder: Encoder) -> dict[str, Any]:
    """What the sizes depend on; of record files the content, for the same file elsewhere is the same."""
    digest = hashlib.sha256()
    for source in sources:
        with source.records.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {
        "records": digest.hexdigest(),
        "frames": dataclasses.asdict(encoder.frame_budget),
        "images": dataclasses.asdict(encoder.image_budget),
        "style": dataclasses.asdict(encoder.style),
        "unit": encoder.geometry.unit,
    }
