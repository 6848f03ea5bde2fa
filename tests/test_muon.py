"""The optimizer of the recipes."""

import copy

import pytest
import torch
from torch import nn

from chainrule.training.engine.muon import Muon, matrix_shape, orthogonalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalize_makes_singular_values_alike(shape, dtype):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape), dtype).double())
    assert values.min() > 0.3 and values.max() < 1.4


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 32, 2, 3), (64, 192)), ((3, 32, 128), (96, 128)), ((8,), (1, 8)), ((), (1, 1)), ((5, 7), (5, 7))],
)
def test_a_tensor_is_cut_where_it_is_most_square(shape, expected):
    assert matrix_shape(torch.Size(shape)) == expected


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def take_steps(module: nn.Module, optimizer: Muon, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        loss = module(torch.randint(10, (6,))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_embeddings_and_thin_matrices_are_left_to_adam():
    groups = Muon(network(), 1e-3).param_groups
    shapes = {group["matrices"]: [tuple(p.shape) for p in group["params"]] for group in groups[:2]}
    assert shapes == {True: [(16, 8)], False: [(10, 8), (4, 16)]}


def test_a_saved_state_goes_on_bit_for_bit():
    whole = network()
    optimizer = Muon(whole, 1e-2, weight_decay=0.1)
    take_steps(whole, optimizer, range(3))
    part = copy.deepcopy(whole)
    other = Muon(part, 1e-2, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(whole, optimizer, range(3, 6))
    take_steps(part, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_it_lowers_a_loss():
    module = network()
    before = module(torch.arange(10)).square().mean()
    take_steps(module, Muon(module, 2e-2), range(40))
    assert module(torch.arange(10)).square().mean() < 0.2 * before
