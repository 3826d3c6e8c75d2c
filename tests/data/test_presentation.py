"""What a run writes down about its prompts is what is read back; what a stranger wrote is checked."""

import dataclasses
import json
import re

import pytest

from vr1_jax.data.prompts import (
    FILE,
    FIXED,
    UPSTREAM_EVALUATION,
    UPSTREAM_SFT,
    Presentation,
    read_presentation,
    write_presentation,
)
from vr1_jax.errors import UserError
from vr1_jax.media.frames import EVALUATION_BUDGET, TRAINING_BUDGET, FrameBudget, ImageBudget
from vr1_jax.weights.checkpoint_dir import ASSETS

OTHER = Presentation(
    prompt="upstream",
    stage="sft",
    frames=FrameBudget(fps=1.5, max_frames=8, min_pixels=3136, max_pixels=3136),
    images=ImageBudget(max_pixels=6272),
    positions="transformers5",
    spacing="constant",
)


@pytest.mark.parametrize("presentation", [OTHER, Presentation()])
def test_what_is_written_is_read(tmp_path, presentation):
    write_presentation(tmp_path, presentation)
    assert read_presentation(tmp_path) == presentation
    assert FILE in ASSETS  # and so it is copied wherever config and tokenizer are


def test_a_model_that_says_nothing_is_asked_as_video_r1_asks(tmp_path):
    assert read_presentation(tmp_path) == Presentation()
    assert read_presentation(tmp_path).frames == TRAINING_BUDGET


def test_the_words_are_those_of_the_stage():
    assert OTHER.style == UPSTREAM_SFT
    assert OTHER.evaluated().style == UPSTREAM_EVALUATION
    assert Presentation().style == FIXED


def test_evaluation_takes_the_papers_pixels_unless_training_had_others():
    assert Presentation().evaluated().frames == EVALUATION_BUDGET
    assert OTHER.evaluated() == dataclasses.replace(OTHER, stage="evaluation")


def test_a_user_is_obeyed():
    told = OTHER.told(frames=3, frame_pixels=12544, image_pixels=3136, prompt="fixed", positions=None)
    assert told == dataclasses.replace(
        OTHER,
        prompt="fixed",
        frames=FrameBudget(fps=1.5, min_frames=3, max_frames=3, min_pixels=12544, max_pixels=12544),
        images=ImageBudget(min_pixels=3136, max_pixels=3136),
    )
    assert OTHER.told() == OTHER
    with pytest.raises(ValueError, match="min_frames"):
        OTHER.told(frames=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON"),
        ('{"template": "x"}', "template is no setting"),
        ('{"prompt": "mine"}', "prompt is 'mine'; it must be one of: fixed, upstream"),
        ('{"prompt": ["fixed"]}', r"prompt is ['fixed']; it must"),
        ('{"frames": 3}', "frames is not an object"),
        ('{"frames": {"fps": "2"}}', "frames.fps is '2', which is no number"),
        ('{"frames": {"fps": NaN}}', "frames.fps is nan, which is no number"),
        ('{"frames": {"max_frames": 4.5}}', "frames.max_frames is 4.5, which is no whole number"),
        ('{"frames": {"max_frames": true}}', "frames.max_frames is True"),
        ('{"frames": {"max_frames": 1}}', "frames must satisfy"),
        ('{"images": {"min_pixels": -1}}', "min_pixels -1 must lie"),
    ],
)
def test_a_strangers_file_is_checked(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_presentation(tmp_path)
    assert FILE in str(error.value)
    assert "\n" not in str(error.value)


def test_older_and_partial_files_mean_the_defaults(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"spacing": "constant"}))
    assert read_presentation(tmp_path) == Presentation(spacing="constant")
