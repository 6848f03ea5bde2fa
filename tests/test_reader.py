"""Foreign files of weights: read as torch reads them, and nothing in them is ever executed."""

import argparse
import builtins
import collections
import functools
import importlib
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chainrule.official.reader import Stub, module_tensors, read_checkpoint, sha256
from chainrule.official.sources import config_files, has_mark

CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
container = pytest.mark.parametrize("container", CONTAINERS)


def save(value, path, container="zip"):
    torch.save(value, path, **CONTAINERS[container])
    return path


def refusal(path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@container
def test_tensors_of_all_types_come_back(tmp_path, container):
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64,
    ]  # fmt: skip
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in types}
    found = read_checkpoint(save(tensors, tmp_path / "x.pt", container))
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)


@container
def test_strides_offsets_and_shared_memory(tmp_path, container):
    whole = torch.arange(24.0)
    views = {
        "whole": whole, "transposed": whole.view(4, 6).T, "part": whole[5:9], "steps": whole[1::7],
        "expanded": torch.arange(3.0).expand(1000, 3), "scalar": torch.tensor(7), "empty": torch.empty(0, 4),
    }  # fmt: skip
    found = read_checkpoint(save(views, tmp_path / "x.pt", container))
    for key, view in views.items():
        assert torch.equal(found[key], view) and found[key].stride() == view.stride()
    found["whole"][6] = -1
    assert found["part"][1] == -1 and found["transposed"][0, 1] == -1


@container
def test_containers_become_plain_and_foreign_classes_stubs(tmp_path, container):
    class Callback:
        pass

    Callback.__qualname__, Callback.__module__ = "Callback", __name__
    globals()["Callback"] = Callback
    value = {
        "state_dict": collections.OrderedDict(w=nn.Parameter(torch.ones(2))), "counts": collections.Counter("aab"),
        "args": argparse.Namespace(lr=0.1, path=Path("a/b")), "callbacks": {Callback: {"score": torch.tensor(0.5)}},
        "default": collections.defaultdict(list, a=[1]), "set": {1, 2}, "tuple": (1, "a", b"c", None, True, 2.5),
        "size": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu"), "long": 2**80,
    }  # fmt: skip
    value["state_dict"]._metadata = {"": {"version": 1}}
    found = read_checkpoint(save(value, tmp_path / "x.pt", container))
    del globals()["Callback"]
    assert type(found["state_dict"]) is dict and type(found["state_dict"]["w"]) is torch.Tensor
    assert not found["state_dict"]["w"].requires_grad
    assert found["counts"] == {"a": 2, "b": 1} and found["default"] == {"a": [1]} and found["set"] == {1, 2}
    assert found["tuple"] == value["tuple"] and found["size"] == (2, 3) and found["long"] == 2**80
    assert found["dtype"] is torch.float16 and found["device"].type_name == "torch.device"
    assert isinstance(found["args"], Stub) and found["args"].type_name == "argparse.Namespace"
    assert found["args"].attributes["lr"] == 0.1
    (key,) = found["callbacks"]
    assert key.type_name == f"{__name__}.Callback" and key.arguments is None
    assert found["callbacks"][key]["score"] == 0.5


def test_paths_saved_by_python_3_13(tmp_path):
    pickled = b"\x80\x02}X\x04\x00\x00\x00pathcpathlib._local\nPosixPath\nX\x01\x00\x00\x00a\x85Rs."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    assert read_checkpoint(tmp_path / "x.pt")["path"].type_name == "pathlib._local.PosixPath"


@container
def test_a_whole_module_becomes_a_stub_with_tensors(tmp_path, container):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    found = read_checkpoint(save(module, tmp_path / "module.pkl", container))
    assert found.type_name == "torch.nn.modules.container.Sequential"
    tensors = module_tensors(found)
    assert tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in module.state_dict().items())


