"""Chains of products: compiled code, its twin in plain PyTorch, and the formula agree."""

import pytest
import torch
import torch.nn.functional as F

from chainrule.kernels.chain import Chain, Link, Part, gate
from chainrule.kernels.scan import lstm_cell


def links():
    """Two products over a work buffer and a row of pixels with 5 features each, of which two are read."""
    first, last = torch.randn(10, 40), torch.randn(20, 33)
    work, row = Part(0, 0), Part(1, 5, 5)
    return [
        Link(x=row, matrix=first, bias=torch.randn(40), out=work, before="relu", after="gate"),
        Link(x=work, matrix=last, add=Part(0, 20), out=Part(0, 20)),
        Link(x=Part(0, 20), matrix=torch.randn(33, 5), bias=torch.randn(5), add=row, out=Part(1, 10, 5), after="relu"),
    ]


def formula(chain: list[Link], column: int, work, row):
    """The same with the functions of PyTorch."""
    first, second, third = chain
    start = 5 + 5 * column
    work[:, :20] = gate(F.relu(row[:, start : start + 10]) @ first.matrix + first.bias)
    work[:, 20:] += work[:, :20] @ second.matrix
    y = work[:, 20:] @ third.matrix + third.bias + row[:, start : start + 5]
    row[:, start + 5 : start + 10] = F.relu(y)


@pytest.mark.parametrize("backend", ["native", "plain"])
@pytest.mark.parametrize("batch", [1, 3, 6])
@torch.no_grad()
def test_a_chain_is_its_formula(backend, batch):
    chain = links()
    given = torch.randn(batch, 53), torch.randn(batch, 40)
    expected, found = ([one.clone() for one in given] for _ in range(2))
    run = Chain(chain, backend)
    for column in range(3):
        formula(chain, column, *expected)
        run(column, *found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compiled_code_rounds_an_image_alike_alone_and_in_a_batch():
    run, given = Chain(links(), "native"), (torch.randn(9, 53), torch.randn(9, 40))
    together = [one.clone() for one in given]
    run(1, *together)
    for i in range(9):
        alone = [one[i : i + 1].clone() for one in given]
        run(1, *alone)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one[0], other[i])


@pytest.mark.parametrize("backend", ["native", "plain"])
@torch.no_grad()
def test_lstm_gates_become_states_and_cells(backend):
    matrix, buffer = torch.randn(3, 20), torch.randn(4, 18)
    h, c = lstm_cell(buffer[:, :3] @ matrix, buffer[:, 3:8])
    link = Link(
        x=Part(0, 0), matrix=matrix, out=Part(0, 8), after="lstm", cells=Part(0, 3), new_cells=Part(0, 13)
    )  # fmt: skip
    Chain([link], backend)(0, buffer)
    torch.testing.assert_close(buffer[:, 8:], torch.cat([h, c], 1))


@torch.no_grad()
def test_a_chain_in_float64_is_plain():
    chain = [Link(x=Part(0, 0), matrix=torch.eye(4, dtype=torch.float64), out=Part(0, 4))]
    buffer = torch.arange(8, dtype=torch.float64)[None]
    Chain(chain)(0, buffer)
    assert buffer.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
