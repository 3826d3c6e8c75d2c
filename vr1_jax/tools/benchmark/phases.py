"""The measured runs. Each takes a setting, warms up, and gives a timing for each of its phases."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vr1_jax.models.qwen25vl import Qwen25VL
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.rl.experience import Sampler, judge, place, place_rows, texts, trim
from vr1_jax.sampling import generate as sampling
from vr1_jax.sampling.placement import rollout_params
from vr1_jax.sampling.settings import SamplingConfig
from vr1_jax.sharding import ROLLOUT_RULES, TRAIN_RULES, batch_sharding
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.sizes import Setting
from vr1_jax.tools.benchmark.timing import Stopwatch, Timing
from vr1_jax.training.steps import Metrics, grpo_step, score_batch, sft_step
from vr1_jax.types import Experience, Prompt, TrainState

ALGORITHM = GRPOConfig.paper()
NEVER = (-1,)  # no token stops an answer: every one gets its full length
Timings = dict[str, Timing]


def repeat(body: Callable[[Stopwatch], None], repeats: int, warm_up: int = 1) -> tuple[Timings, Timings]:
    """Timings of warm repeats, and of the first run, which compiles."""
    watch = Stopwatch()
    for _ in range(warm_up):
        body(watch)
    first = watch.forget()
    for _ in range(repeats):
        body(watch)
    return watch.timings, first


def measure_step(setting: Setting, repeats: int) -> tuple[Timings, Timings]:
    meshes = inputs.Meshes.of(setting)
    state = inputs.random_state(setting.model, meshes.train)
    reference = inputs.random_model(setting.model, setting.dtype, TRAIN_RULES, meshes.train)
    orders = (False, True)[: setting.work.orders]
    arrays = [inputs.prompt_arrays(setting.model, setting.work, reverse=reverse) for reverse in orders]
    return repeat(Stepper(setting, meshes, state, reference, arrays).step, repeats)


class Stepper:
    """T-GRPO as `training.loop.rl_step` does it: sample both orders, judge, score by the reference, update."""

    def __init__(self, setting: Setting, meshes: inputs.Meshes, state: TrainState, reference: Qwen25VL, arrays):
        self.setting, self.meshes, self.state = setting, meshes, state
        self._reference, self._arrays = reference, arrays
        self._sampler = Sampler(meshes.rollout, NEVER, 0, jax.random.key(0))

    def step(self, watch: Stopwatch) -> None:
        work, meshes = self.setting.work, self.meshes
        sampling_config = SamplingConfig(max_new_tokens=work.answer)
        groups = (work.group, work.shuffled_group)[: work.orders]
        with watch("rollout"):
            policy = rollout_params(self.state.model, meshes.rollout, self.setting.dtype)
            row_ids = np.arange(work.prompts)
            answers = self._sampler(policy, self._arrays, groups, sampling_config, row_ids, 0)
            jax.block_until_ready(answers)
            del policy  # its memory is the reference's
        with watch("reward"):
            read = [texts(group, inputs.read_answer) for group in answers]
            shuffled = read[1] if len(read) > 1 else None
            judged = judge(ALGORITHM, inputs.questions(work.prompts), read[0], shuffled)
        with watch("reference"):
            prompt = place(self._arrays[0], meshes.train)
            completion = jax.device_put(answers[0], batch_sharding(meshes.train))
            completion = trim(completion, sampling_config.capacity)
            logps = self.score(prompt, completion.tokens)
        with watch("update"):
            advantages = place_rows(judged.signal.advantages.astype(np.float32), meshes.train)
            self.update(Experience(prompt, completion, advantages, logps, None))

    def score(self, prompt: Prompt, tokens: jax.Array) -> jax.Array:
        """The reference's log-probs."""
        with jax.set_mesh(self.meshes.train):
            scores = score_batch(self._reference, prompt, tokens, microbatches=self.setting.microbatches)
            return jax.block_until_ready(scores).logps

    def update(self, experience: Experience) -> Metrics:
        self.state, metrics = update(self.state, experience, self.setting, self.meshes.train)
        return metrics


def measure_rollout(setting: Setting, repeats: int) -> tuple[Timings, Timings]:
    """Sampling alone, in two parts: reading the prompts, and decoding all but the first token."""
    work, mesh = setting.work, inputs.Meshes.of(setting).rollout
    policy = inputs.random_model(setting.model, setting.dtype, ROLLOUT_RULES, mesh)
    orders = (False, True)[: work.orders]
    prompts = tuple(place(inputs.prompt_arrays(setting.model, work, reverse=reverse), mesh) for reverse in orders)
    config = SamplingConfig(max_new_tokens=work.answer)
    plan = sampling.Plan.of(config, (work.group, work.shuffled_group)[: work.orders], NEVER, 0)
    limits = sampling.Limits.of(config)

    def run(watch: Stopwatch) -> None:
        with jax.set_mesh(mesh):
            active = inputs.active_rows(work)
            ids = place_rows(np.arange(active.size, dtype=np.int32).reshape(active.shape), mesh)
            keys = sampling.row_keys(jax.random.key(0), 0, ids)
            with watch("prompts"):
                state = sampling.start(policy, prompts, active, keys, limits, plan)
                jax.block_until_ready(state.tokens)
            with watch("decode"):
                state = sampling.advance(policy, state, limits, plan, jnp.int32(work.answer))
                jax.block_until_ready(state.tokens)

    return repeat(run, repeats)


def measure_reference(setting: Setting, repeats: int) -> tuple[Timings, Timings]:
    """Log-probs of given answers."""
    mesh = inputs.Meshes.of(setting).train
    model = inputs.random_model(setting.model, setting.dtype, TRAIN_RULES, mesh)
    given = inputs.experience(setting, mesh)

    def run(watch: Stopwatch) -> None:
        with jax.set_mesh(mesh), watch("reference"):
            tokens = given.completion.tokens
            jax.block_until_ready(score_batch(model, given.prompt, tokens, microbatches=setting.microbatches))

    return repeat(run, repeats)


def measure_update(setting: Setting, repeats: int) -> tuple[Timings, Timings]:
    meshes = inputs.Meshes.of(setting)
    state = inputs.random_state(setting.model, meshes.train)
    given = inputs.experience(setting, meshes.train)

    def run(watch: Stopwatch) -> None:
        nonlocal state
        with watch("update"):
            state, _ = update(state, given, setting, meshes.train)

    return repeat(run, repeats)


def measure_sft(setting: Setting, repeats: int) -> tuple[Timings, Timings]:
    mesh = inputs.Meshes.of(setting).train
    state = inputs.random_state(setting.model, mesh)
    batch = inputs.supervised(setting, mesh)

    def run(watch: Stopwatch) -> None:
        nonlocal state
        with jax.set_mesh(mesh), watch("sft"):
            state, metrics = sft_step(
                state,
                batch,
                optimizer=inputs.OPTIMIZER,
                microbatches=setting.microbatches,
                compute_dtype=setting.dtype,
            )
            jax.block_until_ready((state, metrics))

    return repeat(run, repeats)


def update(state: TrainState, experience: Experience, setting: Setting, mesh: Mesh) -> tuple[TrainState, Metrics]:
    with jax.set_mesh(mesh):
        after = grpo_step(
            state,
            experience,
            algorithm=ALGORITHM,
            optimizer=inputs.OPTIMIZER,
            microbatches=setting.microbatches,
            compute_dtype=setting.dtype,
        )
        return jax.block_until_ready(after)
