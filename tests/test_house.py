"""What keeps the house in order: sizes, facts in one place, docstrings; part of `make check`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from namedmask.run import layout
from namedmask.schema.status import STATUSES, http_code_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "namedmask"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
NAMES = {"ids": lambda path: str(path.relative_to(PACKAGE))}

MOST_ENTRIES, MOST_FILES, MOST_LINES, MOST_LINES_OF_FUNCTION = 31, 13, 350, 80

DRAWN_WORLD = ("miniworld/web.py", "miniworld/server.py", "miniworld/captions.py")
"""The drawn web names its kinds of trouble by the statuses that they should end in."""

OTHER_MEANINGS = {
    ("kept", "experts/refine.py"), ("kept", "config/sections.py"),  # masks, duplicates that stay
    ("ok", "cli/weights.py"), ("ok", "weights/download.py"), ("empty", "weights/download.py"),
    ("violent", "miniworld/truth.py"),
}  # fmt: skip
"""Words that are a status elsewhere and something else in these files."""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts_of(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the string constants of a module, docstrings left out."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in prose:
            yield node


def test_top_of_the_package_has_few_entries() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("folder", FOLDERS, **NAMES)
def test_folder_has_few_files_and_a_face_that_says_what_it_is(folder: Path) -> None:
    files = list(folder.glob("*.py"))
    if folder != PACKAGE:
        assert len(files) - 1 <= MOST_FILES, f"{len(files) - 1} files beside __init__.py"
    assert ast.get_docstring(parse(folder / "__init__.py"))


@pytest.mark.parametrize("path", MODULES, **NAMES)
def test_module_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MOST_LINES_OF_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, **NAMES)
def test_module_has_a_docstring_no_print_and_nothing_left_to_do(path: Path) -> None:
    tree, text = parse(path), path.read_text(encoding="utf-8")
    assert ast.get_docstring(tree), "no docstring"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not prints, f"print in line {prints}"
    assert not [word for word in ("TODO", "FIXME", "XXX") if word in text]


@pytest.mark.parametrize("path", MODULES, **NAMES)
def test_module_writes_no_status_out(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if name in (*DRAWN_WORLD, "schema/status.py"):
        return
    written = [
        f"line {node.lineno}: '{node.value}'"
        for node in texts_of(parse(path))
        if (node.value in STATUSES or http_code_of(str(node.value)))
        and (node.value, name) not in OTHER_MEANINGS
    ]
    assert not written, f"{written}: import it from namedmask.schema.status"


FILES = {
    str(value)
    for name, value in vars(layout).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str | Path)
}
SINGLE_FILES = {name for name in FILES if "." in name.rpartition("/")[2]}
"""Files and not folders: names of folders, such as `images`, are words with other uses too."""


@pytest.mark.parametrize("path", MODULES, **NAMES)
def test_module_spells_no_file_of_a_run_folder_out(path: Path) -> None:
    if path == PACKAGE / "run" / "layout.py":
        return
    tree = parse(path)
    written = [
        f"line {node.lineno}: '{node.value}'"
        for node in texts_of(tree)
        if {str(node.value), str(node.value).rpartition("/")[2]} & SINGLE_FILES
    ]
    joined = [
        f"line {node.lineno}: / '{node.right.value}'"
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant) and node.right.value in FILES
        and path.relative_to(PACKAGE).as_posix() not in OTHER_FOLDERS
    ]  # fmt: skip
    assert not written + joined, f"{written + joined}: use namedmask.run.layout"


OTHER_FOLDERS = (
    "evaluate/benchmarks.py",  # a benchmark's `images`
    "miniworld/web.py",  # the drawn world's own files
    "retrieve/published.py",  # clip-retrieval's `metadata`
)


def documented(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the public functions and methods of a module by their dotted names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for inner in node.body:
                is_function = isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                if is_function and inner.name[0] != "_":
                    yield f"{node.name}.{inner.name}", inner


ARRAYS = re.compile(r"\b(np\.ndarray|Tensor|torch\.Tensor)\b")
SHAPE = re.compile(r"\([A-Z0-9a-z′', +·/≤_…-]*\)|\bscalar\b|\bshape\b|same|`Batches`|see ")


@pytest.mark.parametrize("path", MODULES, **NAMES)
def test_public_docstrings_are_complete(path: Path) -> None:
    """They are sentences; the shape of a returned array is told; a raised error is named."""
    for name, node in documented(parse(path)):
        text = ast.get_docstring(node) or ""
        assert text, f"{name} has no docstring"
        first = text.split("\n\n")[0]
        assert first.rstrip("`)").endswith((".", ":", "…", "?")), (
            f"{name}: '{first}' is no sentence"
        )
        returns = ast.unparse(node.returns) if node.returns else ""
        if ARRAYS.search(returns) and "Callable" not in returns:
            assert SHAPE.search(text), f"{name} returns {returns}; say its shape"
        if path.parent.name == "cli":
            continue  # its docstrings are the help of commands
        raised = {
            child.exc.func.id
            for child in ast.walk(node)
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call)
            and isinstance(child.exc.func, ast.Name)
            and child.exc.func.id.endswith(("Error", "BadImage"))
        }  # fmt: skip
        unsaid = {error for error in raised if error not in text}
        refers = re.search(r"as `|see `|[Rr]aise", text)
        assert not unsaid - INTERNAL or refers, f"{name} raises {unsaid}; say so"


INTERNAL = {"AttributeError", "IndexError"}


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_tests_mirror_the_folders_and_import_no_test(path: Path) -> None:
    folder = path.relative_to(ROOT / "tests").parent
    others = {"real", "cluster"}  # real photos; the files for clusters
    assert str(folder) in (".", *others) or (PACKAGE / folder).is_dir()
    for node in ast.walk(parse(path)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [f"{name}.{alias.name}" for name in names for alias in node.names]
        tests = [name for name in names if re.match(r"tests(\..*)?\.test_", name)]
        assert not tests, f"it imports {tests}; put what is shared into tests/*.py or conftest.py"
