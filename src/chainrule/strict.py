"""YAML -> frozen dataclasses, strictly.

Nothing in a file is ignored: an unknown key, a wrong type or a value out of range is a ValueError of one sentence that
says where it stands and names the nearest right key.  `build_dataclass` does this for every dataclass, so a config
needs type hints and, for ranges, a ValueError in its `__post_init__`.  Two kinds of fields are special:

    options: Mapping[str, Any] = rest()           takes all keys that are not fields
    training: TrainingConfig = section(TrainingConfig, steps=9)   has other defaults here than elsewhere

`to_plain` is the inverse.
"""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from .files import read_text

T = TypeVar("T")

MAX_TEXT = 1 << 22
"""No YAML file is longer, in characters: a list of the names of 20,000 classes takes half a million."""
MAX_VALUES = 1 << 18
"""No YAML file holds more values, where an anchor counts at each of its aliases."""
MAX_DEPTH = 50
"""No YAML file nests lists and mappings deeper."""
MAX_SHOWN = 80
"""Characters of a value that an error shows."""
_PROBLEMS = {  # a part of PyYAML's message: what is wrong, and what would be right
    "mapping values are not allowed": "a second ': ' in a line; put a text that holds ': ' in quotes",
    "could not find expected ':'": "a key without ':'",
    "that cannot start any token": "a tab, or a character that no value begins with; indent with spaces, or use quotes",
    "undefined alias": "a name after '*' that stands for nothing; put a text that begins with '*' in quotes",
    "duplicate anchor": "a name after '&' that is given twice",
    "expected <block end>": "lines that belong together but are indented differently, or more after the end of a quote",
    "expected ',' or": "a list or mapping that is not closed, or without a comma between two values",
    "unexpected end of stream": "a quote that is not closed",
    "while scanning a quoted scalar": "a quote that is not closed",
    "could not determine a constructor": "a tag, a word that begins with '!'; leave it out, or put the text in quotes",
    "but found another document": "several documents, with a line of dashes between them; keep one",
    "escape": "a backslash that stands for no character; use single quotes",
}


# ---------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML that rejects a key given twice and reads 1e-3 as a number (YAML 1.1 has it a string)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name)
        key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} has a list or a mapping for a key")
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"the key {name!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)

    def get_single_node(self):
        node = super().get_single_node()
        _check_size(node)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes a text that `_Loader` would read as a number in quotation marks."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name)
        key: list(rules) for key, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _check_size(root: yaml.Node | None) -> None:
    """Raises YAMLError where aliases make a small text a large or deep value, or one that holds itself."""
    sizes: dict[yaml.Node, tuple[int, int]] = {}  # values in a node, and lists in lists
    stack = [] if root is None else [(root, 1, False)]
    while stack:
        node, depth, entered = stack.pop()
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in children for one in pair]
        if entered:
            inner = [sizes[child] for child in children]
            sizes[node] = 1 + sum(count for count, _ in inner), 1 + max((height for _, height in inner), default=0)
        elif node not in sizes and depth <= MAX_DEPTH:
            stack += [(node, depth, True), *((child, depth + 1, False) for child in children if child not in sizes)]
        if depth > MAX_DEPTH or (node in sizes and sizes[node][1] > MAX_DEPTH):
            raise yaml.YAMLError(f"its lists and mappings are nested deeper than {MAX_DEPTH}")
        if node in sizes and sizes[node][0] > MAX_VALUES:
            raise yaml.YAMLError(f"it holds more than {MAX_VALUES:,} values")


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; raises ValueError of one line."""
    if len(text) > MAX_TEXT:
        raise _error(where, f"not valid YAML: {len(text):,} characters are more than {MAX_TEXT:,}")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, said = error.problem_mark, f"{error.context} {error.problem}"
        problem = next((ours for theirs, ours in _PROBLEMS.items() if theirs in said), "something that is no YAML")
        raise _error(
            where, f"not valid YAML: {'' if mark is None else f'line {mark.line + 1} has '}{problem}"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(where, f"not valid YAML: line {line} holds a control character") from None
    except yaml.YAMLError as error:
        raise _error(where, f"not valid YAML: {error}") from None
    except RecursionError:
        raise _error(where, f"not valid YAML: its lists and mappings are nested deeper than {MAX_DEPTH}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML's constructors
        raise _error(where, "not valid YAML: it holds a number or a date that cannot be") from error


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML file holds; raises ValueError where it holds anything else."""
    path = Path(path)
    value = parse_yaml(read_text(path), path.name)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: must hold keys and values")
    return value


