"""Video-R1's step in plain transformers and torch, as upstream's trainer does it, and lean.

upstream   generate G answers, then G/2 with shuffled frames; log-probs of prompt and answer, repeated G times,
           with logits of every position; the vision tower runs for every copy
lean       the vision tower runs once for each order of frames; logits of answers only

Run by compare.py: DIRECTORY holds both models and inputs.npz.
"""

import argparse
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from serving import own_standard_output, serve
from torch import nn
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from vr1_jax.tools.benchmark.timing import Stopwatch

TOP_P, BETA, CLIP = 0.95, 0.04, 5.0
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Inputs:
    """One prompt with its video in two orders of frames, and given answers."""

    def __init__(self, path: Path):
        arrays = np.load(path)
        self.tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
        self.positions = torch.from_numpy(arrays["positions"].astype(np.int64))
        self.grid = torch.from_numpy(arrays["grid"].astype(np.int64))[None]
        self.video_token = int(arrays["video_token"])
        self.ordered, self.shuffled = (self._normalized(arrays[name]) for name in ("ordered", "shuffled"))
        self.answers = torch.from_numpy(arrays["answers"].astype(np.int64))
        self.advantages = torch.from_numpy(arrays["advantages"])
        self.shuffled_group = int(arrays["shuffled_group"])

    @staticmethod
    def _normalized(patches: np.ndarray) -> torch.Tensor:
        by_channel = patches.reshape(-1, 3, patches.shape[-1] // 3).astype(np.float32) / 255
        scaled = (by_channel - MEAN[:, None]) / STD[:, None]
        return torch.from_numpy(scaled.reshape(-1, patches.shape[-1]))

    @property
    def group(self) -> int:
        return len(self.answers)

    @property
    def new_tokens(self) -> int:
        return self.answers.shape[1]

    def positions_with_answers(self, rows: int) -> torch.Tensor:
        """[3, rows, T + C]"""
        following = self.positions[0, -1] + 1 + torch.arange(self.new_tokens)
        whole = torch.cat([self.positions, following.expand(3, -1)], dim=1)
        return whole[:, None].expand(3, rows, -1)


class Step(ABC):
    def __init__(self, directory: Path, *, checkpointing: bool):
        self.inputs = Inputs(directory / "inputs.npz")
        self.policy, self.reference = (
            Qwen2_5_VLForConditionalGeneration.from_pretrained(directory / name, dtype=torch.float32)
            for name in ("model", "reference")
        )
        self.reference.eval().requires_grad_(False)
        self.checkpointing = checkpointing
        decayed = [p for p in self.policy.parameters() if p.ndim > 1]
        others = [p for p in self.policy.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-6)

    def step(self, watch: Stopwatch) -> None:
        with watch("rollout"), torch.no_grad():
            self._train_mode(False)
            answers = self.generate(self.inputs.ordered, self.inputs.group)
            self.generate(self.inputs.shuffled, self.inputs.shuffled_group)
        with watch("reference"), torch.inference_mode():
            reference = self.log_probs(self.reference, answers)
        with watch("update"):
            self._backward(answers, reference)
            nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def check(self) -> dict[str, float]:
        with torch.inference_mode():
            reference = self.log_probs(self.reference, self.inputs.answers)
        loss = self._backward(self.inputs.answers, reference)
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), float("inf"))
        self.optimizer.zero_grad()
        return {"loss": float(loss), "grad_norm": float(norm), "reference_logp": float(reference.mean())}

    def _backward(self, answers: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        self._train_mode(True)
        logps = self.log_probs(self.policy, answers)
        x = torch.clamp(reference - logps, -10, 10)
        kl = torch.exp(x) - x - 1
        gained = torch.exp(logps - logps.detach()) * self.inputs.advantages[:, None]
        loss = -(gained - BETA * kl).mean()  # all answers have the same length
        loss.backward()
        return loss.detach()

    def _train_mode(self, train: bool) -> None:
        self.policy.train(train)
        if not self.checkpointing:
            return
        if train:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.policy.gradient_checkpointing_disable()

    @abstractmethod
    def generate(self, patches: torch.Tensor, rows: int) -> torch.Tensor: ...

    @abstractmethod
    def log_probs(self, model: nn.Module, answers: torch.Tensor) -> torch.Tensor: ...


class Upstream(Step):
    def generate(self, patches: torch.Tensor, rows: int) -> torch.Tensor:
        tokens = self.inputs.tokens[None]
        whole = self.policy.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values_videos=patches,
            video_grid_thw=self.inputs.grid,
            second_per_grid_ts=torch.ones(1),
            mm_token_type_ids=2 * (tokens == self.inputs.video_token).int(),
            max_new_tokens=self.inputs.new_tokens,
            min_new_tokens=self.inputs.new_tokens,
            num_return_sequences=rows,
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=0,
            pad_token_id=0,
        )
        return whole[:, tokens.shape[1] :]

    def log_probs(self, model: nn.Module, answers: torch.Tensor) -> torch.Tensor:
        rows, start = len(answers), self.inputs.tokens.shape[0]
        whole = torch.cat([self.inputs.tokens.expand(rows, -1), answers], dim=1)
        logits = model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            position_ids=self.inputs.positions_with_answers(rows),
            pixel_values_videos=self.inputs.ordered.repeat(rows, 1),
            video_grid_thw=self.inputs.grid.repeat(rows, 1),
            use_cache=False,
        ).logits
        of_rows = [
            torch.gather(row.log_softmax(-1), 1, targets[:, None])[:, 0]
            for row, targets in zip(logits[:, :-1], whole[:, 1:], strict=True)
        ]
        return torch.stack(of_rows)[:, start - 1 :]


