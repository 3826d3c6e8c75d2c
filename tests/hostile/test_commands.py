"""As a user meets them; and what the program does not read."""

import subprocess
import sys

import numpy as np
import pytest
from hostile_models import DEEP, LOOPS, ROOT, SECONDS, WEIGHTS, edit, poison


def test_what_is_not_read_does_no_harm(model, commands):
    (model / "preprocessor_config.json").write_text(DEEP)
    code = {"tokenizer_class": "Exec", "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    edit(model / "tokenizer_config.json", lambda config: config.update(code))
    (model / "x.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    assert commands["hf_to_flax"](model) == 0
    assert commands["generate"](model) == 0
    assert not (model / "ran").exists()


@pytest.mark.parametrize("case", ["layers", "template", "nan"])
def test_as_a_user_meets_it(model, case):
    command = ["scripts/generate.py", "--question", "x", "--model", str(model)]
    if case == "layers":
        edit(model / "config.json", lambda config: config.update(num_hidden_layers=10**9))
    elif case == "template":
        loops = {"chat_template": LOOPS}
        edit(model / "tokenizer_config.json", lambda config: config.update(loops))
    else:
        poison(model / WEIGHTS, np.nan)
        command = ["convert/hf_to_flax.py", "--hf", str(model), "--out", str(model.parent / "out")]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "converting:" not in line]
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done.stderr
    assert str(model) in lines[0]
