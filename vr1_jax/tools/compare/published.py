"""What the paper reports, to stand beside one's own figures: accuracy in percent, None where it gives none.

Source: Video-R1 (arXiv 2503.21776, version 3), Tables 1 and 2; frames of 256 x 28 x 28 pixels, top-p 0.001 and
temperature 0.01. MMVU is its multiple-choice part, VideoMME is without subtitles. The paper does not say how
it averages a benchmark that mixes accuracy and mean relative accuracy (VSI-Bench).
"""

from dataclasses import dataclass

SOURCE = "arXiv 2503.21776v3"
BENCHMARKS = ("VSI-Bench", "VideoMMMU", "MMVU", "MVBench", "TempCompass", "VideoMME")


@dataclass(frozen=True)
class Row:
    model: str
    frames: int | None  # None where the paper gives none
    table: int
    scores: tuple[float | None, ...]  # in the order of BENCHMARKS

    def score(self, benchmark: str) -> float | None:
        return self.scores[BENCHMARKS.index(benchmark)]


ROWS = (
    Row("GPT-4o", None, 1, (34.0, 61.2, 75.4, None, None, 71.9)),
    Row("Qwen2.5-VL-7B (CoT)", 16, 1, (27.7, 47.8, 59.2, 57.4, 72.2, 53.1)),
    Row("Qwen2.5-VL-7B-SFT", 16, 1, (31.8, 47.4, 61.3, 59.4, 69.2, 52.8)),
    Row("Video-R1-7B", 16, 1, (34.6, 49.8, 64.2, 62.7, 72.6, 57.4)),
    Row("Qwen2.5-VL-7B (CoT)", 32, 1, (30.1, 48.1, 60.0, 59.0, 72.6, 56.6)),
    Row("Qwen2.5-VL-7B-SFT", 32, 1, (33.3, 49.4, 63.5, 60.5, 69.9, 55.4)),
    Row("Video-R1-7B", 32, 1, (35.8, 52.3, 63.8, 63.9, 73.2, 59.3)),
    Row("Qwen2.5-VL-7B (CoT)", 64, 1, (31.4, 50.4, 60.0, 59.2, 72.9, 59.6)),
    Row("Qwen2.5-VL-7B-SFT", 64, 1, (34.8, 49.4, 61.6, 60.6, 70.0, 58.8)),
    Row("Video-R1-7B", 64, 1, (37.1, 52.4, 63.8, 64.8, 73.2, 61.4)),
    Row("Video-R1-7B-wo-image", 16, 2, (32.3, 45.8, 60.6, 60.9, 69.8, 53.8)),
    Row("Video-R1-7B-wo-temporal", 16, 2, (32.7, 48.3, 62.1, 61.1, 71.3, 54.5)),
    Row("Video-R1-7B-zero", 16, 2, (31.8, 49.5, 63.8, 60.4, 70.9, 53.8)),
)


def rows(benchmark: str) -> list[Row]:
    """The rows that have a figure for this benchmark; none for one that the paper does not use."""
    if benchmark not in BENCHMARKS:
        return []
    return [row for row in ROWS if row.score(benchmark) is not None]
