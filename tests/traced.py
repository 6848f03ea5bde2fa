"""Codes that gradients pass through, in any model: integers, each with a number (0) added to what is made of it.

A model only moves its codes about, looks them up (embedding, one-hot) or turns them into numbers.  Each of these is
done to traced codes as to any others.  The number of a code moves along with it, and is added to the vector or the
level that the code becomes.  So the gradient with respect to these numbers says which codes an output depends on.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

MOVES = {
    "__getitem__", "cat", "chunk", "contiguous", "expand", "flatten", "permute", "repeat_interleave", "reshape",
    "split", "stack", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
CONSTANTS = {"full_like", "zeros_like", "ones_like"}


class TracedCodes(Tensor):
    """int64 codes; `trace` is float64 of their shape."""

    trace: Tensor

    @staticmethod
    def of(codes: Tensor, trace: Tensor) -> "TracedCodes":
        traced = codes.as_subclass(TracedCodes)
        traced.trace = trace
        return traced

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*tree_map(codes_of, args), **tree_map(codes_of, kwargs))
            if not any(isinstance(one, Tensor) for one in tree_flatten(out)[0]) or name in CONSTANTS:
                return out
            if name in MOVES:
                traces = func(*tree_map(trace_of if name in ("cat", "stack") else trace_or_itself, args), **kwargs)
                return tree_map(TracedCodes.of, out, traces)
            traced = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, TracedCodes)]
            if name == "one_hot":
                out = out.double()
            if out.dtype == torch.bool:
                return out
            total = sum(added(one.trace, out) for one in traced)
            return out + total if out.is_floating_point() else TracedCodes.of(out, total.expand(out.shape))


def codes_of(value):
    return value.as_subclass(Tensor) if isinstance(value, TracedCodes) else value


def trace_or_itself(value):
    return value.trace if isinstance(value, TracedCodes) else value


def trace_of(value):
    """As `trace_or_itself`; of other codes, none."""
    if isinstance(value, Tensor) and not isinstance(value, TracedCodes):
        return torch.zeros(value.shape, dtype=torch.float64)
    return trace_or_itself(value)


def added(trace: Tensor, out: Tensor) -> Tensor:
    """What a trace adds to an output of its shape; to vectors, in a direction that no norm removes."""
    if out.ndim == trace.ndim:
        return trace
    generator = torch.Generator().manual_seed(out.shape[-1])
    return trace.unsqueeze(-1) * torch.randn(out.shape[-1], generator=generator, dtype=torch.float64)
