"""A video file to a sampled, resized clip: decord where it is right, PyAV where it is not.

decord seeks to a keyframe and counts frames from there, so it silently returns other frames than asked for
wherever that count is off: open GOPs, recovery points, AVI, transport streams. It hangs on edit lists that
hide frames. All of that shows in the packets, so every file is listed first and the list decides.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from vr1_jax.media.container import Listing, list_packets, open_container, video_stream
from vr1_jax.media.frames import FrameBudget, MediaError, frame_indices, frame_size, smart_nframes
from vr1_jax.media.images import read_frame_folder, require_file, resize_video_frame, target_size

CHUNK_BYTES = 1 << 27  # decord decodes whole requests into memory: ten thousand frames abort the process
TIME_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames sampled from a video, resized, and where they came from.

    `indices` count the frames that the file shows (`total_frames` of them); `timestamps` are seconds from
    the first one. `reason` says why decord did not read the file; it is empty where it did.
    """

    frames: UInt8[np.ndarray, "F height width 3"]
    indices: Int[np.ndarray, " F"]
    timestamps: Float[np.ndarray, " F"]
    total_frames: int
    duration: float
    fps: float
    reader: str
    reason: str

    @property
    def sample_fps(self) -> float:
        """Sampled frames per second of video, as upstream reports it to the processor."""
        return len(self.frames) / self.total_frames * self.fps


def clip_of_folder(path: str | Path, budget: FrameBudget, fps: float, unit: int = 28) -> Clip:
    """A folder of pictures, `fps` of them per second, as a clip."""
    frames, indices, total = read_frame_folder(path, budget, fps, unit)
    return Clip(frames, indices, indices / fps, total, total / fps, fps, "pillow", "a folder of frames")


class ReaderFailed(Exception):
    """One reader cannot deliver the frames asked for; another may."""


def read_clip(path: str | Path, budget: FrameBudget, unit: int = 28) -> Clip:
    """Sample a video file by its own timestamps, and resize the frames."""
    require_file(path)
    listing = list_packets(path)
    reason = listing.doubt
    if reason is None:
        try:
            return _sample(path, listing, budget, unit, read_decord, "")
        except ReaderFailed as failure:
            reason = str(failure)
    if listing.seekable:
        try:
            return _sample(path, listing, budget, unit, read_seeking, reason)
        except ReaderFailed:
            pass  # the container does not seek as it lists: decode from the start instead
    if listing.timed:
        try:
            return _sample(path, listing, budget, unit, read_in_order, reason)
        except ReaderFailed as failure:
            reason = f"{reason}; {failure}"
    return _sample(path, count_frames(path, listing), budget, unit, read_in_order, reason)


def _sample(path, listing: Listing, budget: FrameBudget, unit: int, read, reason: str) -> Clip:
    total = len(listing.pts)
    if not total:
        raise MediaError(path, "undecodable", "no frames")
    fps = listing.fps
    indices = frame_indices(total, smart_nframes(total, fps, budget))
    frames = []
    for frame in read(path, listing, indices):
        if not frames:
            size = target_size(path, frame.shape, lambda h, w: frame_size(h, w, len(indices), budget, unit))
        frames.append(resize_video_frame(frame, *size))
    reader = "decord" if read is read_decord else "pyav"
    seconds = listing.seconds[indices]
    return Clip(np.stack(frames), indices, seconds, total, listing.duration, fps, reader, reason)


def read_decord(path: str | Path, listing: Listing, indices: Int[np.ndarray, " F"]) -> Iterator[np.ndarray]:
    """Frames by number. Refuses a file of which decord lists other frames or times than its packets."""
    import decord

    try:
        video = decord.VideoReader(str(Path(path).absolute()), num_threads=1)
        total = len(video)
        if total != len(listing.pts):
            raise ReaderFailed(f"decord counts {total} frames of {len(listing.pts)}")
        seconds = video.get_frame_timestamp(np.arange(total))[:, 0]
        if np.abs(seconds - listing.pts * float(listing.time_base)).max() > TIME_TOLERANCE:
            raise ReaderFailed("decord's timestamps are not the file's")
        chunk = max(1, CHUNK_BYTES // (listing.frame_pixels * 3))
        for start in range(0, len(indices), chunk):
            yield from video.get_batch(indices[start : start + chunk].tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise ReaderFailed(f"decord: {_first_line(error)}") from error


def read_seeking(path: str | Path, listing: Listing, indices: Int[np.ndarray, " F"]) -> Iterator[np.ndarray]:
    """Frames by timestamp, each decoded from the keyframe before it."""
    import av

    wanted = listing.pts[indices]
    starts = listing.keyframes[np.maximum(np.searchsorted(listing.keyframes, wanted, side="right") - 1, 0)]
    with open_container(path) as container:
        stream = video_stream(path, container)
        for start in np.unique(starts):
            try:
                container.seek(int(start), stream=stream)
                decoded = (
                    frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= start
                )
                yield from _pick(decoded, wanted[starts == start], int(start))
            except av.FFmpegError as error:
                raise MediaError(path, "undecodable", f"damaged video: {error.strerror}") from error


def _pick(decoded, wanted, start: int) -> Iterator[np.ndarray]:
    """The wanted frames of a run that must begin with an intact keyframe at `start`."""
    from av.video.frame import PictureType

    remaining = list(wanted)
    for number, frame in enumerate(decoded):
        if number == 0 and (frame.pts != start or frame.pict_type != PictureType.I):
            raise ReaderFailed("seeking does not land on keyframes")
        if frame.pts == remaining[0]:
            yield to_rgb(frame)
            remaining.pop(0)
        if not remaining:
            return
        if frame.pts > remaining[0]:
            break
    raise ReaderFailed("a listed frame is not shown")


def read_in_order(path: str | Path, listing: Listing, indices: Int[np.ndarray, " F"]) -> Iterator[np.ndarray]:
    """Frames by decoding from the start: by timestamp where the listing has them, else by number."""
    wanted = listing.pts[indices].tolist() if listing.timed else indices.tolist()
    for number, frame in enumerate(_decode_all(path)):
        if (frame.pts if listing.timed else number) == wanted[0]:
            yield to_rgb(frame)
            wanted.pop(0)
        if not wanted:
            return
    raise ReaderFailed("listed frames are not shown")


def count_frames(path: str | Path, listing: Listing) -> Listing:
    """The listing of a file whose packets do not tell its frames, by decoding it all."""
    times = [frame.pts for frame in _decode_all(path)]
    pts = np.array([time for time in times if time is not None], np.int64)
    if listing.container != "avi" and len(pts) == len(times) and np.all(np.diff(pts) > 0):
        return dataclasses.replace(listing, pts=pts, timed=True)
    if not listing.header_rate:
        raise MediaError(path, "undecodable", "neither timestamps nor a frame rate")
    numbers = np.arange(len(times), dtype=np.int64)
    step = 1 / listing.header_rate
    return dataclasses.replace(listing, pts=numbers, time_base=step, last_duration=1, timed=False)


def _decode_all(path):
    import av

    with open_container(path) as container:
        stream = video_stream(path, container)
        try:
            yield from container.decode(stream)
        except av.FFmpegError as error:
            raise MediaError(path, "undecodable", f"damaged video: {error.strerror}") from error


def to_rgb(frame) -> UInt8[np.ndarray, "height width 3"]:
    """Pixels of a PyAV frame as decord gives them: turned by the rotation tag, not mirrored."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
