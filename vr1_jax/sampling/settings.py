"""How answers are drawn, as a config or the command line says it."""

from dataclasses import dataclass

from vr1_jax.errors import UsageError


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn. Only `top_k`, `capacity` and turning the penalty on or off compile anew."""

    max_new_tokens: int = 768  # most tokens of an answer
    temperature: float = 1.0  # 0 takes the most likely token
    top_p: float = 0.95  # draw from the fewest tokens that have this probability together
    top_k: int = 0  # draw from this many most likely tokens; 0 from all. Upstream had transformers' default, 50
    repetition_penalty: float = 1.0  # 1 is off; published generation configs say 1.05

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise UsageError(f"temperature is {self.temperature}; it must not be negative")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; 0 keeps all tokens, a positive number that many")
        if self.repetition_penalty <= 0:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be positive")

    @property
    def capacity(self) -> int:
        """Slots for new tokens: limits up to the next multiple of 64 share one compiled program."""
        return -(-self.max_new_tokens // 64) * 64
