"""Whether a config's buckets hold what its pixel budgets can make, before any record is read."""

import logging

from vr1_jax.config import DataConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.data.sources import Kind
from vr1_jax.errors import UsageError
from vr1_jax.media.frames import most_units
from vr1_jax.models.config import VisionConfig

log = logging.getLogger("vr1_jax")


def largest_media(data: DataConfig, vision: VisionConfig) -> dict[Kind, Bucket]:
    """The largest video and image of any shape that is read, in slices, patches and visual tokens."""

    def full(slices: int, pixels: tuple[int | float, int | float]) -> Bucket:
        units = most_units(*pixels, vision.patch * vision.merge)
        return Bucket(slices, units * vision.merge**2, slices * units)

    slices = -(-data.frames.max_frames // vision.temporal)
    return {
        "video": full(slices, data.frames.pixel_range(1)),  # the fewest frames may have the most pixels
        "image": full(1, (data.images.min_pixels, data.images.max_pixels)),
    }


def check_buckets(data: DataConfig, vision: VisionConfig) -> None:
    """Refuse buckets that no record of full length fits; say so where frames of some shapes do not fit."""
    for kind, largest in largest_media(data, vision).items():
        buckets, budget = getattr(data, f"{kind}_buckets"), data.frames if kind == "video" else data.images
        for bucket in buckets:
            if bucket.tokens <= (units := bucket.slices * bucket.patches // vision.merge**2):
                raise UsageError(
                    f"data.{kind}_buckets: {bucket}: a full one has {units} visual tokens, which leave no room "
                    f"for a question in {bucket.tokens}"
                )
        least = -(-budget.min_pixels // vision.patch**2)
        if buckets and not any(b.slices >= largest.slices and b.patches >= least for b in buckets):
            raise UsageError(
                f"data.{kind}_buckets: none holds {largest.slices} slices of {least} patches, the least that "
                f"data.{'frames' if kind == 'video' else 'images'} makes of so many"
            )
        if buckets and not any(bucket.holds(largest) for bucket in buckets):
            log.info("data.%s_buckets: the widest %s makes %s; what fits none is refused", kind, kind, largest)
