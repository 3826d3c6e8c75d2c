"""A tiny random Qwen2.5-VL of the installed transformers, the same weights in ours, and a mixed batch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vr1_jax.data.collate import Bucket, EncodedPrompt, PromptLayout, VisualBlock, collate
from vr1_jax.models import base, families
from vr1_jax.models.families import parse_hf_config
from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.types import Prompt

IMAGE, VIDEO, START, END = 290, 291, 292, 293
PATCH_VALUES = 1176


def hf_config(tied: bool) -> dict:
    """Small, but with every feature: 2 window and 1 full vision layers, grouped queries, uneven mRoPE."""
    return {
        "model_type": "qwen2_5_vl",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "vision_config": {
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 80,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    }


def random_reference(tied: bool) -> Qwen2_5_VLForConditionalGeneration:
    """Norm weights are not ones and biases not zeros, so that a forgotten one shows."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**hf_config(tied))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.05)
    return model


def ours_from(reference: Qwen2_5_VLForConditionalGeneration, dtype=jnp.float32) -> base.Model:
    """Independent of the file reader: only the mapping table is shared with it."""
    config = parse_hf_config(reference.config.to_dict())
    model = families.abstract_model(config, dtype)
    tensors = {k: v.detach().float().numpy() for k, v in reference.state_dict().items()}
    tensors = {
        k.replace("model.language_model.", "model.").replace("model.visual.", "visual."): v
        for k, v in tensors.items()
    }
    for rule in Qwen25VL.rules(config):
        module = model
        *parents, leaf = rule.path.split(".")
        for parent in parents:
            module = getattr(module, parent)
        param = getattr(module, leaf)
        shape = param.get_value().shape
        if rule.stacked:
            arrays = [rule.from_published(tensors[rule.key.format(i)], shape[1:]) for i in range(shape[0])]
            param.set_value(jnp.asarray(np.stack(arrays), dtype))
        else:
            param.set_value(jnp.asarray(rule.from_published(tensors[rule.key], shape), dtype))
    return model


@dataclass
class Media:
    """What transformers is fed for one image or video."""

    video: bool
    block: VisualBlock
    patches: np.ndarray


class Case:
    """One prompt: text token runs and media in any order; a Media stands for its whole block."""

    def __init__(self, *parts):
        self.media = [part for part in parts if isinstance(part, Media)]
        tokens = []
        for part in parts:
            if isinstance(part, Media):
                tokens += [START] + [VIDEO if part.video else IMAGE] * part.block.units(2) + [END]
            else:
                tokens += list(part)
        self.tokens = np.array(tokens, np.int32)

    @property
    def encoded(self) -> EncodedPrompt:
        patches = tuple(m.patches.reshape(m.block.grid[0], -1, PATCH_VALUES) for m in self.media)
        return EncodedPrompt(self.tokens, tuple(m.block for m in self.media), patches)


def mixed_cases(seed: int = 0) -> list[Case]:
    """Video, image, two images, image and video, text only; unequal lengths, non-square grids, edge windows."""
    rng = np.random.default_rng(seed)

    def media(video, slices, rows, columns, seconds=0.0):
        pixels = rng.integers(0, 256, (slices * rows * columns, PATCH_VALUES)).astype(np.uint8)
        return Media(video, VisualBlock((slices, rows, columns), seconds), pixels)

    def text(n):
        return rng.integers(0, 280, n)

    return [
        Case(text(4), media(True, 3, 6, 12, 3.7), text(7)),
        Case(text(2), media(False, 1, 12, 10), text(5)),
        Case(text(3), media(False, 1, 4, 10), text(2), media(False, 1, 10, 4), text(9)),
        Case(text(3), media(False, 1, 4, 4), text(2), media(True, 2, 4, 6, 2.5), text(3)),
        Case(text(12)),
    ]


def layout(rule="published") -> PromptLayout:
    return PromptLayout(visual_tokens=(IMAGE, VIDEO), tokens_per_second=2.0, rule=rule)


def batch(cases: list[Case], rule="published", bucket: Bucket | None = None) -> Prompt:
    encoded = [case.encoded for case in cases]
    smallest = [prompt.bucket for prompt in encoded]
    bucket = bucket or Bucket(
        max(1, *(b.slices for b in smallest)),
        max(4, *(b.patches for b in smallest)),
        max(b.tokens for b in smallest) + 3,
    )
    arrays = collate(encoded, bucket, layout(rule), pad_token=0, values=PATCH_VALUES)
    return Prompt(**jax.tree.map(jnp.asarray, arrays))


def reference_inputs(case: Case, positions: np.ndarray | None = None) -> dict:
    """transformers' arguments for one unpadded prompt; its own positions unless given."""
    tokens = torch.tensor(case.tokens, dtype=torch.long)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    for video, grid_name, pixel_name in (
        (False, "image_grid_thw", "pixel_values"),
        (True, "video_grid_thw", "pixel_values_videos"),
    ):
        media = [m for m in case.media if m.video is video]
        if media:
            inputs[grid_name] = torch.tensor([m.block.grid for m in media])
            inputs[pixel_name] = torch.from_numpy(np.concatenate([normalize(m.patches) for m in media]))
        if video and media:
            inputs["second_per_grid_ts"] = torch.tensor([m.block.seconds_per_slice for m in media])
    if positions is None:
        inputs["mm_token_type_ids"] = (tokens == IMAGE).int() + 2 * (tokens == VIDEO).int()
    else:
        inputs["position_ids"] = torch.from_numpy(positions.astype(np.int64))[:, None]
    return inputs


def normalize(patches: np.ndarray) -> np.ndarray:
    """The published processors' arithmetic, written independently of ours."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1)
    std = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1)
    by_channel = patches.reshape(len(patches), 3, -1) / 255.0
    return ((by_channel - mean) / std).reshape(patches.shape).astype(np.float32)
