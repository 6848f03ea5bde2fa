"""When kernels are compiled, where they are kept, and what happens where they cannot be had."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chainrule.kernels import native, transformer
from chainrule.kernels.native import Kernel, integers
from chainrule.kernels.transformer import Stack, StepLayer, pack_stack

needs_compiler = pytest.mark.skipif(transformer.native_library() is None, reason="no C++ compiler")
SOURCE = """
#include "common.h"
struct Pair { int64_t first, second; };
INTERFACE(3, sizeof(Pair))
extern "C" int64_t sum(const Pair* pair) { return pair->first + pair->second; }
"""


class Pair(ctypes.Structure):
    _fields_ = integers("first", "second")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A small kernel, whose cache is empty."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "small.cpp").write_text(SOURCE)
    header = (native.FOLDER / "common.h").read_text()  # as a whole it takes a second to compile
    interface = re.search(r"#define INTERFACE.*?^    }", header, re.DOTALL | re.MULTILINE)[0]
    (folder / "common.h").write_text(f"#include <cstdint>\n{interface}\n")
    monkeypatch.setattr(native, "FOLDER", folder)
    monkeypatch.setattr(native, "_warned", False)
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHAINRULE_NATIVE", raising=False)
    native._build.cache_clear()
    yield Kernel("small", 3, (Pair,))
    native._build.cache_clear()


def works(kernel):
    native._build.cache_clear()
    return kernel.load("native").sum(ctypes.byref(Pair(2, 3))) == 5


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "kernels").glob("*"))


@needs_compiler
def test_a_library_is_compiled_once_and_again_when_a_header_changes(kernel, tmp_path):
    assert works(kernel)
    (first,) = kept(tmp_path)
    before = first.stat().st_mtime_ns
    assert works(kernel) and kept(tmp_path) == [first] and first.stat().st_mtime_ns == before
    with (native.FOLDER / "common.h").open("a") as header:
        header.write("// changed\n")
    assert works(kernel) and len(kept(tmp_path)) == 2


@needs_compiler
@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"", lambda content: content[::-1]])
def test_a_damaged_library_is_compiled_again(kernel, tmp_path, damage):
    assert works(kernel)
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))
    assert works(kernel) and native._is_intact(path)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_not_needed(kernel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be kept \(.*/cache.* \(Not a directory\)\), so every start") as found:
        assert works(kernel) and works(kernel)
    assert len(found) == 1


@needs_compiler
def test_a_home_folder_is_not_needed(kernel, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CHAINRULE_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning, match="there is no home folder for the cache"):
        assert works(kernel)


@needs_compiler
def test_a_full_disk_leaves_the_compiled_code_for_this_start(kernel, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.warns(UserWarning, match=r"cannot be kept \(.*No space left on device: .*are free\)\), so every start"):
        assert works(kernel)


@needs_compiler
def test_another_version_or_size_of_the_interface_is_noticed(kernel):
    for other in (Kernel("small", 2, (Pair,)), Kernel("small", 3, (Pair, Pair)), Kernel("small", 3, ())):
        with pytest.raises(AssertionError, match=r"small.cpp has interface \[3, 16"):
            other.load("native")


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_compiler_there_is_one_warning(kernel, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=r"^.*could not be compiled|could not compile.*several times slower") as found:
        assert kernel.load() is None and kernel.load() is None
        assert Kernel("other", 1, ()).load() is None
    assert len(found) == 1
    with pytest.raises(RuntimeError, match="the compiled code was required, but"):
        kernel.load("native")
    monkeypatch.setenv("CHAINRULE_NATIVE", "require")
    with pytest.raises(RuntimeError, match="the compiled code was required, but"):
        kernel.load()
    assert kernel.load("plain") is None


def test_native_code_can_be_switched_off(kernel, monkeypatch):
    monkeypatch.setenv("CHAINRULE_NATIVE", "off")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel.load() is None


def test_unknown_choices_are_refused(kernel, monkeypatch):
    with pytest.raises(ValueError, match="backend must be native, plain or None, got 'cuda'"):
        kernel.load("cuda")
    monkeypatch.setenv("CHAINRULE_NATIVE", "on")
    with pytest.raises(ValueError, match="CHAINRULE_NATIVE must be off, require or vectors, got 'on'"):
        kernel.load()


def test_a_model_runs_without_a_compiler_and_without_a_home(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "CXX": "/no/such/compiler", "HOME": str(tmp_path / "file"), "PYTHONWARNINGS": "always"}
    environment.pop("CHAINRULE_CACHE")
    code = """
