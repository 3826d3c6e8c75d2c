"""The training loop's step on the same weights, the same video and the same given answers. Run by compare.py."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from serving import own_standard_output, serve

from vr1_jax.sampling.sampler import place_prompt
from vr1_jax.sharding import TRAIN_RULES, place_rows, reshard
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.measure import Stepper
from vr1_jax.tools.plan.programs import Outline, programs
from vr1_jax.training.steps import init_state
from vr1_jax.types import Completion, Experience
from vr1_jax.weights.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    answers = own_standard_output()
    given = np.load(directory / "inputs.npz")
    outline = _outline(given)
    score, update = (program for program in programs(outline) if program.phase in ("reference", "update"))
    mesh = outline.meshes.train
    model, _ = load_model(directory / "model", mesh=mesh)
    reference, _ = load_model(directory / "reference", mesh=mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda model: init_state(model, outline.config.optimizer), donate_argnums=0)(model)
        stepper = Stepper(outline, reshard(state, TRAIN_RULES, mesh), reference)

    def check() -> dict[str, float]:
        """A step on given answers, of which the policy is then put back."""
        prompt, completion, advantages = _given(given, outline)
        before = jax.tree.map(jnp.copy, stepper.state)
        logps = score(reference, prompt, completion.tokens).logps
        _, metrics = update(stepper.state, Experience(prompt, completion, advantages, logps, None))
        stepper.state = before
        found = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        return found | {"reference_logp": float(logps.mean())}

    serve(stepper, check, answers)


def _outline(given) -> Outline:
    group, answer = given["answers"].shape
    slices, patches = given["ordered"].shape[:2]
    return inputs.of_size(
        "30m",
        prompts=1,
        slices=slices,
        patches=patches,
        tokens=len(given["tokens"]),
        group=group,
        answer=answer,
        shuffled_group=int(given["shuffled_group"]),
    ).outline


def _given(given, outline: Outline):
    mesh, work = outline.meshes.train, outline.workload(*outline.buckets[0])
    arrays = inputs.prompt_arrays(outline.model, work)
    np.testing.assert_array_equal(arrays["tokens"][0], given["tokens"])
    tokens = given["answers"][None].astype(np.int32)
    logps, stopped = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape[:2], bool)
    completion = Completion(*place_rows((tokens, np.ones_like(tokens, bool), logps, stopped), mesh))
    return place_prompt(arrays, mesh), completion, place_rows(given["advantages"][None], mesh)


if __name__ == "__main__":
    main()
