"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), with Adam for the rest.

The update of a matrix is its momentum with all singular values made equal, by a Newton-Schulz iteration.  On
the likelihood models of this package it needs several times fewer images than Adam (docs/experiments/pixels.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .sharding import spread_like, whole

MIN_SIDE = 8
"""Matrices with fewer rows or columns are left to Adam."""

UPDATE_RMS = 0.5
"""Root mean square of a matrix's update, as a share of the learning rate, so that one rate serves both kinds."""


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and convolutions, Adam for vectors, embeddings and thin matrices.

    A tensor of more than two dimensions is the matrix obtained by cutting its dimensions in two where that is
    the most square: (out, in * height * width) for a convolution.  A matrix that is spread over processes is put
    together by each of them for its update.

    Args:
        module: whose parameters are trained.
        lr: learning rate of both kinds.
        weight_decay: decoupled, of matrices and filters only.
        momentum: Nesterov momentum of the matrices.
        betas: of Adam.
        dtype: in which updates of matrices are made orthogonal.  bfloat16 is enough, and faster where the device has
            instructions for it.
    """

    def __init__(
        self, module: nn.Module, lr: float, weight_decay: float = 0.0, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95), dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        matrices, others = [], []
        for parameter in module.parameters():
            if parameter.requires_grad:
                hidden = id(parameter) not in embeddings and min(matrix_shape(parameter.shape)) >= MIN_SIDE
                (matrices if hidden else others).append(parameter)
        groups = [
            {"params": matrices, "matrices": True, "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim >= 2], "matrices": False, "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim < 2], "matrices": False, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.dtype = dtype
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients; parameters without one stay."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            (self._step_matrices if group["matrices"] else self._step_adam)(group, parameters)

    def _step_matrices(self, group: dict, parameters: Iterable[Tensor]) -> None:
        alike = defaultdict(list)
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter.grad)
            momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(momentum, group["momentum"])
            alike[matrix_shape(parameter.shape)].append((parameter, update))
        for shape, pairs in alike.items():
            updates = orthogonalize(torch.stack([whole(update).reshape(shape) for _, update in pairs]), self.dtype)
            scale = group["lr"] * UPDATE_RMS * math.sqrt(max(shape))
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.sub_(spread_like(update.reshape(parameter.shape), parameter), alpha=scale)

    def _step_adam(self, group: dict, parameters: Iterable[Tensor]) -> None:
        first_decay, second_decay = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            step = state["step"].item()
            state["first"].lerp_(parameter.grad, 1 - first_decay)
            state["second"].lerp_(parameter.grad.square(), 1 - second_decay)
            scale = (state["second"] / (1 - second_decay**step)).sqrt_().add_(1e-8)
            parameter.addcdiv_(state["first"], scale, value=-group["lr"] / (1 - first_decay**step))


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of the most square cut of a shape's dimensions in two; (1, n) for a vector."""
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(len(shape))]
    return max(cuts, key=min, default=(1, 1))


def orthogonalize(matrices: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """Matrices (N, rows, columns) with their singular values brought near 1, computed in a type."""
    x = matrices.to(dtype)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic a x + b x^3 + c x^5 of the reference
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = a * x + torch.bmm(b * gram + torch.bmm(c * gram, gram), x)
    return (x if wide else x.mT).to(matrices.dtype)
