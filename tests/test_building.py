"""Modules without values: on the device "meta", or to be filled from a file."""

import pytest
import torch
from torch import nn

from chainrule.core.building import Uninitialized, constant, shapes_only


def test_weights_have_shapes_only():
    before = torch.get_rng_state()
    with shapes_only():
        module = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 6), nn.Conv2d(1, 2, 3))
        assert constant((2, 3), lambda: pytest.fail("computed"), torch.bool).shape == (2, 3)
    assert all(value.is_meta for value in module.parameters()) and torch.equal(before, torch.get_rng_state())
    assert constant((2,), lambda: torch.ones(2)).tolist() == [1, 1]


def test_weights_that_are_replaced_draw_no_random_numbers():
    before = torch.get_rng_state()
    with Uninitialized():
        module = nn.LSTM(3, 4)
        assert torch.rand(2, 3).shape == torch.randn(2, 3).shape == (2, 3)
    assert module.weight_ih_l0.shape == (16, 3) and torch.equal(before, torch.get_rng_state())
    assert torch.rand(100).std() > 0.1
