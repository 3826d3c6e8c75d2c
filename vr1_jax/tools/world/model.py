"""Model directories: the built-in world's two, without weights, and random weights of any size."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vr1_jax.data.prompts import ANSWER_FORM, EVALUATION_TAGS, PONDER, TRAINING_TAGS
from vr1_jax.files import write_json
from vr1_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vr1_jax.models.families import abstract_model, family_of
from vr1_jax.models.mapping import parameter_shapes
from vr1_jax.tools.world.scenes import ORDERED, STILL
from vr1_jax.weights.hf_directory import ShardWriter

# Qwen2.5-VL's special tokens, in its order; ids follow the text vocabulary.
_NAMES = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
_NAMES += " vision_start vision_end vision_pad image_pad video_pad"
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _NAMES.split())
# The world's words become one token each; a larger vocabulary would stay empty.
TOKENIZER_SIZE = 728
TEXT_TOKENS = TOKENIZER_SIZE - len(SPECIAL_TOKENS)
IDS = {token: TEXT_TOKENS + n for n, token in enumerate(SPECIAL_TOKENS)}
_TOKENS = {
    "image_token": IDS["<|image_pad|>"],
    "video_token": IDS["<|video_pad|>"],
    "vision_start_token": IDS["<|vision_start|>"],
    "vision_end_token": IDS["<|vision_end|>"],
    "model_type": "qwen2_5_vl",
}

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Words as Qwen's tokenizers see them.
WORD_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # letters, with the space or sign before them
        r"\p{N}",  # one digit at a time
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # signs
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def write_tokenizer(directory: Path) -> None:
    """Trains a byte-level BPE on the world's words; writes what a model directory has beside its weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    assert tokenizer.get_vocab_size() == TEXT_TOKENS  # or the special tokens' ids would not be `IDS`
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    speech = {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    end, pad = IDS["<|im_end|>"], IDS["<|endoftext|>"]
    sampling = {"pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": True}
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
    classes = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    write_json(directory / "tokenizer_config.json", speech)
    write_json(directory / "generation_config.json", sampling)
    write_json(directory / "preprocessor_config.json", classes | pixels)


def _corpus() -> Iterator[str]:
    """Everything the world says, the same whatever world is written."""
    yield from (PONDER, TRAINING_TAGS, EVALUATION_TAGS, *ANSWER_FORM.values())
    yield "Options:\n system\nYou are a helpful assistant. user\n assistant\n A. B. C. D."
    for task in ORDERED + STILL:
        for right in range(task.choices):
            for seed in range(10):
                scene = task.paint(right, 56, default_rng(seed), default_rng(seed))
                yield from (scene.question, *scene.answers)
                yield f"<think>{scene.reasoning}</think>\n<answer>{scene.answers[right]}</answer>"


TINY = ModelConfig(  # 1 million parameters: learns the built-in world on two CPU cores
    TextConfig(4, 128, 4, 2, 256, TOKENIZER_SIZE, (4, 6, 6), 1e6, 1e-6, tied=True),
    VisionConfig(2, 64, 4, 128, 128, (1,), tokens_per_second=2.0),
    **_TOKENS,
)
SMALL = ModelConfig(  # 30 million: every part of the published architecture at a size for benchmarks
    TextConfig(8, 384, 6, 2, 1024, 8192, (8, 12, 12), 1e6, 1e-6, tied=False),
    VisionConfig(6, 320, 4, 864, 384, (2, 5), tokens_per_second=2.0),
    **_TOKENS,
)


def tiny_config() -> dict[str, Any]:
    return hf_config(TINY)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, in the flat layout of the published ones but for transformers' defaults."""
    text, vision = config.text, config.vision
    first = config.vision_start_token - SPECIAL_TOKENS.index("<|vision_start|>")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "intermediate_size": text.mlp,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "max_position_embeddings": 4096,
        "max_window_layers": text.layers,
        "tie_word_embeddings": text.tied,
        "torch_dtype": "float32",
        "vocab_size": text.vocab,
        "bos_token_id": first,
        "eos_token_id": first + SPECIAL_TOKENS.index("<|im_end|>"),
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "vision_config": {
            "hidden_size": vision.width,
            "depth": vision.layers,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "in_chans": vision.channels,
            "out_hidden_size": vision.out_width,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
            "tokens_per_second": int(vision.tokens_per_second),  # transformers refuses 2.0
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_attention_layers),
        },
    }


def write_model_directory(directory: Path, config: dict) -> None:
    """A Hugging Face model directory without weights: training starts it from random ones."""
    write_tokenizer(directory)
    write_json(directory / "config.json", config)


def write_random_model(directory: Path, config: ModelConfig, dtype: np.dtype, seed: int = 0) -> None:
    """With weights that keep activations of order one; norms near one, biases small but not zero."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", hf_config(config))
    shapes = parameter_shapes(abstract_model(config))
    tensors = {
        key: rule.published_shape(rule.layer_shape(shapes[rule.path]))
        for rule in family_of(config).rules(config)
        for key in rule.keys(shapes[rule.path])
    }
    writer = ShardWriter(directory, tensors, dtype, max_bytes=5 * 10**9)
    rng = default_rng(seed)
    for key, shape in tensors.items():
        writer.write(key, _random(rng, key, shape).astype(dtype))


def _random(rng: Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return rng.normal(0.0 if key.endswith("bias") else 1.0, 0.1, shape)
    inputs = math.prod(shape[1:])
    return rng.standard_normal(shape, np.float32) * np.float32(0.02 if "embed_tokens" in key else inputs**-0.5)
