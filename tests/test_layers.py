"""Who may import whom, read from the source: keeps the tree a road and not a net."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import namedmask

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "namedmask"

LAYERS = """
    errors  schema  storage  images  metrics  config  weights  categories  run
    metadata  fetch  embed  faces  saliency  bilateral
    segmenter  train  retrieve  archive  experts  evaluate  search  report
    engine  verbs  miniworld  cli
"""
"""A folder (or a file at the top) imports only from those before it; CONTRIBUTING.md shows this."""

STAGES = ("metadata", "fetch", "embed", "faces", "saliency", "bilateral")
"""None of these imports another."""

LEVEL = {name: level for level, name in enumerate(LAYERS.split())}
LIGHT = ("namedmask", "config", "errors", "schema", "storage", "run.progress", "run.verb_table")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Return the dotted names that a source file imports when it runs, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_rooms(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "namedmask" and len(p) > 1 and p[1] in LEVEL}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def in_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{room} has no layer; give it one in LAYERS"
    for other in own_rooms(imported(parse(path), path)) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{path.name} imports {other}, which lies above it"
        both_stages = room in STAGES and other in STAGES
        assert not both_stages, f"stage {room} imports stage {other}"


def test_layers_are_all_there_and_shown_to_contributors() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms == LEVEL.keys()
    assert LAYERS in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_only_on_ray_imports_ray() -> None:
    for path in MODULES:
        roots = {name.split(".")[0] for name in imported(parse(path), path)}
        is_on_ray = path.is_relative_to(PACKAGE / "engine" / "on_ray")
        assert "ray" not in roots or is_on_ray, f"{path} imports ray"


def test_light_modules_loaded_bring_neither_torch_nor_ray() -> None:
    names = [name if name == "namedmask" else f"namedmask.{name}" for name in LIGHT]
    code = f"import sys, {', '.join(names)}; sys.exit(str({{'torch', 'ray'}} & set(sys.modules)))"
    assert in_process(code) == "set()"


def test_faces_of_all_folders_bring_nothing_heavy() -> None:
    names = [f"namedmask.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")]
    heavy = "{'torch', 'ray', 'cv2', 'aiohttp', 'scipy'}"
    code = f"import sys, {', '.join(names)}; sys.exit(str({heavy} & set(sys.modules)))"
    assert in_process(code) == "set()"


def test_processes_of_a_graph_load_torch_only_for_stages_that_need_it() -> None:
    code = (
        "import sys, namedmask.engine.on_ray.actors, namedmask.engine.on_ray.isolated, "
        "namedmask.fetch.stage, namedmask.faces.stage, namedmask.bilateral; "
        "sys.exit(str('torch' in sys.modules))"
    )
    assert in_process(code) == "False", "each would begin seconds later"


@pytest.mark.parametrize(
    "module",
    [
        namedmask,
        *(f"namedmask.{path.parent.name}" for path in sorted(PACKAGE.glob("*/__init__.py"))),
    ],
    ids=str,
)
def test_public_names_are_all_importable_and_typed_as_they_are_found(module: object) -> None:
    import importlib

    package = importlib.import_module(module) if isinstance(module, str) else namedmask
    names = getattr(package, "__all__", [])
    missing = [name for name in names if not hasattr(package, name)]
    assert not missing
    tree = parse(Path(str(package.__file__)))
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    own = {name for name in names if not name.startswith("__")}
    assert own <= typed, "type checkers see other names than there are"


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        namedmask.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        "retrieve.exact_top_k", "segmenter.deeplabv3plus_resnet50", "saliency.SelfMask",
        "faces.RetinaFace", "bilateral.bilateral_solver", "categories.PROMPT_TEMPLATES",
        "categories.load_category_set", "metrics.ConfusionMatrix",
    ],
)  # fmt: skip
def test_promised_import_path_works(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert in_process(f"from namedmask.{module} import {attribute}") == ""


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = project["dependencies"] + [line for extra in extras for line in extra]
    declared = {line.split("==")[0].partition("[")[0].lower().replace("-", "_") for line in lines}
    other_names = {"cv2": "opencv_python", "PIL": "pillow", "open_clip": "open_clip_torch",
                   "faiss": "faiss_cpu"}  # fmt: skip
    for path in MODULES:
        roots = {name.split(".")[0] for name in imported(parse(path), path)}
        foreign = roots - set(sys.stdlib_module_names) - {"namedmask"}
        missing = {name for name in foreign if other_names.get(name, name) not in declared}
        assert not missing, f"{path} imports {missing}, which pyproject.toml does not name"


def test_version_is_the_one_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == namedmask.__version__


def test_makefile_pins_agree_with_pyproject() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for variable, package in (("OPENCV", "opencv-python"), ("ONNXRUNTIME_GPU", "onnxruntime-gpu")):
        pinned = makefile.split(f"{variable} := ")[1].split()[0]
        assert f'"{package}=={pinned}"' in project
