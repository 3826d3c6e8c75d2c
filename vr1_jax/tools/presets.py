"""The presets that a run is compared with: the paper, its published code, and the paper with its bonus mended.

docs/upstream.md says where each setting comes from. What only says where and on what a run works is left out.
"""

import dataclasses
import json
from typing import Any

from vr1_jax.config import DataConfig, TrainConfig
from vr1_jax.config_files import flat, to_json
from vr1_jax.rl.advantages import GRPOConfig

# An epoch of upstream's: its four devices took a prompt each in RL, and two answers each in SFT.
RL_EPOCH, SFT_EPOCH = -(-263_071 // 4), -(-165_575 // 8)
_SFT = {"optimizer.schedule": "linear", "optimizer.total_steps": SFT_EPOCH, "optimizer.weight_decay": 0.0}

# What differs from the defaults, by preset and stage.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"rl": {"steps": 1000}, "sft": {"steps": SFT_EPOCH, **_SFT}},
    "upstream": {
        "rl": {
            "steps": 1000,
            "prompts_per_step": 4,
            "data.prompt": "upstream",
            "data.spacing": "constant",
            "rollout.sampling.top_k": 50,
            "optimizer.schedule": "cosine",
            "optimizer.total_steps": RL_EPOCH,
            "optimizer.decayed": "upstream",
            **flat({"grpo": dataclasses.asdict(GRPOConfig.upstream())}),
        },
        "sft": {
            "steps": SFT_EPOCH,
            "data.prompt": "upstream",
            "data.spacing": "constant",
            "data.loss_on": "upstream",
            "sft_aggregation": "sequence",
            "optimizer.decayed": "upstream",
            **_SFT,
        },
    },
    "fixed": {
        "rl": {"steps": 1000, **flat({"grpo": dataclasses.asdict(GRPOConfig.fixed())})},
        "sft": {"steps": SFT_EPOCH, **_SFT},
    },
}

_PLACE = (
    *("run", "model", "seed", "mesh", "microbatches", "checkpoint", "watch", "stop_after_skips"),
    *("data.records", "data.media_root", "data.heldout", "data.cache", "data.sizes"),
    *("data.video_buckets", "data.image_buckets", "data.text_buckets", "data.workers", "data.max_bad_share"),
)
_OF_OTHER_STAGE = {
    "rl": ("sft_aggregation", "data.loss_on", "data.answer_tokens"),
    "sft": (
        *("grpo", "rollout", "rewards", "old_logps", "updates_per_batch", "epochs_per_batch"),
        *("drop_silent_groups", "refill_rounds", "data.shuffle"),
    ),
}


def settings(config: TrainConfig) -> dict[str, Any]:
    """What decides about what is learned, by dotted names."""
    left_out = _PLACE + _OF_OTHER_STAGE[config.stage]
    return {
        name: value
        for name, value in flat(to_json(config)).items()
        if not any(f"{name}.".startswith(f"{field}.") for field in left_out)
    }


def preset_settings(name: str, stage: str) -> dict[str, Any]:
    defaults = TrainConfig(stage=stage, model="", run="", steps=1, data=DataConfig(records=("",)))
    return settings(defaults) | PRESETS[name][stage]


def list_differences(config: TrainConfig) -> list[str]:
    """One line for each setting that is not every preset's: "grpo.mu 0.5: paper and fixed 1.0, upstream 0.8"."""
    presets = {name: preset_settings(name, config.stage) for name in PRESETS}
    lines = []
    for name, value in settings(config).items():
        others: dict[str, list[str]] = {}
        for preset, theirs in presets.items():
            if theirs[name] != value:
                others.setdefault(shown(theirs[name]), []).append(preset)
        if others:
            listed = (f"{' and '.join(names)} {other}" for other, names in others.items())
            lines.append(f"{name} {shown(value)}: {', '.join(listed)}")
    return lines


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
