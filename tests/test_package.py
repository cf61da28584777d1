"""The wheel and the sdist carry everything, and importing costs nothing that is not used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("dsl", "ir", "codegen", "runtime")


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of a copy of this checkout, and the wheel built from that sdist. Works offline."""
    copy, out = tmp_path_factory.mktemp("checkout") / "regard", tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", "results")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy)
    return out


def expected_files() -> set[str]:
    """Paths in the wheel of every module, of the grammar and of the typing marker."""
    own = {f"regard/{path.name}" for path in (ROOT / "src/regard").glob("*.py")}
    modules = {f"regard/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return own | modules | {"regard/ir/grammar.lark", "regard/py.typed"}


def test_wheel_holds_every_module_and_the_grammar(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected_files()


def test_sdist_holds_every_module_and_the_grammar(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"src/{name}" for name in expected_files()} <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_installed_wheel_is_complete(distributions: Path, tmp_path: Path) -> None:
    """The package as unpacked from the wheel, away from the checkout, can trace, print and parse."""
    (wheel,) = distributions.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = """
        import regard as rg
        attn = rg.attention(rg.causal)
        assert rg.parse(str(attn)) == attn
        print(rg.__file__)
    """
    lines = "\n".join(line.strip() for line in program.strip().splitlines())
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{lines}"]
    assert run(*command, cwd=tmp_path).strip().startswith(str(tmp_path))


def test_import_loads_nothing_heavy() -> None:
    program = "import sys, regard, regard.ir.nodes; print(*{'torch', 'triton', 'sympy', 'lark'} & {*sys.modules})"
    assert run(sys.executable, "-c", program, cwd=ROOT / "src").strip() == ""
