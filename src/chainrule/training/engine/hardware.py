"""Where to train: devices, processes, precision and compilation."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...kernels.native import has_bfloat16
from .config import TrainingConfig
from .sharding import shard

COMPILE_FROM = 500  # steps that repay compilation


@dataclass(frozen=True)
class Hardware:
    """Where to train.

    accelerator: "auto", "cpu", "cuda" or "mps"
    devices:     per node; "auto" is what torchrun or SLURM started, and one device without them
    num_nodes:   "auto" likewise
    strategy:    "auto" (one process, or DDP), "ddp", or "fsdp" (the weights are spread over the processes)
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int | str = "auto"
    strategy: str = "auto"

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "cuda", "mps"):
            raise ValueError(f"accelerator must be auto, cpu, cuda or mps, got {self.accelerator!r}")
        if self.strategy not in ("auto", "ddp", "fsdp"):
            raise ValueError(f"strategy must be auto, ddp or fsdp, got {self.strategy!r}")
        if self.strategy == "fsdp" and torch.__version__ < "2.7":
            raise ValueError(f"the strategy fsdp needs PyTorch 2.7, and this is {torch.__version__}; use ddp")
        there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if not there.get(self.accelerator, lambda: True)():
            raise ValueError(f"the accelerator {self.accelerator} cannot be used: PyTorch finds none here")

    def fabric(self) -> Any:
        """The `lightning_fabric.Fabric` of this hardware."""
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import ModelParallelStrategy

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of each process that it starts
        devices, num_nodes = _launched_processes()
        devices = devices if self.devices == "auto" else self.devices
        num_nodes = num_nodes if self.num_nodes == "auto" else self.num_nodes
        strategy: Any = self.strategy
        if strategy == "fsdp":
            strategy = ModelParallelStrategy(shard, data_parallel_size=devices * num_nodes, tensor_parallel_size=1)
        return Fabric(accelerator=self.accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A function that opens the context of a precision."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    enabled = precision in kinds
    return lambda: torch.autocast(device.type, dtype=kinds.get(precision, torch.bfloat16), enabled=enabled)


def loss_scaling(precision: str, device: torch.device) -> Any:
    """Fabric's `Precision` that computes gradients and takes steps: in float16 the loss is scaled, else it is not."""
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    return MixedPrecision("16-mixed", device.type) if precision == "float16" else Precision()


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A sentence where a recipe asks for a precision that the CPU has no instructions for: slower than float32."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    has_float16 = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    supported = {"bfloat16": lambda: has_bfloat16(device), "float16": has_float16}
    if precision not in supported or supported[precision]():
        return None
    return (
        f"this CPU has no {precision} instructions: training in float32 is several times faster here; "
        "leave training.precision out"
    )


def spreads_weights(fabric: Any) -> bool:
    """Whether the processes of a Fabric keep parts of the weights: the strategy fsdp."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def check_fsdp(config: TrainingConfig, has_adversary: bool) -> None:
    """Raises ValueError where a run cannot spread its weights."""
    if has_adversary:
        raise ValueError("the strategy fsdp trains no model against an adversary; use ddp")
    if config.precision == "float16":
        raise ValueError("the strategy fsdp scales no loss; set training.precision to bfloat16 or float32")


def wants_compile(module: nn.Module, config: TrainingConfig, fabric: Any) -> bool:
    """Whether to compile the model; its class may opt out with `compile_training = False`."""
    if config.compile != "auto":
        return config.compile
    if spreads_weights(fabric):
        return False
    compilers = [name for name in ("g++", "clang++", "c++") if shutil.which(name)]
    return bool(compilers) and config.steps > COMPILE_FROM and getattr(module, "compile_training", True)


def placed(module: nn.Module, config: TrainingConfig, fabric: Any) -> nn.Module:
    """A module on the device, its filters stored as the config says, but for spread weights, which cannot be.

    What the module says that no loss reaches is frozen: several processes would wait for its gradient.
    """
    for part in getattr(module, "untrained", ()):
        part.requires_grad_(False)
    module, last = module.to(fabric.device), config.channels_last and not spreads_weights(fabric)
    return module.to(memory_format=torch.channels_last) if last else module


def recompute_layers(module: nn.Module) -> None:
    """Makes the layers of a module, marked by `is_layer`, compute their activations again in the backward pass.

    Raises:
        ValueError: no layer is marked.
    """
    layers = [layer for layer in module.modules() if getattr(layer, "is_layer", False)]
    if not layers:
        raise ValueError("checkpointing would be ignored: the model has no layers that can be recomputed; leave it out")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """`torch.compile` of a module, but for the methods that its parts name in `uncompiled`.

    On a CPU torch's own random numbers are several times as fast as compiled ones.
    """
    for part in module.modules():
        for name in getattr(part, "uncompiled", ()):
            setattr(part, name, torch.compiler.disable(getattr(part, name)))
    return torch.compile(module, dynamic=False, options={"fallback_random": True} if device.type == "cpu" else None)


def _launched_processes() -> tuple[int, int]:
    """Processes per node and nodes, as torchrun or SLURM started them; (1, 1) without them."""
    environment = os.environ
    if "LOCAL_WORLD_SIZE" in environment and "WORLD_SIZE" in environment:
        per_node = int(environment["LOCAL_WORLD_SIZE"])
        return per_node, int(environment["WORLD_SIZE"]) // per_node
    if "SLURM_STEP_ID" in environment and "SLURM_NTASKS" in environment:
        nodes = int(environment.get("SLURM_NNODES", 1))
        return int(environment["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1
