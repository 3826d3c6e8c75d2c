"""This program's step on the same weights, the same video and the same given answers. Run by compare.py."""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from serving import own_standard_output, serve

from vr1_jax.rl.experience import place, place_rows
from vr1_jax.sharding import TRAIN_RULES, make_mesh, reshard
from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.phases import Stepper
from vr1_jax.tools.benchmark.sizes import SETTINGS
from vr1_jax.training.steps import init_state
from vr1_jax.types import Completion, Experience
from vr1_jax.weights.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    answers = own_standard_output()
    given = np.load(directory / "inputs.npz")
    stepper = _stepper(directory, given)

    def check() -> dict[str, float]:
        """A step on given answers, of which the policy is then put back."""
        prompt, completion, advantages = _given(given, stepper)
        before = jax.tree.map(jnp.copy, stepper.state)
        reference = stepper.score(prompt, completion.tokens)
        metrics = stepper.update(Experience(prompt, completion, advantages, reference, None))
        stepper.state = before
        found = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        return found | {"reference_logp": float(reference.mean())}

    serve(stepper.step, check, answers)


def _stepper(directory: Path, given) -> Stepper:
    group, answer = given["answers"].shape
    slices, patches = given["ordered"].shape[:2]
    mesh = make_mesh()
    model, config = load_model(directory / "model", mesh=mesh)
    reference, _ = load_model(directory / "reference", mesh=mesh)
    work = dataclasses.replace(
        SETTINGS["30m"].work,
        prompts=1,
        slices=slices,
        patches=patches,
        tokens=len(given["tokens"]),
        group=group,
        answer=answer,
        shuffled_group=int(given["shuffled_group"]),
    )
    setting = dataclasses.replace(SETTINGS["30m"], model=config, work=work)
    arrays = [inputs.prompt_arrays(config, work, reverse=reverse) for reverse in (False, True)]
    np.testing.assert_array_equal(arrays[0]["tokens"][0], given["tokens"])
    with jax.set_mesh(mesh):
        state = jax.jit(lambda model: init_state(model, inputs.OPTIMIZER), donate_argnums=0)(model)
        state = reshard(state, TRAIN_RULES, mesh)
    return Stepper(setting, inputs.Meshes(mesh, mesh), state, reference, arrays)


def _given(given, stepper: Stepper):
    mesh = stepper.meshes.train
    prompt = place(inputs.prompt_arrays(stepper.setting.model, stepper.setting.work), mesh)
    tokens = given["answers"][None].astype(np.int32)
    logps, stopped = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape[:2], bool)
    completion = Completion(*place_rows((tokens, np.ones_like(tokens, bool), logps, stopped), mesh))
    return prompt, completion, place_rows(given["advantages"][None], mesh)


if __name__ == "__main__":
    main()
