"""Tensors under other names: a table says which.

A row of a table is `theirs: ours`.  In both, `{}` stands for a number and a final `*` for any rest of the name, which
are carried over in their order.  Of several rows that fit, the first counts; a name that no row fits stays as it is.
Rows whose names of ours end in ":part" give the parts of one tensor, joined along the first axis in the table's order:

    "attn.query.*": "query_key_value.*:q", "attn.key.*": "query_key_value.*:k", "attn.value.*": "query_key_value.*:v"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

MINGPT = {  # a block of minGPT
    "ln1.*": "attention_norm.*",
    "attn.query.*": "query_key_value.*:query",
    "attn.key.*": "query_key_value.*:key",
    "attn.value.*": "query_key_value.*:value",
    "attn.proj.*": "projection.*",
    "ln2.*": "mlp_norm.*",
    "mlp.0.*": "expand.*",
    "mlp.2.*": "contract.*",
}


def under(table: Mapping[str, str], theirs: str, ours: str) -> dict[str, str]:
    """A table of the names inside a module, as one of whole names: `theirs` and `ours` are what stands before them."""
    return {f"{theirs}.{name}": f"{ours}.{other}" for name, other in table.items()}


def rename(tensors: Mapping[str, Tensor], table: Mapping[str, str], where: Path) -> dict[str, Tensor]:
    """The tensors under our names.

    Args:
        where: the file that they come from, for messages.

    Raises:
        ValueError: of a tensor of several parts one is missing, or they differ in shape.
    """
    rows = [(_pattern(theirs), ours.partition(":")[0].replace("*", "{}"), ours) for theirs, ours in table.items()]
    parts: dict[str, list[str]] = {}  # our name in the table -> its parts
    for ours in table.values():
        name, _, part = ours.partition(":")
        parts.setdefault(name, []).append(part)
    found: dict[str, Tensor] = {}
    joined: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in tensors.items():
        for pattern, template, ours in rows:
            if match := pattern.fullmatch(key):
                name, _, part = ours.partition(":")
                if part:
                    joined.setdefault((template.format(*match.groups()), name), {})[part] = value
                else:
                    found[template.format(*match.groups())] = value
                break
        else:
            found[key] = value
    for (key, name), pieces in joined.items():
        if len(pieces) != len(parts[name]) or len({value.shape[1:] for value in pieces.values()}) != 1:
            raise ValueError(f"{where.name} lacks a part of {key} ({', '.join(parts[name])}), or they differ in shape")
        found[key] = torch.cat([pieces[part] for part in parts[name]])
    return found


def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.*)"))
