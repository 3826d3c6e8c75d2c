"""What a video file's packets say about its frames, without decoding any.

The listing decides how many frames there are, when each is shown and which reader can be trusted. Header
fields (frame count, frame rate) are compared with it, not believed.
"""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vr1_jax.media.frames import MediaError

MAX_FRAME_PIXELS = 1 << 26  # twice 8K: more is a decompression bomb or a mistake
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
# Playlists (HLS, DASH, concat), text and numbered pictures are left out: they make a reader open other files.
CONTAINERS = {
    MP4,
    MATROSKA,
    "apng",
    "asf",
    "avi",
    "flv",
    "gif",
    "h264",
    "hevc",
    "ivf",
    "m4v",
    "mpeg",
    "mpegts",
}
CONTAINERS |= {"mpegvideo", "mxf", "ogg", "rm"}
DECORD_CODECS = {"h263", "h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9"}
RATE_TOLERANCE = 0.01
H264_IDR = 5


@dataclasses.dataclass(frozen=True)
class Listing:
    """The frames of a file's video stream, in the order they are shown.

    `pts` are in units of `time_base`; `keyframes` are the pts where decoding can start. `timed` is whether a
    decoded frame can be recognised by its pts. `doubt` is why decord must not read the file, if anything.
    """

    container: str
    codec: str
    frame_pixels: int
    time_base: Fraction
    header_rate: Fraction | None
    pts: Int[np.ndarray, " total"]
    keyframes: Int[np.ndarray, " keys"]
    last_duration: int
    timed: bool
    hidden: int
    doubt: str | None

    @property
    def seekable(self) -> bool:
        """Whether the container finds a keyframe by the pts that the listing shows."""
        return self.timed and not self.hidden and len(self.keyframes) > 0 and self.container in (MP4, MATROSKA)

    @property
    def seconds(self) -> Float[np.ndarray, " total"]:
        """When each frame is shown, from the first one on."""
        return (self.pts - self.pts[:1]) * float(self.time_base)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        total = len(self.pts)
        span = int(self.pts[-1] - self.pts[0])
        gap = span / (total - 1) if total > 1 else 0.0
        measured = (span + max(self.last_duration, gap)) * float(self.time_base)
        if measured > 0:
            return measured
        return float(total / self.header_rate) if self.header_rate else 1.0

    @property
    def fps(self) -> float:
        """The header's frame rate where it predicts the duration within one frame, else the measured one.

        A believed header gives upstream's frame counts to the last digit; some files claim 1000.
        """
        total, duration = len(self.pts), self.duration
        if self.header_rate:
            predicted = float(total / self.header_rate)
            if abs(predicted - duration) <= duration / total + RATE_TOLERANCE * duration:
                return float(self.header_rate)
        return total / duration


def open_container(path: str | Path):
    """Open a video file with PyAV, which may then read nothing but local files."""
    import av

    try:
        container = av.open(
            str(Path(path).absolute()), options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except av.FFmpegError as error:
        raise MediaError(path, "undecodable", f"not a readable video: {error.strerror}") from error
    if container.format.name not in CONTAINERS:
        container.close()
        raise MediaError(path, "undecodable", f"'{container.format.name}' is not a video container")
    return container


def video_stream(path: str | Path, container):
    """The stream that players show, set up to decode in one thread."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        container.close()
        raise MediaError(path, "undecodable", "no video stream that can be decoded")
    if stream.codec_context.width * stream.codec_context.height > MAX_FRAME_PIXELS:
        container.close()
        raise MediaError(path, "too_large", f"frames above {MAX_FRAME_PIXELS} pixels")
    stream.codec_context.thread_count = 1
    return stream


def list_packets(path: str | Path) -> Listing:
    """Read every packet header of the video stream."""
    import av

    with open_container(path) as container:
        stream = video_stream(path, container)
        length_bytes = _nal_length_bytes(stream.codec_context)
        shown, keyframes, hidden, leading, recovery_points = [], [], 0, 0, 0
        unknown_times, last = 0, None
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts is None:
                    unknown_times += 1
                    continue
                if packet.is_keyframe:
                    keyframes.append(packet.pts)
                    recovery_points += length_bytes > 0 and not _is_idr(bytes(packet), length_bytes)
                elif keyframes and packet.pts < keyframes[-1]:
                    leading += 1
                hidden += packet.is_discard
                if not packet.is_discard:
                    shown.append(packet.pts)
                    last = packet if last is None or packet.pts > last.pts else last
        except av.FFmpegError as error:
            raise MediaError(path, "undecodable", f"damaged container: {error.strerror}") from error
        pts = np.array(sorted(shown), np.int64)
        name, codec = container.format.name, stream.codec_context.codec.canonical_name
        timed = name != "avi" and not unknown_times and len(pts) > 0 and bool(np.all(np.diff(pts) > 0))
        return Listing(
            container=name,
            codec=codec,
            frame_pixels=stream.codec_context.width * stream.codec_context.height,
            time_base=stream.time_base,
            header_rate=stream.average_rate or None,
            pts=pts,
            keyframes=np.array(sorted(keyframes), np.int64),
            last_duration=last.duration or 0 if last is not None else 0,
            timed=timed,
            hidden=hidden,
            doubt=_doubt(name, codec, timed, hidden, len(keyframes), leading, recovery_points, length_bytes),
        )


def _doubt(container, codec, timed, hidden, keyframes, leading, recovery_points, length_bytes) -> str | None:
    """Why decord would return other frames than asked for, hang or fail; None where it is sound."""
    if container not in (MP4, MATROSKA):
        return f"decord seeks wrongly in '{container}'"
    if codec not in DECORD_CODECS:
        return f"decord cannot decode {codec}"
    if hidden:
        return f"an edit list hides {hidden} frames"
    if not timed:
        return "frames without a time of their own"
    if not keyframes:
        return "no keyframe"
    if leading:
        return "open GOPs: frames shown before their keyframe"
    if codec == "h264" and (recovery_points or not length_bytes):
        return "keyframes that are not IDR pictures"
    return None


def _nal_length_bytes(codec_context) -> int:
    """Size of the length before each H.264 NAL unit, 0 where the stream is not stored that way."""
    extradata = codec_context.extradata
    if codec_context.codec.canonical_name != "h264" or not extradata or extradata[0] != 1 or len(extradata) < 5:
        return 0
    return (extradata[4] & 3) + 1


def _is_idr(packet: bytes, length_bytes: int) -> bool:
    offset = 0
    while offset + length_bytes < len(packet):
        if packet[offset + length_bytes] & 31 == H264_IDR:
            return True
        offset += length_bytes + int.from_bytes(packet[offset : offset + length_bytes], "big")
    return False
