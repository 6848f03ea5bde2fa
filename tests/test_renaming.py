"""Tables of names of tensors."""

from pathlib import Path

import pytest
import torch

from chainrule.official.renaming import rename, under

TABLE = {
    "head.weight": "out.weight",
    **under(
        {"attn.k.*": "kv.*:k", "attn.v.*": "kv.*:v", "attn.*": "attention.*"}, "layers.{}.{}", "levels.{}.blocks.{}"
    ),
}


def test_numbers_and_rests_are_carried_over_and_parts_are_joined():
    tensors = {
        "layers.3.10.attn.v.weight": torch.ones(2, 3),
        "layers.3.10.attn.k.weight": torch.zeros(1, 3),
        "layers.3.10.attn.norm.bias": torch.ones(4),
        "head.weight": torch.ones(5),
        "headXweight": torch.ones(6),
    }
    found = rename(tensors, TABLE, Path("x.pt"))
    assert found["levels.3.blocks.10.kv.weight"].tolist() == [[0.0] * 3, [1.0] * 3, [1.0] * 3]
    assert {name: len(value) for name, value in found.items()} == {
        "levels.3.blocks.10.kv.weight": 3, "levels.3.blocks.10.attention.norm.bias": 4, "out.weight": 5,
        "headXweight": 6,
    }  # fmt: skip


@pytest.mark.parametrize("tensors", [{}, {"layers.0.1.attn.v.weight": torch.ones(1, 4)}])
def test_parts_that_are_missing_or_differ_are_named(tensors):
    with pytest.raises(ValueError, match=r"x.pt lacks a part of levels.0.blocks.1.kv.weight \(k, v\), or they differ"):
        rename({"layers.0.1.attn.k.weight": torch.ones(1, 3), **tensors}, TABLE, Path("x.pt"))
