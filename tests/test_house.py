"""The rooms stay rooms: who may import whom, no architecture's name in shared rooms, sizes, optional packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "homunculi"

# What a room may import of the package, beside itself and the files that belong to no room.
ALLOWED = {
    "core": set(),
    "parts": {"core"},
    "models": {"core", "parts"},
    "foreign": {"core"},
    "text": {"interop"},  # readers of optional formats, resolved by name when a corpus asks for one
    "runs": set(),
    "evals": {"core", "text", "runs"},
    "instruments": {"core", "text", "runs"},
    "train": {"core", "text", "runs", "evals", "instruments", "models"},
    "experiments": {
        "core",
        "parts",
        "models",
        "foreign",
        "text",
        "runs",
        "train",
        "evals",
        "instruments",
        "report",
        "tasks",
    },
    "interop": {"core", "parts", "models", "foreign", "text", "runs", "evals", "instruments", "train"},
    "tasks": set(),  # standard library and numpy: a task is tokens and answers
    "report": {"runs"},
    "web": {"runs", "report"},
}
OF_NO_ROOM = {"errors", "files", "settings", ""}
WITHOUT_TORCH = {"text", "runs", "tasks", "report", "web", "settings.py", "errors.py", "files.py"}
CORE_PACKAGES = {"torch", "numpy", "safetensors", "tokenizers", "typer", "rich"}
# Files over 400 lines or functions over 60, each with the reason at its top.
LONG: set[str] = set()


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "homunculi_recipes").rglob("*.py")]):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of all imported modules, wherever the statement stands."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem == "homunculi":
                yield from ((f"homunculi.{alias.name}", node) for alias in node.names)
            else:
                yield stem, node


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else "recipes"


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = []
    for path, tree in modules():
        room = room_of(path)
        for name, node in imports(path, tree):
            parts = name.split(".")
            if parts[0] == "homunculi_recipes" and room not in ("cli", "recipes"):
                wrong.append(f"{path.name}:{node.lineno} imports the recipes")
            if parts[0] != "homunculi":
                continue
            target = parts[1] if len(parts) > 1 else ""
            above = {"cli": ("cli", "__main__.py"), "web": ("web", "cli")}  # the verb that opens the page is a verb
            if target in above and room not in above[target]:
                wrong.append(f"{path.name}:{node.lineno} imports {target}")
            if room in ALLOWED and target not in ALLOWED[room] | {room} | OF_NO_ROOM | {"__version__"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong, wrong


def test_models_do_not_import_each_other() -> None:
    shared = {"registry", "files"}
    wrong = [
        f"{path.name}:{node.lineno} imports {name}"
        for path, tree in modules()
        if room_of(path) == "models" and path.stem not in {*shared, "__init__"}
        for name, node in imports(path, tree)
        if name.startswith("homunculi.models.")
        and name.rsplit(".", 1)[-1] not in shared
        and name.split(".")[2] != path.relative_to(PACKAGE).parts[1]  # an architecture of several files
    ]
    assert not wrong, wrong


def test_rooms_without_torch_import_none() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in modules()
        if room_of(path) in WITHOUT_TORCH
        for name, node in imports(path, tree)
        if name.split(".")[0] == "torch" or name in ("safetensors", "safetensors.torch")
        if not (name == "safetensors" and [alias.name for alias in node.names] == ["SafetensorError"])
    ]
    assert not wrong, wrong


def test_optional_packages_are_imported_inside_functions_of_interop_only() -> None:
    wrong = []
    for path, tree in modules():
        for name, node in imports(path, tree):
            package = name.split(".")[0]
            ours = package in CORE_PACKAGES | {"homunculi", "homunculi_recipes"} | sys.stdlib_module_names
            if not ours and (room_of(path) != "interop" or node in tree.body):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
            assert package != "pydantic", path
    assert not wrong, wrong


def test_shared_rooms_name_no_architecture() -> None:
    from homunculi.models import names

    wrong = []
    for path, tree in modules():
        if room_of(path) in ("core", "parts", "train", "instruments", "web"):
            words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            words |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            shared_with_the_package = {"homunculi"}
            wrong += [f"{path.name}: {name}" for name in names() if name in words - shared_with_the_package]
    assert not wrong, wrong


def test_files_and_functions_stay_small() -> None:
    wrong = []
    for path, tree in modules():
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines > 400 and path.name not in LONG:
            wrong.append(f"{path.relative_to(ROOT)}: {n_lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > 60 and f"{path.name}:{node.name}" not in LONG:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {size} lines")
    assert not wrong, wrong


def test_no_file_is_called_utils() -> None:
    assert not [path for path, _ in modules() if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_importing_the_package_loads_neither_torch_nor_optional_packages() -> None:
    code = (
        "import sys, homunculi, homunculi.runs.directory, homunculi.report.page, homunculi.text.shards\n"
        "heavy = ('torch', 'transformers', 'datasets', 'pyarrow', 'matplotlib', 'pydantic')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


ARCHITECTURES = [path for path in sorted((PACKAGE / "models").iterdir()) if path.suffix == ".py" or path.is_dir()]


@pytest.mark.parametrize("path", [p for p in ARCHITECTURES if p.name != "__pycache__"], ids=lambda path: path.stem)
def test_deleting_one_architecture_leaves_the_rest_working(path: Path, tmp_path: Path) -> None:
    if path.stem in ("__init__", "registry", "files"):
        code = "import homunculi.models"  # the room itself is no architecture: it must only import
    else:
        code = (
            "import sys\n"
            f"class Gone:\n"
            f"    def find_spec(self, name, path=None, target=None):\n"
            f"        if (name + '.').startswith('homunculi.models.{path.stem}.'): raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Gone())\n"
            "import homunculi.models.registry as registry, pkgutil\n"
            "walk = pkgutil.walk_packages\n"
            f"gone = '.models.{path.stem}.'\n"
            "pkgutil.walk_packages = lambda *a: (m for m in walk(*a[:2], onerror=str) if gone not in m.name + '.')\n"
            "import homunculi.train.loop, homunculi.experiments.certify, homunculi.evals.generation\n"
            "import torch\n"
            "for name in registry.names():\n"
            "    found = registry.get(name)\n"
            "    model = found.model_type(found.config_type(vocab_size=16))\n"
            "    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape[-1] == 16\n"
            f"assert {path.stem!r} not in registry.names()\n"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
