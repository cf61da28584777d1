"""The shape of the source tree: links, file sizes, and which part may import which."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("dsl", "ir", "codegen", "runtime")
# What each part may import: other parts of Regard, and heavy packages.
PARTS = {
    "dsl": {"dsl", "ir"},
    "ir": {"ir"},
    "codegen": {"codegen", "ir"},
    "runtime": {"runtime", "codegen", "ir", "dsl"},
}
HEAVY = {"torch", "triton", "sympy", "lark", "matplotlib", "transformers"}
MAY_IMPORT = {
    "dsl": {"torch"},
    "ir": {"lark"},
    "codegen": {"torch", "triton"},
    "runtime": {"torch", "triton", "matplotlib"},
}
ONLY_IMPORTER = {"lark": "ir/parser.py", "matplotlib": "runtime/plot.py"}
MODULES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TEXTS = MODULES + [
    path.relative_to(ROOT)
    for pattern in ("src/regard/*.py", "tests/**/*.py", "examples/*.py", "benchmarks/**/*.py", "scripts/*")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names of everything that a module imports, and whether that happens at import time.

    Imports under ``if TYPE_CHECKING`` do not happen and are left out.
    """
    package = ("regard", *path.with_suffix("").parts)[:-1]

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        match node:
            case ast.Import():
                yield from ((alias.name, at_import) for alias in node.names)
            case ast.ImportFrom():
                base = [*package[: len(package) - node.level + 1]] if node.level else []
                base += node.module.split(".") if node.module else []
                yield from ((".".join([*base, alias.name]), at_import) for alias in node.names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                for statement in otherwise:
                    yield from visit(statement, at_import)
            case _:
                inner = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, inner)

    yield from visit(ast.parse((ROOT / path).read_text()), True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_linked_relatively(folder: str) -> None:
    link = ROOT / "src/regard" / folder
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == ROOT / folder


def test_every_folder_is_a_package() -> None:
    missing = [path.parent for path in MODULES if not (ROOT / path.parent / "__init__.py").exists()]
    assert not missing


@pytest.mark.parametrize("path", TEXTS, ids=str)
def test_files_are_short(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    part = path.parts[0]
    for name, at_import in imports(path):
        top, *rest = name.split(".")
        assert top not in FOLDERS, f"write regard.{name}, or import it relatively"
        if top == "regard" and rest and rest[0] in FOLDERS:
            assert rest[0] in PARTS[part], f"{part} must not import {name}"
        if top in HEAVY:
            assert top in MAY_IMPORT[part], f"{part} must not import {top}"
            assert str(path) == ONLY_IMPORTER.get(top, str(path)), f"{top} belongs to {ONLY_IMPORTER[top]}"
            # `import regard` and analysis stay light: these are loaded by the call that needs them.
            if part == "codegen" or top in ("lark", "matplotlib"):
                assert not at_import, f"{path} must import {top} in the function that needs it"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_environment_is_read_in_one_place(path: Path) -> None:
    if str(path) != "runtime/config.py":
        assert not re.search(r"os\.(environ|getenv)", (ROOT / path).read_text())


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] in ("ir", "codegen")], ids=str)
def test_compiler_knows_no_stock_part(path: Path) -> None:
    """Analysis and generation see expressions, never names: a user's clone of a stock mask fares the same."""
    names = (
        "sliding_window|prefix_lm|global_tokens|block_diagonal|chunked_causal|checkerboard|alibi|softcap"
        "|relative_bias|log_n|longformer|bigbird|mistral|gemma|retnet"
    )
    assert not re.search(rf"\b({names})\b", (ROOT / path).read_text(), re.IGNORECASE)
