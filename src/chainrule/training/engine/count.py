"""A step of training without memory or arithmetic: what it would allocate and compute.

The task is copied with tensors that have shapes but no content (`FakeTensorMode` of PyTorch), and the engine takes two
steps with the copy, the second with the optimizer's state in place.  A model of any size is counted in seconds.
Where the course of a step depends on contents, a condition is false, a mask selects nothing, and a number is 1.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from .config import TrainingConfig
from .engine import _Run
from .order import batch_parts
from .task import Task

aten = torch.ops.aten
FLOPS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Operations of a function of PyTorch, from its arguments."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step costs one process.

    parameters:  learned numbers
    weights:     bytes of parameters and buffers, of all that training holds: also of losses, and of a tokenizer that is
                 called at each step
    gradients:   bytes
    optimizer:   bytes of its state
    average:     bytes of the averaged weights
    activations: bytes of all else at the peak: activations kept for the backward pass, and temporary tensors
    flops:       floating-point operations of a step, a multiplication and an addition being two
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: int

    @property
    def states(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return self.states + self.activations


class _OneProcess:
    """What the engine needs of a `Fabric`, for one process on the CPU."""

    device = torch.device("cpu")
    world_size, global_rank, is_global_zero, strategy = 1, 0, True, None

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> nullcontext:
        return nullcontext()


class _WithoutContent(TorchFunctionMode):
    """Inside, `copy.deepcopy` gives tensors of the same shapes without content."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in (Tensor.__deepcopy__, nn.Parameter.__deepcopy__):
            return function(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self.empty(tensor)
        return memo[id(tensor)]

    def empty(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction(), self.mode:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


class _Meter(TorchDispatchMode):
    """Counts the bytes that are in use, and operations; answers what only contents could."""

    def __init__(self) -> None:
        super().__init__()
        self.used = self.peak = self.flops = 0
        self._seen: set[int] = set()

    def add(self, tensor: Tensor) -> Tensor:
        """Counts the memory of a tensor, until it is freed, if it is not counted yet."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.used += size
            self.peak = max(self.peak, self.used)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.used -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten._local_scalar_dense.default:
            return args[0].dtype != torch.bool and 1
        if function is aten.nonzero.default:
            return torch.empty(0, args[0].ndim, dtype=torch.int64)
        if function is aten.bincount.default:
            return torch.empty(kwargs.get("minlength", 1), dtype=torch.int64)
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], [part for index in args[1] for part in _indices(index)], *args[2:])
        if function is aten.mkldnn_convolution.default:  # which reads contents
            x, weight, bias, padding, stride, dilation, groups = args
            function, args = aten.convolution.default, (x, weight, bias, stride, padding, dilation, False, [0], groups)
        found = function(*args, **kwargs)
        if (count := FLOPS.get(function.overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=found)
        tree_map_only(Tensor, self.add, found)
        return found


def _indices(index: Tensor | None) -> list[Tensor | None]:
    """An index as it is, or one for each dimension of a mask, which selects nothing."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.empty(0, dtype=torch.int64) for _ in range(index.ndim)]


def count_step(task: Task, config: TrainingConfig) -> Cost:
    """The cost of a step of a task with the batch of a config, for one process; the task stays as it is.

    The weights of the task may be on the device "meta", where they take no memory.
    """
    size = config.batch_size
    parts, indices = batch_parts(size, 1, 0, config.accumulate), torch.arange(size) % task.num_examples
    batches = [task.batch(indices, part, torch.Generator().manual_seed(0)) for part in parts]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    modules = [value for holder in (task, getattr(task, "losses", None)) for value in _modules(holder)]
    with _WithoutContent(mode) as without:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        unasked = torch.__version__ < "2.5"  # it does not ask how parameters are copied
        memo = {id(parameter): without.empty(parameter) for parameter in parameters if unasked}
        task, batches = copy.deepcopy((task, batches), memo)
    with torch.random.fork_rng(devices=[]), _plain_kernels(), mode:
        config = replace(config, compile=False, channels_last=False)  # the order of numbers changes nothing here
        run = _Run(task, config, Path(), 1, _OneProcess(), quiet=True)
        run.step = max(0, config.steps - 2)  # when adversaries have begun
        modules = [value for holder in (task, getattr(task, "losses", None)) for value in _modules(holder)]
        weights = {id(tensor): tensor for module in modules for tensor in _tensors(module)}.values()
        average = () if run.average.module is run.learner.module else _tensors(run.average.module)
        with _Meter() as meter:
            for tensor in (*weights, *average):
                meter.add(tensor)
            run._take_step(batches)
            run._take_step(batches)
    learned = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    gradients = {id(parameter): _bytes(parameter) for parameter in learned if parameter.grad is not None}
    learners = [run.learner, run.adversary.learner] if run.adversary else [run.learner]
    states = [value for one in learners for state in one.optimizer.state.values() for value in state.values()]
    fixed = {
        "weights": sum(map(_bytes, weights)),
        "gradients": sum(gradients.values()),
        "optimizer": sum(_bytes(value) for value in states if isinstance(value, Tensor)),
        "average": sum(map(_bytes, average)),
    }
    return Cost(
        parameters=sum(p.numel() for p in run.learner.module.parameters()),
        **fixed, activations=max(0, meter.peak - sum(fixed.values())), flops=meter.flops // 2,
    )  # fmt: skip


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Inside, PyTorch computes what compiled code would, since that reads contents."""
    before = os.environ.get("CHAINRULE_NATIVE")
    os.environ["CHAINRULE_NATIVE"] = "off"
    try:
        yield
    finally:
        del os.environ["CHAINRULE_NATIVE"]
        if before is not None:
            os.environ["CHAINRULE_NATIVE"] = before


def _modules(holder: Any) -> list[nn.Module]:
    """The modules that are attributes of something."""
    return [] if holder is None else [value for value in vars(holder).values() if isinstance(value, nn.Module)]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
