"""Imports flow one way, and the numpy-only packages stay so."""

import ast
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vr1_jax"

# Which of our packages each may import, besides itself and what all may: `errors` and `files`.
BASE = {"errors", "files"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "types": set(),
    "command_line": BASE | {"arguments"},
    "config_files": BASE | {"arguments"},
    "sharding": BASE,
    "media": BASE,
    "rewards": BASE,
    "data": BASE | {"media"},
    "models": BASE | {"types", "sharding"},
    "weights": BASE | {"progress", "types", "sharding", "models"},
    "arguments": BASE | {"media", "data", "weights"},
    "sampling": BASE | {"types", "sharding", "models"},
    "rl": BASE | {"types", "sharding", "models", "sampling", "rewards"},
    "config": BASE | {"config_files", "media", "data", "models", "rewards", "sampling", "rl"},
}
CORE = {*ALLOWED, "training", "evaluation"}
ALLOWED |= {
    "training": CORE - {"evaluation"},
    "evaluation": CORE - {"training"},
    "tools": CORE,
}
NEVER = {"torch", "torchvision", "scripts", "convert", "configs", "pickle"}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_flow_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue  # the front door: it may reach anywhere
        for name in imports(path):
            top, _, rest = name.partition(".")
            ours = rest.partition(".")[0]
            if top == "vr1_jax" and ours != part and ours not in ALLOWED[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if top in NEVER or (part in ("media", "data", "rewards") and top in HEAVY):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_check_sees_what_it_should(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("def f():\n    import torch\n    from vr1_jax.rl import loss\n")
    assert imports(source) == {"torch", "vr1_jax.rl.loss"}


def unknown_names(path: Path) -> list[str]:
    """What a file takes from modules of ours that they do not have: found otherwise only when that line runs."""
    tree, ours, wrong = ast.parse(path.read_text()), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vr1_jax":
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if not hasattr(module, alias.name):
                    try:
                        importlib.import_module(name)
                    except ModuleNotFoundError:
                        wrong.append(f"{path.name}:{node.lineno} {name}")
                        continue
                if isinstance(getattr(module, alias.name), type(ast)):
                    ours[alias.asname or alias.name] = getattr(module, alias.name)
    hidden = {name.arg for name in ast.walk(tree) if isinstance(name, ast.arg)}
    hidden |= {
        name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = None if node.value.id in hidden else ours.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                wrong.append(f"{path.name}:{node.lineno} {node.value.id}.{node.attr}")
    return wrong


def test_modules_have_what_others_take_from_them(tmp_path):
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "convert").glob("*.py")]
    assert [name for path in files for name in unknown_names(path)] == []
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from vr1_jax.training import setup\nfrom vr1_jax.rl.loss import nothing\n"
        "def f():\n    raise setup.TrainingError\n"
    )
    assert unknown_names(wrong) == ["wrong.py:2 vr1_jax.rl.loss.nothing", "wrong.py:4 setup.TrainingError"]
