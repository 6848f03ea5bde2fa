"""Torch's pickles, read without a call: a machine that runs their opcodes on plain values.

A pickle is a program that may call any function by name.  Here a name is only ever a string: it is looked up in a
closed table of rebuild functions written below, or becomes a `Stub` that records what would have been done to it;
nothing is imported and nothing foreign is called.  What has no business beside weights (most of the standard library,
torch outside its layers, a call of a foreign function) is refused with its name.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_EXPANSION = 2**26  # elements that a tensor of overlapping strides may have beyond those stored
MAX_COPIED = 2**23  # items, or 16 letters or bytes, that all calls of a file may copy
CONTAINERS = (tuple, list, dict, set, frozenset)
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
STORAGES = {f"{place}.{name}Storage": dtype for name, dtype in DTYPES.items() for place in ("torch", "torch.cuda")}
STORAGES |= {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}
HARMLESS = re.compile(  # names of the standard library, numpy and torch that stay stubs, whatever is done to them
    r"argparse\.Namespace|types\.SimpleNamespace|typing\.[A-Z]\w*|pathlib(\._local)?\.\w*Path|datetime\.[a-z]+|uuid\.UUID"
    r"|functools\.partial|decimal\.Decimal|fractions\.Fraction|enum\.[A-Z]\w*|random\.Random|itertools\.count|re\._compile"
    r"|logging\.(Logger|getLogger)|numpy\.((float|int|uint|complex)\d+|bool_?|random\._\w+\.\w+|_?core\.numeric\._frombuffer)"
    r"|torch\.(torch_version\.TorchVersion|(amp|cuda\.amp|distributed|utils\.data)\.[\w.]+)"
    r"|copyreg\._reconstructor|builtins\.(object|int|float|str|bool|bytes|bytearray|complex|list|tuple|slice|range)"
    r"|numpy(\._?core\.multiarray)?\.(_reconstruct|scalar|dtype|ndarray)|torch\.(device|dtype|_C\._nn\.\w+)"
    r"|torch\.(nn|optim)\.[\w.]+"
)
CALLABLE = re.compile(  # among those, the lower-case ones that may be "called": the call is recorded
    r"functools\.partial|itertools\.count|re\._compile|logging\.getLogger|pathlib\.\w+|datetime\.\w+|builtins\.\w+"
    r"|copyreg\._reconstructor|torch\.(device|dtype)|numpy\.[\w.]+"
)


@dataclass(eq=False)
class Stub:
    """A foreign class or object, inert: what the file says of it and nothing more.

    type_name:  the full name, such as "dall_e.encoder.Encoder"
    arguments:  what it would have been built from; None for a class or function that is only named
    attributes: its attributes by name
    items:      what it holds as a list (values) or as a dict (pairs)
    state:      a state that is not a mapping of attributes
    """

    type_name: str
    arguments: tuple | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    state: Any = None


class Refusal(ValueError):
    """A sentence about what the file asks for, after "FILE is refused: "."""


@dataclass(eq=False)
class Storage:
    """A stretch of memory named in the file; `elements` may come after the tensors that view it (older container)."""

    dtype: torch.dtype
    bytes: Tensor  # uint8 (N,)
    offset: int = 0  # in elements
    length: int = 0  # in elements

    def view(self, offset: int, size: tuple, stride: tuple, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of that shape, in bounds."""
        elements = self.bytes.view(self.dtype)[self.offset : self.offset + self.length]
        elements = elements if dtype is None else elements.view(dtype)
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 64 or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"a tensor of shape {size} and strides {stride}")
        count = 1
        for side in size:
            count *= side
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count and last >= len(elements):
            raise ValueError(f"a tensor reaches element {last} of {len(elements)}")
        if count > len(elements) + MAX_EXPANSION:
            raise Refusal(f"it makes a tensor of {count} numbers out of {len(elements)}")
        return elements.as_strided(size, stride, offset) if count else torch.empty(size, dtype=elements.dtype)


# ---------------------------------------------------------------- pickle, without calls