def write_yaml(value: Any) -> str:
    """A plain value as YAML, keys in the given order."""
    return yaml.dump(to_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# ---------------------------------------------------------------- dataclasses


def rest() -> Any:
    """A field of a dataclass that takes all keys that are not fields."""
    return field(default_factory=dict, metadata={"rest": True})


def section(cls: type[T], **defaults: Any) -> T:
    """A field of a dataclass that holds the dataclass `cls`, whose keys have these defaults there."""
    return field(default_factory=lambda: cls(**defaults), metadata={"defaults": defaults})


def build_dataclass(cls: type[T], mapping: Mapping[str, Any], where: str, section: str = "") -> T:
    """An instance of the dataclass `cls` from plain values, strictly.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, Literal, tuple, list, dict, Path, dataclasses, or
            unions of these.  Of several dataclasses in a union, the first whose required fields are given is
            built, or else the last.
        mapping: plain values by field name; a list for a tuple, a mapping for a dataclass.
        where: what is read, for messages ("recipe.yaml"); may be empty.
        section: the part of it that `mapping` is ("training").

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a value that `cls` itself rejects.
    """
    if not isinstance(mapping, Mapping):
        what = repr(section) if section else "it"
        raise _error(where, f"{what} must hold keys and values, got {shown(mapping)}")
    given = [f for f in fields(cls) if f.init and "rest" not in f.metadata]
    others = next((f.name for f in fields(cls) if "rest" in f.metadata), None)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in given]
    if others is None:
        check_keys(mapping, names, where, section)
    values = {} if others is None else {others: {key: mapping[key] for key in mapping if key not in names}}
    for f in given:
        name = _join(section, f.name)
        if "defaults" in f.metadata and isinstance(mapping.get(f.name, {}), Mapping):
            values[f.name] = _convert(f.metadata["defaults"] | mapping.get(f.name, {}), hints[f.name], where, name)
        elif f.name in mapping:
            values[f.name] = _convert(mapping[f.name], hints[f.name], where, name)
        elif _required(f):
            raise _error(where, f"{name!r} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise _error(where, f"in {section!r}: {error}" if section else str(error)) from None


def _required(f: Field) -> bool:
    return f.init and f.default is MISSING and f.default_factory is MISSING


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    """`value` as the type `hint` asks for, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        configs = [option for option in arguments if is_dataclass(option)]
        if configs and isinstance(value, Mapping):
            wanted = [c for c in configs if all(f.name in value for f in fields(c) if _required(f))]
            return build_dataclass((wanted or configs[-1:])[0], value, where, name)
        for option in arguments:
            try:
                return _convert(value, option, where, name)
            except ValueError:
                continue
        raise _wrong(value, hint, where, name)
    if origin is Literal:
        for allowed in arguments:
            if value == allowed and type(value) is type(allowed):
                return value
        near = nearest(str(value), [str(a) for a in arguments], always=False)
        raise _error(where, f"{name!r} must be {_describe(hint)}, got {shown(value)}{near}")
    if is_dataclass(hint):
        return build_dataclass(hint, value, where, name)
    if origin in (tuple, list) or hint in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, hint, where, name)
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise _wrong(value, hint, where, name)
            options = arguments
        else:
            options = (arguments[0] if arguments else Any,) * len(value)
        items = [_convert(v, o, where, f"{name}[{i}]") for i, (v, o) in enumerate(zip(value, options, strict=True))]
        return items if list in (origin, hint) else tuple(items)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _error(where, f"{name!r} must hold keys and values, got {shown(value)}")
        kind = arguments[1] if arguments else Any
        return {key: _convert(one, kind, where, _join(name, str(key))) for key, one in value.items()}
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise _error(where, f"{name!r} must be finite, got {shown(value)}")
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is type(None) and value is None:
        return None
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise _wrong(value, hint, where, name)


def _wrong(value: Any, hint: Any, where: str, name: str) -> ValueError:
    return _error(where, f"{name!r} must be {_describe(hint)}, got {shown(value)}")


def shown(value: Any) -> str:
    """`repr` of a value, cut where it is long."""
    return cut(repr(value))


def cut(text: str) -> str:
    """A text, or its beginning where it is longer than `MAX_SHOWN`."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _error(where: str, sentence: str) -> ValueError:
    return ValueError(f"{where}: {sentence}" if where else sentence)


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(_describe(a) for a in arguments)})"
    if origin in (tuple, list):
        return f"a list, each {_describe(arguments[0])}"
    words = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "empty",
        Path: "a path", tuple: "a list", list: "a list", dict: "keys and values",
    }  # fmt: skip
    return words.get(origin or hint, "keys and values")


def to_plain(value: Any) -> Any:
    """A dataclass as the mappings, lists, numbers and strings that YAML holds."""
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value) if "rest" not in f.metadata}
        more = [getattr(value, f.name) for f in fields(value) if "rest" in f.metadata]
        return to_plain(own | more[0] if more else own)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str, section: str) -> None:
    """Raises ValueError for a key that is not known; the sentence names the nearest one."""
    for key in mapping:
        if key not in known:
            place = f" in {section!r}" if section else ""
            raise _error(where, f"unknown key {shown(str(key))}{place}; {nearest(str(key), known)}")


def nearest(name: str, known: Sequence[str], always: bool = True) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?" if always else f"; did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if always else ""


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name
