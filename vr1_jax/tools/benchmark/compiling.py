"""What the programs of a step cost to compile, and what memory they will need: nothing is allocated or run."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax.models.qwen25vl import Qwen25VL, abstract_model
from vr1_jax.sampling import generate as sampling
from vr1_jax.sharding import ROLLOUT_RULES, TRAIN_RULES, abstract, batch_sharding
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.phases import ALGORITHM, NEVER
from vr1_jax.tools.benchmark.sizes import Setting
from vr1_jax.training.steps import grpo_step, init_state, score_batch
from vr1_jax.types import Completion, Experience, Prompt


def measure_compile(setting: Setting) -> dict[str, dict[str, Any]]:
    """Seconds to trace and to compile, and bytes on each device, of the rollout, the reference and the update."""
    meshes = inputs.Meshes.of(setting)
    model, work = setting.model, setting.work
    answers = (work.prompts, work.group, work.answer)

    def placed(shape, dtype, mesh):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    def prompt(mesh) -> Prompt:
        # One row tells the shapes of all: a batch at real size would take minutes to make up.
        row = inputs.prompt_arrays(model, dataclasses.replace(work, prompts=1))
        return Prompt(**{name: placed((work.prompts, *x.shape[1:]), x.dtype, mesh) for name, x in row.items()})

    mesh = meshes.rollout
    weights = abstract(abstract_model(model, setting.dtype), ROLLOUT_RULES, mesh)
    config = sampling.SamplingConfig(max_new_tokens=work.answer)
    groups = (work.group, work.shuffled_group)[: work.orders]
    plan = sampling.Plan.of(config, groups, NEVER, 0)
    rows = (work.prompts, sum(groups))
    keys = placed(rows, jax.random.key(0).dtype, mesh)
    asked = (weights, (prompt(mesh),) * work.orders, placed(rows, jnp.bool_, mesh), keys)
    limits = sampling.Limits.of(config)
    programs = {"rollout": (mesh, lambda: sampling.generate.lower(*asked, limits, plan))}

    mesh = meshes.train
    reference = abstract(abstract_model(model, setting.dtype), TRAIN_RULES, mesh)
    tokens = placed(answers, jnp.int32, mesh)
    programs["reference"] = (
        mesh,
        lambda: score_batch.lower(reference, prompt(mesh), tokens, microbatches=setting.microbatches),
    )

    def update():
        state = jax.eval_shape(lambda: init_state(Qwen25VL(model, jax.random.key(0)), inputs.OPTIMIZER))
        logps, per_row = placed(answers, jnp.float32, mesh), answers[:2]
        sampled = Completion(tokens, placed(answers, jnp.bool_, mesh), logps, placed(per_row, jnp.bool_, mesh))
        given = Experience(prompt(mesh), sampled, placed(per_row, jnp.float32, mesh), logps, None)
        return grpo_step.lower(
            abstract(state, TRAIN_RULES, mesh),
            given,
            algorithm=ALGORITHM,
            optimizer=inputs.OPTIMIZER,
            microbatches=setting.microbatches,
            compute_dtype=np.dtype(setting.dtype),
        )

    programs["update"] = (mesh, update)
    return {name: _compiled(*program) for name, program in programs.items()}


def _compiled(mesh: jax.sharding.Mesh, lower: Any) -> dict[str, Any]:
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = lower()
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
    memory = compiled.memory_analysis()
    return {
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
