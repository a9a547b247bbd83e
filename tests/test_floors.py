"""The house: imports point down, and importing the library brings in nothing heavy."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "momentax"
FLOORS = {
    "_adam": 0,
    "_contract": -1,
    "_fixed": -1,
    "_number": -2,
    "_divergence": 0,
    "_extra": 0,
    "_finite": 0,
    "_lora": 0,
    "_optimizer": 0,
    "_schedule": 0,
    "_shard": 0,
    "_weight": 0,
    "metrics": 0,
    "nn": 0,
    "_denoiser": 1,
    "_defaults": 2,
    "_gradient": 1,
    "_parallel": 1,
    "_precondition": 1,
    "_process": 1,
    "_tangent": 1,
    "checkpoint": 1,
    "_guidance": 2,
    "_rollout": 3,
    "_sample": 3,
    "interop": 2,
    "_judge": 4,
    "description": 4,
    "_distilled": 5,
    "_instant": 5,
    "_losses": 5,
    "_diagnosis": 6,
    "_match": 6,
    "recipes": 7,
    "__init__": 8,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def noun(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_nouns(path):
    """The library's own modules that a file imports, by their noun."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("momentax."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import) and any(alias.name == "momentax" for alias in node.names):
            yield "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """A file imports from lower floors only; recipes, on top, use the library as users do."""
    for other in imported_nouns(path):
        if noun(path) == "recipes":
            assert other in ("__init__", "_extra", "recipes")
        elif noun(path) != other:
            assert FLOORS[other] < FLOORS[noun(path)], other


def test_every_file_has_a_floor():
    assert {noun(path) for path in FILES} == set(FLOORS)


def test_importing_the_library_imports_nothing_that_only_recipes_need():
    heavy = ["matplotlib", "sklearn", "tqdm", "tyro", "grain", "orbax", "scipy.optimize", "beartype"]
    code = f"import sys, momentax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path):
    """Forty lines at most, without the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or (body[-1].end_lineno or 0) - body[0].lineno < 40, node.name
