"""Who may import whom, read from the source: keeps the tree a road and not a net."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "namedmask"

LAYERS = (
    ("errors", "schema", "reasons", "s3_client", "s3", "storage", "locks", "overrides",
     "sections", "presets", "config", "progress", "ahead", "screens", "remembered", "addresses",
     "politeness"),
    ("download", "plugins", "urls", "images", "jpegs", "categories", "metrics", "imagenet_s",
     "augment", "weights", "checkpoints", "clip_weights", "backbone", "segmenter", "selfmask",
     "tokencut", "face_boxes", "retinaface", "labels", "archive", "ledger", "stores", "heads",
     "top_k", "repeats", "sources", "retry", "clusters", "crf", "sweep"),
    ("metadata", "fetch", "embed", "retrieve", "faces", "saliency", "bilateral"),
    ("waves", "processes", "published", "offers", "rounds", "indexes", "jobs", "executor", "proof",
     "train", "experts", "refine", "labeled", "benchmarks", "maskclip", "reco", "baselines",
     "evaluate", "predict", "search_index", "search", "report", "plan", "inspection", "doctor",
     "scorecard"),
    ("local", "on_ray"),
    ("lean",),
    ("collect", "verbs", "ablate"),
    ("miniworld", "screen", "cli_weights", "cli_ablate", "cli_run", "cli_evaluate"),
    ("cli",),
    ("__main__",),
)  # fmt: skip
STAGES = LAYERS[2]
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
LIGHT = ("__init__", "config", "errors", "schema", "progress", "storage")
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
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


def own_modules(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "namedmask" and len(p) > 1 and p[1] in LEVEL}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    assert module in LEVEL, f"{module} has no layer; give it one in LAYERS"
    for other in own_modules(imported(parse(path), path)) - {module}:
        assert LEVEL[other] <= LEVEL[module], f"{path.name} imports {other}, which lies above it"
        both_stages = module in STAGES and other in STAGES
        assert not both_stages, f"stage {module} imports stage {other}"


def test_modules_of_one_layer_have_no_cycle() -> None:
    graph = {module: set[str]() for module in LEVEL}
    for path in MODULES:
        if module_of(path) in LEVEL:
            module = module_of(path)
            graph[module] |= own_modules(imported(parse(path), path)) - {module}
    while graph:
        leaves = {module for module, others in graph.items() if not others & graph.keys()}
        assert leaves, f"these import one another in a circle: {sorted(graph)}"
        graph = {module: others for module, others in graph.items() if module not in leaves}


def test_only_on_ray_imports_ray() -> None:
    for path in MODULES:
        roots = {name.split(".")[0] for name in imported(parse(path), path)}
        assert "ray" not in roots or module_of(path) == "on_ray", f"{path} imports ray"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_has_at_most_400_lines_and_functions_80(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_has_a_docstring_and_no_print(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not prints, f"{path}: print in line {prints}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_leaves_nothing_to_do(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("TODO", "FIXME", "XXX") if word in text]


def test_light_modules_loaded_bring_neither_torch_nor_ray() -> None:
    names = ["namedmask"] + [f"namedmask.{name}" for name in LIGHT if name != "__init__"]
    code = f"import sys, {', '.join(names)}; sys.exit(str({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_processes_of_a_graph_load_torch_only_for_stages_that_need_it() -> None:
    code = (
        "import sys, namedmask.on_ray.actors, namedmask.on_ray.careful, namedmask.fetch, "
        "namedmask.faces, namedmask.bilateral; sys.exit(str('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "False", "each would begin seconds later"


def test_public_names_are_all_importable_and_sorted() -> None:
    import namedmask

    assert namedmask.__all__ == sorted(namedmask.__all__)
    missing = [name for name in namedmask.__all__ if not hasattr(namedmask, name)]
    assert not missing
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        namedmask.nonsense  # noqa: B018


def test_third_party_imports_are_declared() -> None:
    import tomllib

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
    import tomllib

    import namedmask

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == namedmask.__version__


def test_makefile_pins_agree_with_pyproject() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for variable, package in (("OPENCV", "opencv-python"), ("ONNXRUNTIME_GPU", "onnxruntime-gpu")):
        pinned = makefile.split(f"{variable} := ")[1].split()[0]
        assert f'"{package}=={pinned}"' in project
