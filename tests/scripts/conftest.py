"""A small world, a tiny random model that can be asked about it, and the same model in transformers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from reference_model import normalize
from safetensors.torch import save_file

from vr1_jax.data.collate import PromptLayout, VisualBlock, mrope_positions
from vr1_jax.media.frames import IMAGE_BUDGET, TRAINING_BUDGET, FrameBudget, patchify
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.world.model import tiny_config, write_model_directory
from vr1_jax.tools.world.write import World, write_world


@pytest.fixture(scope="session")
def load_command() -> Callable[[str], Any]:
    """The module of a script, by name."""

    return lambda name: commands.load_command(f"scripts/{name}.py")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("small_world") / "world"
    write_world(out, World(videos=4, images=3, heldout=0))
    _write_slow_clip(out / "media" / "slow.mp4")
    return out


def _write_slow_clip(path: Path) -> None:
    """Twenty seconds: longer on the time axis than a frame is wide, where the rules of positions part."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast", "qp": "10"})
        stream.width = stream.height = 56
        for shade in np.linspace(0, 255, 40, dtype=np.uint8):
            frame = np.full((56, 56, 3), shade)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Hugging Face directory with everything, weights included. Read only."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    directory = tmp_path_factory.mktemp("tiny_model") / "tiny"
    write_model_directory(directory, tiny_config())
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_config()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=2 * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.05)
    tensors = {name: x.contiguous() for name, x in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@dataclass
class Reference:
    """transformers on the same directory; prompts written out by hand, pixels as our reader gives them."""

    model: Any
    tokenizer: Any
    layout: PromptLayout

    def prompt(self, user_text: str, media: "SeenMedia | None") -> tuple[list[int], dict]:
        """Tokens up to the answer, and transformers' arguments for the media."""
        placeholder, arguments = "", {}
        if media is not None:
            kind = "video" if media.video else "image"
            pads = f"<|{kind}_pad|>" * media.block.units(2)
            placeholder = f"<|vision_start|>{pads}<|vision_end|>"
            pixels = torch.from_numpy(normalize(media.patches.reshape(-1, media.patches.shape[-1])))
            arguments = {
                f"{kind}_grid_thw": torch.tensor([media.block.grid]),
                "pixel_values_videos" if media.video else "pixel_values": pixels,
            }
            if media.video:
                arguments["second_per_grid_ts"] = torch.tensor([media.block.seconds_per_slice])
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{placeholder}{user_text}<|im_end|>\n<|im_start|>assistant\n"
        )
        return self.tokenizer.encode(text, add_special_tokens=False), arguments

    def logps(self, prompt, media, answer: list[int], rule: str = "published") -> np.ndarray:
        """Log-probs [len(answer), vocabulary] of what predicts each answer token."""
        tokens, arguments = prompt
        whole = torch.tensor([tokens + answer])
        if rule == "published":
            blocks = () if media is None else (media.block,)
            positions = mrope_positions(whole[0].numpy(), blocks, self.layout)
            arguments = arguments | {"position_ids": torch.from_numpy(positions.astype(np.int64))[:, None]}
        else:
            image, video = self.layout.visual_tokens
            arguments = arguments | {"mm_token_type_ids": (whole == image).int() + 2 * (whole == video).int()}
        with torch.no_grad():
            logits = self.model(input_ids=whole, **arguments).logits[0]
        return torch.log_softmax(logits.float(), -1)[len(tokens) - 1 : -1].numpy()


@dataclass
class SeenMedia:
    block: VisualBlock
    patches: np.ndarray
    video: bool


@pytest.fixture(scope="session")
def reference(tiny_model) -> Reference:
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text())
    tokens = config["image_token_id"], config["video_token_id"]
    seconds = float(config["vision_config"]["tokens_per_second"])
    return Reference(model, tokenizer, PromptLayout(tokens, seconds))


@pytest.fixture(scope="session")
def see() -> Callable[..., SeenMedia]:
    """(path, frames) -> what the model sees of a file under the training budget."""
    with MediaReader() as reader:

        def get(path: Path, frames: int = 16) -> SeenMedia:
            if path.suffix == ".png":
                patches, grid = patchify(reader.image(path, IMAGE_BUDGET)[None])
                return SeenMedia(VisualBlock(grid), patches, False)
            clip = reader.video(path, FrameBudget(max_frames=frames, min_frames=min(4, frames)))
            patches, grid = patchify(clip.frames)
            return SeenMedia(VisualBlock(grid, 2 / clip.sample_fps), patches, True)

        assert FrameBudget() == TRAINING_BUDGET
        yield get
