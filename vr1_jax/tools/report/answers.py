"""A step's answers as the page shows them, and the few numbers of every step that are always kept."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.tools.report.tokens import TokenTexts

Prompts = list[dict[str, Any]]


def shares(prompts: Prompts, threshold: float) -> list[list[float | None]]:
    """For each prompt the share of correct answers with ordered frames, and with shuffled ones if there are."""

    def share(group: dict[str, Any]) -> float:
        return round(float(np.mean(np.asarray(group["accuracy"]) > threshold)), 3)

    found = [[share(group) for group in prompt["groups"][:2]] for prompt in prompts]
    return [[*row, *[None] * (2 - len(row))] for row in found]


def habits(prompts: Prompts) -> dict[str, float]:
    """What metrics.jsonl does not hold: answers that repeat another word by word."""
    ordered = [prompt["groups"][0] for prompt in prompts if prompt["groups"]]
    if not ordered:
        return {}
    return {
        "distinct": float(np.mean([len(set(group["texts"])) / len(group["texts"]) for group in ordered])),
    }


def step_page(prompts: Prompts, texts: TokenTexts | None, algorithm: GRPOConfig) -> list[dict[str, Any]]:
    """All that can be seen of a step."""
    return [_prompt(prompt, texts, algorithm) for prompt in prompts]


def _prompt(prompt: dict[str, Any], texts: TokenTexts | None, algorithm: GRPOConfig) -> dict[str, Any]:
    copied = ("problem", "problem_type", "options", "solution", "data_type", "path", "file", "index", "attempt")
    page = {name: prompt.get(name) for name in copied}
    page["order"] = frame_order(prompt)
    page["groups"] = [
        [_answer(group, n, texts, algorithm.threshold) for n in range(len(group["texts"]))]
        for group in prompt["groups"]
    ]
    added_to_reward = ["length", "overlong", *(["temporal"] if algorithm.placement == "reward" else [])]
    for n, answer in enumerate(page["groups"][0]):
        answer["reward"], answer["advantage"] = prompt["rewards"][n], prompt["advantages"][n]
        bonuses = {name: table[n] for name, table in prompt["bonuses"].items()}
        answer["parts"] |= {f"{name} bonus": bonuses[name] for name in added_to_reward if name in bonuses}
        if algorithm.placement == "advantage":
            answer["added"] = bonuses.get("temporal", 0.0)  # to the advantage, after normalisation
    return page


def frame_order(prompt: dict[str, Any]) -> list[int] | None:
    """Which frame stands where in the shuffled clip; slices are pairs of frames."""
    order = prompt.get("order")
    if order is None or prompt.get("shuffled_by") != "slices":
        return order
    frames = [frame for part in order for frame in (2 * part, 2 * part + 1)]
    return [frame for frame in frames if frame < prompt["frames"]]


def _answer(group: dict[str, Any], n: int, texts: TokenTexts | None, threshold: float) -> dict[str, Any]:
    text, logps = group["texts"][n], group["logps"][n]
    pieces = texts.pieces(group["tokens"][n]) if texts else None
    if pieces is None or "".join(piece for piece in pieces if isinstance(piece, str)) != text:
        pieces, logps = [text], [None]  # nothing to align the colours with
    return {
        "pieces": pieces,
        "logps": [round(logp, 2) if _is_finite(logp) else None for logp in logps],
        "tokens": len(group["tokens"][n]),
        "stopped": group["stopped"][n],
        "correct": group["accuracy"][n] > threshold,
        "parts": {
            "accuracy": group["accuracy"][n],
            "format": group["format"][n],
            **{name: table[n] for name, table in group["extra"].items()},
        },
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def spread_out(items: Sequence[int]) -> list[int]:
    """The items in such an order that the first ones, however many, are spread over all; both ends come first."""
    bits = len(items).bit_length()
    order = sorted(range(len(items)), key=lambda n: f"{n:0{bits}b}"[::-1])
    if len(order) > 1:
        order.insert(1, order.pop(order.index(len(items) - 1)))
    return [items[n] for n in order]
