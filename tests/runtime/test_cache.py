"""The disk cache under everything that happens to disks."""

from __future__ import annotations

import errno
import os
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import regard as rg
from regard.runtime import cache

RunPython = Callable[..., subprocess.CompletedProcess[str]]

FILES = {"source.py": b"x = 1\n" * 100, "metadata.json": b"{}", "kernel.cubin": bytes(range(256))}


def leftovers(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith(".tmp-")]


def test_an_entry_comes_back(cache_dir: Path) -> None:
    stored = cache.store("key", FILES)
    loaded = cache.load("key")
    assert stored is not None and loaded is not None
    assert loaded.files == FILES
    assert loaded.path == stored.path == cache_dir / "key"
    assert (loaded.path / "source.py").read_bytes() == FILES["source.py"]
    assert not leftovers(cache_dir)


def test_a_missing_entry() -> None:
    assert cache.load("key") is None


def test_directories_are_private(cache_dir: Path) -> None:
    cache.store("key", FILES)
    assert cache_dir.stat().st_mode & 0o777 == 0o700
    assert (cache_dir / "key").stat().st_mode & 0o777 == 0o700


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", [*FILES, "DIGEST"])
@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, delete])
def test_a_damaged_entry_is_discarded_and_can_be_rebuilt(
    cache_dir: Path, name: str, damage: Callable[[Path], None]
) -> None:
    cache.store("key", FILES)
    damage(cache_dir / "key" / name)
    assert cache.load("key") is None
    assert os.listdir(cache_dir) == []
    cache.store("key", FILES)
    rebuilt = cache.load("key")
    assert rebuilt is not None and rebuilt.files == FILES


def test_a_file_that_does_not_belong_there_is_damage(cache_dir: Path) -> None:
    cache.store("key", FILES)
    (cache_dir / "key" / "extra.so").write_bytes(b"")
    assert cache.load("key") is None


def test_the_first_of_two_writers_wins(cache_dir: Path) -> None:
    cache.store("key", FILES)
    second = cache.store("key", FILES)
    assert second is not None and second.files == FILES
    assert os.listdir(cache_dir) == ["key"]


def test_a_killed_writer_leaves_nothing_that_is_read(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "rename", lambda *_: os._exit(9))  # killed before the entry is in place
        cache.store("key", FILES)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(leftovers(cache_dir)) == 1
    assert cache.load("key") is None
    cache.store("key", FILES)
    assert cache.load("key") is not None
    # What the writer left is taken away once it is surely abandoned.
    left = cache_dir / leftovers(cache_dir)[0]
    os.utime(left, (time.time() - 7200,) * 2)
    cache.store("other", FILES)
    assert not left.exists()


def test_the_least_recently_used_entry_goes(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, FILES.values())) + 64
    monkeypatch.setenv("REGARD_CACHE_SIZE", str(2 * size))
    for age, key in ((300, "first"), (200, "second")):
        cache.store(key, FILES)
        os.utime(cache_dir / key, (time.time() - age,) * 2)
    assert cache.load("first") is not None  # now the second is the oldest
    cache.store("third", FILES)
    assert sorted(os.listdir(cache_dir)) == ["first", "third"]


def test_size_zero_means_no_cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE_SIZE", "0")
    with warnings.catch_warnings(action="error"):
        assert cache.store("key", FILES) is None
    assert not cache_dir.exists()


def fails_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("tempfile.mkdtemp", errno.EROFS),
        ("tempfile.mkdtemp", errno.EACCES),
        ("pathlib.Path.write_bytes", errno.ENOSPC),
        ("os.rename", errno.ENOSPC),
        ("pathlib.Path.mkdir", errno.EROFS),
    ],
)
def test_a_directory_that_cannot_be_written_is_warned_about_once(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    if operation != "pathlib.Path.mkdir":
        cache_dir.mkdir(mode=0o700)
    monkeypatch.setattr(operation, fails_with(code))
    with pytest.warns(RuntimeWarning, match=os.strerror(code)) as caught:
        assert cache.store("key", FILES) is None
        assert cache.store("key", FILES) is None
    assert len(caught) == 1
    monkeypatch.undo()
    assert not cache_dir.exists() or os.listdir(cache_dir) == []


def test_a_read_only_cache_can_still_be_read(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store("key", FILES)
    for operation in ("tempfile.mkdtemp", "os.utime", "os.rename"):
        monkeypatch.setattr(operation, fails_with(errno.EROFS))
    loaded = cache.load("key")
    assert loaded is not None and loaded.files == FILES


def test_a_directory_of_another_user_is_refused(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store("key", FILES)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert cache.load("key") is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(cache_dir: Path, mode: int) -> None:
    cache.store("key", FILES)
    cache_dir.chmod(mode)
    with pytest.warns(RuntimeWarning, match="chmod go-w"):
        assert cache.load("key") is None


# Eight children make their own attention at the same moment, on one empty cache; argv[1] has what they should get.
EIGHT = """
import os, sys
import torch
import regard as rg
torch.set_num_threads(1)
gate, start = os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        os.close(start)
        os.read(gate, 1)
        query, expected = torch.load(sys.argv[1])
        out = rg.attention(rg.sliding_window(5), rg.softcap(20.0))(query, query, query)
        os._exit(0 if torch.equal(out, expected) else 1)
    children.append(child)
os.close(start)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_eight_processes_at_once(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_python: RunPython
) -> None:
    monkeypatch.setenv("REGARD_CACHE_SIZE", "0")
    query = torch.randn(1, 2, 33, 16)
    torch.save((query, rg.attention(rg.sliding_window(5), rg.softcap(20.0))(query, query, query)), tmp_path / "it.pt")
    monkeypatch.delenv("REGARD_CACHE_SIZE")
    run_python(EIGHT, str(tmp_path / "it.pt"))
    (name,) = os.listdir(cache_dir)  # one entry, and nothing left over
    assert cache.load(name) is not None


# What a warm cache must not need.
WARM = """
import sys
import torch
import regard as rg
from regard.runtime import compile
def generate(request):
    raise AssertionError("generated again")
if sys.argv[1] == "warm":
    compile.generate = generate
query = torch.randn(1, 2, 33, 16)
rg.attention(rg.sliding_window(5), rg.softcap(20.0))(query, query, query)
print([name for name in ("sympy", "lark", "triton") if name in sys.modules])
"""


def test_a_warm_cache_needs_no_analysis(run_python: RunPython) -> None:
    run_python(WARM, "cold")
    assert run_python(WARM, "warm").stdout == "[]\n"


def test_attention_works_without_a_cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.write_bytes", fails_with(errno.ENOSPC))
    query = torch.randn(1, 2, 33, 16)
    with pytest.warns(RuntimeWarning, match="compiled again in each process"):
        out = rg.attention(rg.sliding_window(6), scale=0.75)(query, query, query)
    assert out.shape == query.shape