class Lean(Step):
    def generate(self, patches: torch.Tensor, rows: int) -> torch.Tensor:
        decoder, cache = self.policy.model.language_model, DynamicCache(config=self.policy.config)
        embedded = self._embed_prompt(self.policy, patches).expand(rows, -1, -1)
        positions = self.inputs.positions_with_answers(rows)
        length, written = embedded.shape[1], []
        for token in range(self.inputs.new_tokens):
            start = 0 if token == 0 else length + token - 1
            hidden = decoder(
                inputs_embeds=embedded,
                position_ids=positions[:, :, start : length + token],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            written.append(_sample(self.policy.lm_head(hidden[:, -1])))
            embedded = self.policy.get_input_embeddings()(written[-1])
        return torch.cat(written, dim=1)

    def log_probs(self, model: nn.Module, answers: torch.Tensor) -> torch.Tensor:
        rows, start = len(answers), self.inputs.tokens.shape[0]
        prompt = self._embed_prompt(model, self.inputs.ordered).expand(rows, -1, -1)
        embedded = torch.cat([prompt, model.get_input_embeddings()(answers)], dim=1)
        hidden = model.model.language_model(
            inputs_embeds=embedded,
            position_ids=self.inputs.positions_with_answers(rows),
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden[:, start - 1 : -1])
        return torch.gather(logits.log_softmax(-1), 2, answers[..., None])[..., 0]

    def _embed_prompt(self, model: nn.Module, patches: torch.Tensor) -> torch.Tensor:
        """[1, T, D] with the video's units in their places."""
        seen = model.model.get_video_features(patches, self.inputs.grid, return_dict=True).pooler_output[0]
        words = model.get_input_embeddings()(self.inputs.tokens)
        here = (self.inputs.tokens == self.inputs.video_token)[:, None]
        return words.masked_scatter(here, seen)[None]


def _sample(logits: torch.Tensor) -> torch.Tensor:
    """One token of the nucleus in each row, [rows, 1]."""
    probabilities, order = logits.softmax(-1).sort(-1, descending=True)
    outside = probabilities.cumsum(-1) - probabilities >= TOP_P
    chosen = torch.multinomial(probabilities.masked_fill(outside, 0.0), 1)
    return order.gather(1, chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--form", choices=("upstream", "lean"), default="upstream")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    answers = own_standard_output()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    program = {"upstream": Upstream, "lean": Lean}[chosen.form](
        chosen.directory, checkpointing=chosen.checkpointing
    )
    serve(program.step, program.check, answers)


if __name__ == "__main__":
    main()
