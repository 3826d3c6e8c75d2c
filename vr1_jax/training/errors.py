"""The mistakes and mishaps that a user gets one line about; anything else is ours, and comes with a traceback."""

from vr1_jax.data.cache import CacheError
from vr1_jax.data.quarantine import QuarantineError
from vr1_jax.data.records import RecordError
from vr1_jax.data.sources import DataError
from vr1_jax.data.tokenizer import TokenizerError
from vr1_jax.models.config import UnsupportedModel
from vr1_jax.rewards.answers import RewardError
from vr1_jax.rl.advantages import AlgorithmError
from vr1_jax.sampling.settings import SamplingError
from vr1_jax.sharding import ShardingError
from vr1_jax.training.optimizer import OptimizerError
from vr1_jax.training.processes import ProcessError
from vr1_jax.training.targets import TargetError
from vr1_jax.weights.errors import CheckpointError


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why."""


MISCONFIGURED = (AlgorithmError, OptimizerError, SamplingError, ShardingError, TargetError, UnsupportedModel)
ANTICIPATED = (
    CacheError,
    CheckpointError,
    DataError,
    ProcessError,
    QuarantineError,
    RecordError,
    RewardError,
    TokenizerError,
    TrainingError,
    OSError,
)