import torch
from chainrule.kernels.scan import lstm_scan
from chainrule.layers.transformer import Block, BlockRunner
runner = BlockRunner([Block(64, 2)], "float32")
runner.step(torch.randn(1, 64), runner.init_cache(1, 1))
lstm_scan(torch.randn(1, 2, 2, 64), torch.randn(3, 16, 64), "row")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("Warning: ") == 1 and "several times slower" in done.stderr


def stack(kind: str, dtype: torch.dtype = torch.float32) -> Stack:
    """Two blocks, with cross-attention and gated MLPs or with neither."""
    torch.manual_seed(0)

    def layer():
        norms, linears = [torch.nn.LayerNorm(64).to(dtype) for _ in range(5)], {}
        sizes = {"query_key_value": 192, "projection": 64, "expand": 256, "query": 64, "cross_projection": 64}
        for name, size in sizes.items():
            linears[name] = torch.nn.Linear(64, size, bias=False).to(dtype)
        linears["contract"] = torch.nn.Linear(256 if kind == "plain" else 128, 64, bias=False).to(dtype)
        if kind == "plain":
            del linears["query"], linears["cross_projection"]
            return StepLayer(attention_norm=norms[0], mlp_norm=norms[1], **linears)
        return StepLayer(
            attention_norm=norms[0], mlp_norm=norms[1], attention_out_norm=norms[2], cross_norm=norms[3],
            cross_out_norm=norms[4], hidden_norm=torch.nn.LayerNorm(128).to(dtype), **linears,
        )  # fmt: skip

    distances = torch.tensor([0, 1, 4]) if kind == "sparse" else None
    head = (torch.nn.LayerNorm(64).to(dtype), torch.nn.Linear(64, 11).to(dtype))
    return Stack([layer(), layer()], 4, head, distances)


@pytest.mark.parametrize("backend", ["plain", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("kind", ["plain", "cross", "sparse"])
@torch.no_grad()
def test_rows_of_different_ages_share_a_batch(backend, kind):
    step = pack_stack(stack(kind), "float32", backend)
    x, ages, memory = torch.randn(3, 9, 64), torch.tensor([2, 0, 5]), None
    if kind != "plain":
        memory = (*torch.randn(2, 3, 2, 4, 6, 16), torch.tensor([6, 2, 4]))
    alone, together = [], []
    filled = step.init_cache(3, 9)
    for row, age in enumerate(ages.tolist()):
        caches, own = step.init_cache(1, 9), memory and tuple(part[row : row + 1] for part in memory)
        outputs = [step(x[row : row + 1, t], *caches, torch.tensor([t]), own) for t in range(age + 3)]
        alone.append(torch.cat(outputs[age:]))
        start = step.init_cache(1, 9)
        for t in range(age):
            step(x[row : row + 1, t], *start, torch.tensor([t]), own)
        for cache, part in zip(filled, start, strict=True):
            cache[row, :, :, :age] = part[0, :, :, :age]
    for t in range(3):
        together.append(step(x[torch.arange(3), ages + t], *filled, ages + t, memory))
    torch.testing.assert_close(torch.stack(together, 1), torch.stack(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_compiled_code_is_refused_where_it_does_not_suit():
    with pytest.raises(
        ValueError, match="compiled code reads float32 weights on the CPU, of widths that are multiples"
    ):
        pack_stack(stack("plain", torch.float64), "float32", "native")