def test_safetensors_and_hash(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    for name in ("x.safetensors", "weights.bin"):
        save_file(tensors, tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in tensors.items())
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------- hostile files


class Hostile:
    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def hostile_values(mark: str) -> dict[str, tuple[object, str]]:
    """Values whose unpickling would make the file `mark`, and the name in each that is to be refused."""
    code = f"open({mark!r}, 'w').close()"
    return {
        "system": (Hostile(os.system, f"touch {mark}"), "posix.system"),
        "eval": (Hostile(eval, code), "builtins.eval"),
        "exec": (Hostile(exec, code), "builtins.exec"),
        "open": (Hostile(open, mark, "w"), "io.open"),
        "popen": (Hostile(subprocess.Popen, ["touch", mark]), "subprocess.Popen"),
        "run": (Hostile(subprocess.run, ["touch", mark]), "subprocess.run"),
        "rmtree": (Hostile(shutil.copy, __file__, mark), "shutil.copy"),
        "nested": ({"state_dict": [Hostile(list, [Hostile(eval, code)])]}, "builtins.eval"),
        "getattr": (Hostile(getattr, Hostile(importlib.import_module, "os"), "system"), "builtins.getattr"),
        "import": (Hostile(importlib.import_module, "antigravity"), "importlib.import_module"),
        "dunder": (Hostile(builtins.__import__, "antigravity"), "builtins.__import__"),
        "partial": (Hostile(functools.partial, os.system, "true"), "posix.system"),
        "hub": (Hostile(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "load": (Hostile(torch.load, mark), "torch.serialization.load"),
        "bytes": (Hostile(torch.storage._load_from_bytes, b""), "torch.storage._load_from_bytes"),
        "own": (Hostile(hostile_values, mark), "hostile_values"),
        "state": ({"a": argparse.Namespace(x=Hostile(os.remove, mark))}, "posix.remove"),
        "key": ({Hostile(os.mkdir, mark): 1}, "posix.mkdir"),
        "ordered": (collections.OrderedDict(a=Hostile(os.rename, mark, mark)), "posix.rename"),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "protocol 0"])
@pytest.mark.parametrize("name", hostile_values("x"))
def test_a_hostile_pickle_does_nothing_and_is_refused_by_name(tmp_path, form, name):
    mark = tmp_path / "mark"
    value, expected = hostile_values(str(mark))[name]
    path = tmp_path / "x.pt"
    if form in CONTAINERS:
        save(value, path, form)
    else:
        path.write_bytes(pickle.dumps(value, protocol=0 if form == "protocol 0" else 4))
    sentence = refusal(path)
    assert "refused" in sentence and expected in sentence.replace("_io.open", "io.open")
    assert not mark.exists()


HAND_MADE = {  # opcodes that pickle itself would not write
    "chain": (b"\x80\x02cdall_e.encoder\nos.system\n(X\x04\x00\x00\x00truetR.", "dall_e.encoder.os.system"),
    "harmless module": (b"\x80\x02cargparse\n_sys.exit\n(tR.", "argparse._sys.exit"),
    "dunder": (b"\x80\x02cargparse\nNamespace.__init__.__globals__\n.", "argparse.Namespace.__init__.__globals__"),
    "layers": (b"\x80\x02ctorch.nn.modules.module\ntorch.hub.load\n(tR.", "torch.hub.load"),
    "old call": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "object call": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "python 2": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    "stacked": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "numpy": (b"cnumpy.testing._private.utils\nrunstring\n(tR.", "numpy.testing._private.utils.runstring"),
    "wrapped": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cshutil\nrmtree\nN(ttR.",
        "shutil.rmtree",
    ),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_pickles_are_refused(tmp_path, name):
    data, expected = HAND_MADE[name]
    (tmp_path / "bare.pt").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("x/data.pkl", data)
    for file in ("bare.pt", "zip.pt"):
        sentence = refusal(tmp_path / file)
        assert "refused" in sentence and expected in sentence


def test_what_is_built_from_a_foreign_class_is_inert(tmp_path):
    """A stub records a call and a state; no method of it is looked for, and no later call of it works."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02cfoo.bar\nEvil\n(X\x02\x00\x00\x00rmtR}X\x01\x00\x00\x00aK\x01sb.")
    found = read_checkpoint(path)
    assert (found.type_name, found.arguments, found.attributes) == ("foo.bar.Evil", ("rm",), {"a": 1})
    with zipfile.ZipFile(path, "w") as archive:  # calling what was built
        archive.writestr("x/data.pkl", b"\x80\x02cfoo.bar\nEvil\n(tR(tR.")
    assert "damaged" in refusal(path)


# ---------------------------------------------------------------- damaged files


@container
def test_a_file_cut_short_is_called_that(tmp_path, container):
    path = save({"w": torch.randn(500), "v": torch.randn(30)}, tmp_path / "x.pt", container)
    data = path.read_bytes()
    for length in [0, 1, 3, 10, 50, 200, len(data) // 2, len(data) - 700, len(data) - 1]:
        path.write_bytes(data[:length])
        sentence = refusal(path)
        assert "cut short or damaged" in sentence or "not one that torch.save wrote" in sentence


@container
def test_changed_bytes_never_do_more_than_raise_one_sentence(tmp_path, container):
    """Many damaged files: each reads as something or is refused in one sentence."""
    data = save({"w": torch.randn(8), "a": argparse.Namespace(x=1)}, tmp_path / "x.pt", container).read_bytes()
    if container == "zip":  # straight into the pickle, past the checksum
        data = zipfile.ZipFile(tmp_path / "x.pt").read("x/data.pkl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in torch.randint(len(data), (2,), generator=generator):
            damaged[place] = int(torch.randint(256, (1,), generator=generator))
        if container == "legacy":
            (tmp_path / "y.pt").write_bytes(damaged)
        else:
            with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
                for name in old.namelist():
                    new.writestr(name, bytes(damaged) if name == "x/data.pkl" else old.read(name))
        try:
            read_checkpoint(tmp_path / "y.pt")
        except ValueError as error:
            assert "\n" not in str(error)


def test_nonsense_sizes_take_no_memory(tmp_path):
    def zipped(pickled: bytes, name: str, compression=zipfile.ZIP_STORED, numbers=bytes(16)) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            archive.writestr("x/data.pkl", pickled)
            archive.writestr("x/data/0", numbers)
        return tmp_path / name

    def tensor(length: int, size: str, stride: str, offset: int = 0) -> bytes:
        """A pickle of text opcodes: a float tensor over a storage of `length` numbers."""
        identity = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nL{length}L\ntQ"
        return f"ctorch._utils\n_rebuild_tensor_v2\n({identity}L{offset}L\n({size}t({stride}tI00\nNtR.".encode()

    good = read_checkpoint(zipped(tensor(4, "I2\nI2\n", "I2\nI1\n"), "good"))
    assert good.shape == (2, 2)
    assert "damaged" in refusal(zipped(tensor(10**15, "I2\n", "I1\n"), "storage"))
    assert "damaged" in refusal(zipped(tensor(4, "L1000000000000L\n", "I1\n"), "far"))
    assert "damaged" in refusal(zipped(tensor(4, "I2\n", "I1\n", offset=3), "offset"))
    assert "damaged" in refusal(zipped(tensor(4, "I2\n", "I-1\n", offset=3), "backwards"))
    assert "tensor of 1000000000000 numbers" in refusal(zipped(tensor(4, "L1000000000000L\n", "I0\n"), "expanded"))
    assert "compressed" in refusal(zipped(tensor(4, "I2\n", "I1\n"), "bomb", zipfile.ZIP_DEFLATED, bytes(10**6)))
    assert "damaged" in refusal(zipped(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.", "string"))
    assert "damaged" in refusal(zipped(b"(" * 10**5 + b"t" * 10**5 + b"}(" + b".", "deep"))
    nested = b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"K\x01s."  # a key whose hash would overflow the C stack
    assert "damaged" in refusal(zipped(nested, "key"))
    legacy = save({"w": torch.zeros(77)}, tmp_path / "legacy", "legacy").read_bytes()
    assert legacy.count(b"K\x4d") == 2  # the storage's length and the tensor's
    (tmp_path / "legacy").write_bytes(legacy.replace(b"K\x4d", b"J\xff\xff\xff\x7f"))
    assert "damaged" in refusal(tmp_path / "legacy")


def test_other_files_are_named_as_such(tmp_path):
    assert "is no file" in refusal(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("hello\n")
    assert "no file of weights" in refusal(tmp_path / "a.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    assert "not one that torch.save wrote" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "not one that torch.save wrote" in refusal(tmp_path / "a.pkl")
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + bytes(7) + b"{")
    assert "damaged" in refusal(tmp_path / "a.safetensors")


def test_an_empty_file_is_not_read(tmp_path):
    """Files of the system have no size either, and reading some of them does not end."""
    (tmp_path / "a.ckpt").touch()
    os.mkfifo(tmp_path / "config.yaml")
    assert not has_mark(tmp_path / "a.ckpt", "") and config_files(tmp_path) == []
    with pytest.raises(ValueError, match=r"a\.ckpt is an empty file, cut short or damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_modules_in_a_circle_end():
    module = Stub("a.B", ())
    module.attributes["_modules"] = {"self": module}
    with pytest.raises(ValueError, match="circle"):
        module_tensors(module)