class Machine:
    """Runs one pickle of a file on plain values.

    Args:
        file: at the first opcode; afterwards behind the last.
        persistent: what stands for a persistent id, which is how torch's pickles name their storages.
    """

    def __init__(self, file: BinaryIO | mmap.mmap, persistent: Callable[[Any], Any]) -> None:
        self.file, self.persistent = file, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_COPIED

    def run(self) -> Any:
        """Reads the whole pickle and returns the object that it holds."""
        for opcode, argument, _ in pickletools.genops(self.file):
            self._do(opcode.name, argument)
        return self.stack[-1]

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in _CONSTANTS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name == "POP" and stack:
            stack.pop()
        elif name in ("POP", "POP_MARK"):
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            self._need(count)
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST", "FROZENSET", "DICT"):
            values = self._marked()
            if name == "DICT":
                values = _put({}, _pairs(values))
            elif name == "FROZENSET":
                values = frozenset(_key(value) for value in values)
            self.stack.append(tuple(values) if name == "TUPLE" else values)
        elif name in ("APPEND", "SETITEM"):
            values = [stack.pop() for _ in range(1 + (name == "SETITEM"))][::-1]
            self._add(values, name == "SETITEM")
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            self._add(self._marked(), name == "SETITEMS")
        elif name == "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            self._spend(arguments if isinstance(arguments, tuple) else ())
            stack.append(_build(called, arguments, is_class=name == "NEWOBJ"))
        elif name == "NEWOBJ_EX":
            keywords, arguments, called = stack.pop(), stack.pop(), stack.pop()
            self._spend((arguments,))
            stack.append(_build(called, (*arguments, keywords) if keywords else arguments, is_class=True))
        elif name in ("INST", "OBJ"):
            values = self._marked()
            called = _named(*argument.split(" ", 1)) if name == "INST" else values.pop(0)
            self.stack.append(_build(called, tuple(values), is_class=False))
        elif name == "BUILD":
            state = stack.pop()
            self._spend(
                tuple(part for part in (state if isinstance(state, tuple) else (state,)) if isinstance(part, dict))
            )
            _set_state(stack[-1], state)
        elif name in ("PERSID", "BINPERSID"):
            stack.append(self.persistent(stack.pop() if name == "BINPERSID" else argument))
        else:
            raise Refusal(f"its pickle uses the opcode {name}, which no file of weights needs")

    def _spend(self, values: tuple) -> None:
        """Counts what a call may copy: a file can name one large value in many calls, each of which copies it."""
        for value in values:
            letters = isinstance(value, (str, bytes))
            self.left -= len(value) // (16 if letters else 1) if letters or isinstance(value, CONTAINERS) else 1
        if self.left < 0:
            raise Refusal("its calls copy the same values many times over")

    def _need(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def _add(self, values: list[Any], pairs: bool) -> None:
        """Values, or keys and values in turn, into the container on top of the stack."""
        container = self.stack[-1]
        if pairs and isinstance(container, dict):
            _put(container, _pairs(values))
        elif isinstance(container, Stub):
            container.items.extend(_pairs(values) if pairs else values)
        elif isinstance(container, set) and not pairs:
            container.update(_key(value) for value in values)
        elif isinstance(container, list) and not pairs:
            container.extend(values)
        else:
            raise TypeError("items of what holds none")


_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _key(value: Any) -> Any:
    """A key of a dict or set; nested ones have no business here (hashing them can be made to overflow)."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(part is None or isinstance(part, (str, int, float, bytes, Stub, torch.dtype)) for part in parts):
        raise TypeError("a key that is no plain value")
    return value


def _put(container: dict, pairs: Any) -> dict:
    for key, value in pairs:
        container[_key(key)] = value
    return container


def _named(module: Any, name: Any) -> Stub | torch.dtype:
    """What stands for a global of the file: its name."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name that is no string")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # from Python 2's
    full = f"{module}.{name}"
    if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
        return vars(torch)[name]
    guarded = module.partition(".")[0] in (*sys.stdlib_module_names, "torch", "numpy", "")
    if guarded and full not in _REBUILD and full not in STORAGES and not HARMLESS.fullmatch(full):
        raise _refused(full)
    if not all(_is_class(outer) for outer in name.split(".")[:-1]):  # reaches through a module, as Encoder.os.system
        raise _refused(full)
    return Stub(full)


def _is_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def _refused(name: str) -> Refusal:
    printable = name if name.isprintable() else ascii(name)
    return Refusal(f"it asks for {printable}, which no file of weights needs")


def _build(called: Any, arguments: Any, is_class: bool) -> Any:
    """What a call in the file gives: a tensor or container rebuilt here, else a stub that records it."""
    if not isinstance(called, Stub) or called.arguments is not None or not isinstance(arguments, tuple):
        raise TypeError("a call of what is no name")
    name = called.type_name
    if name in _REBUILD:
        return _REBUILD[name](*arguments)
    if name == "copyreg._reconstructor" and isinstance(arguments[0], Stub):
        return _build(arguments[0], (), is_class=True)
    if not (is_class or _is_class(name.rpartition(".")[2]) or CALLABLE.fullmatch(name)):
        raise _refused(name)
    return Stub(name, arguments)


def _set_state(value: Any, state: Any) -> None:
    if isinstance(value, (dict, Tensor)):  # such as the _metadata of a state dict
        return
    if not isinstance(value, Stub):
        raise TypeError("a state of a plain value")
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if all(part is None or isinstance(part, dict) for part in parts):
        for part in parts:
            value.attributes.update(part or {})
    else:
        value.state = state


# ---------------------------------------------------------------- what may be rebuilt


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return storage.view(offset, size, stride)


def _tensor_of_type(
    storage: Storage, offset: int, size: tuple, stride: tuple, grad: bool, hooks: Any, dtype: torch.dtype, *_: Any
) -> Tensor:
    return storage.view(offset, size, stride, dtype)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter of no tensor")
    return data


def _of_type(function: Stub, _: Any, arguments: tuple, *__: Any) -> Tensor:
    """A tensor with attributes or of a subclass: the tensor alone."""
    if function.type_name not in _TENSORS:
        raise _refused(function.type_name)
    return _TENSORS[function.type_name](*arguments)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


_TENSORS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_REBUILD: dict[str, Callable] = _TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.serialization._get_layout": lambda name: name,
    "collections.OrderedDict": lambda pairs=(): _put({}, pairs),
    "collections.defaultdict": lambda factory=None, pairs=(): _put({}, pairs),
    "collections.Counter": lambda counts=None: _put({}, (counts or {}).items()),
    "collections.deque": lambda values=(), length=None: list(values),
    "builtins.dict": lambda pairs=(): _put({}, pairs),
    "builtins.set": lambda values=(): {_key(value) for value in values},
    "builtins.frozenset": lambda values=(): frozenset(_key(value) for value in values),
    "_codecs.encode": _encode,
}
