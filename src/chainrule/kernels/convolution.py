"""Convolutions for inference on CPUs, with what surrounds them in residual networks, by one of three ways.

    y = conv(act(x)) + bias + residual        act(x) = swish(scale x + shift), or x

    tiles      `convolution_tiles.cpp`: products of 16 positions and 32 channels by AMX, for each place of the kernel
    winograd   `winograd.cpp`: Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308), 3x3 kernels only, with
               16 products per 2x2 results and pair of channels instead of 36; d a 4x4 piece of the input, g the kernel,
               and * element by element:    A^T [(G g G^T) * (B^T d B)] A
    library    PyTorch's convolution, channels last, in float32 where the processor has no instructions for bfloat16

A convolution takes the first of them that the CPU has (AMX; AVX-512 or AVX2), that can be compiled (see `native`) and
that knows its kernel.  In bfloat16 are weights, the maps that are told to be narrow and, where the processor multiplies
bfloat16, the inputs of products; sums and transforms stay float32.

Where the input is doubled by repeating pixels before a 3x3 convolution, the doubled map is never made.  Each of the
four phases of the output is a 2x2 convolution of its own, whose weights are sums of the kernel's: 16 products per 2x2
results instead of 36, and 9 by Winograd, as rows 1 and 2 of d are equal and so are its columns.

Shape letters: B batch, H height, W width, C channels, K outputs; P phases along a side; maps are (B, H, W, C).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import Kernel, has_bfloat16, integers, pointers, share

Algorithm = Literal["tiles", "winograd", "library"]
TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""G."""
DOUBLED = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
"""Weights of the two phases along a side, in terms of a kernel of 3: (P, side, 3)."""


@dataclass(frozen=True)
class Map:
    """A map and what normalisation needs of it.

    values: float32 or bfloat16 (B, H, W, C)
    sums:   float64 (B, 2, C), over all positions, of the values and of their squares, before they are rounded
    """

    values: Tensor
    sums: Tensor

    @staticmethod
    def of(values: Tensor) -> Map:
        """Of values whose sums are not known."""
        flat = values.flatten(1, 2).float()
        return Map(values, torch.stack([flat.sum(1), flat.square().sum(1)], 1).double())


def normalization(x: Map, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 (B, C) each, by which `norm` maps x."""
    count = x.values[0].numel() // norm.num_groups
    mean, square = (x.sums.unflatten(2, (norm.num_groups, -1)).sum(3) / count).unbind(1)
    deviation = ((square - mean.square()).clamp_min(0) + norm.eps).sqrt()
    repeats = norm.num_channels // norm.num_groups
    scale = norm.weight / deviation.repeat_interleave(repeats, 1)
    return scale.float(), (norm.bias - mean.repeat_interleave(repeats, 1) * scale).float()


class Convolution:
    """A convolution, packed; without gradients.

    Args:
        conv: with a square kernel and a bias, without groups or dilation; its weights are copied.  Of stride 1 it keeps
            the size; of stride 2 and without padding it halves an even size, with zeros on the right and below.
        doubled: repeat pixels 2x2 before it; the kernel is 3x3, of stride 1.
        algorithm: "tiles", "winograd", "library", or None: the first that can be had.

    Raises:
        ValueError: an algorithm that is unknown or cannot be had.
        RuntimeError: compiled code is required and cannot be had, see `native`.
    """

    def __init__(self, conv: nn.Conv2d, doubled: bool = False, algorithm: Algorithm | None = None) -> None:
        side, self.step, self.before = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        assert conv.kernel_size == (side, side) and conv.groups == 1 and conv.bias is not None, conv
        assert self.before == (side // 2 if self.step == 1 else 0) and self.step <= 2 and conv.dilation == (1, 1), conv
        assert not doubled or (side, self.step) == (3, 1), conv
        weight = conv.weight.detach()
        self.bias = conv.bias.detach().float().clone()
        self.doubled, self.num_outputs = doubled, conv.out_channels
        phases = torch.tensor(DOUBLED, dtype=torch.float64) if doubled else torch.eye(side, dtype=torch.float64)[None]
        self.factor, self.side = phases.shape[:2]
        self.algorithm = _choose(algorithm, weight, (side, self.step) == (3, 1))
        if self.algorithm == "tiles":
            folded = torch.einsum("par,kcrs,qbs->pqkcab", phases, weight.double(), phases)
            self.weight = _pack_tiles(folded.flatten(0, 1).bfloat16())
        elif self.algorithm == "winograd":
            self.weight = _pack_winograd(weight, doubled)
        else:
            dtype = torch.bfloat16 if has_bfloat16(weight.device) else torch.float32
            self.weight = weight.to(dtype, memory_format=torch.channels_last, copy=True)

    def __call__(
        self, x: Tensor, act: tuple[Tensor, Tensor] | None = None, residual: Tensor | None = None,
        out: Tensor | None = None, narrow: bool = False,
    ) -> Map:  # fmt: skip
        """Convolves.

        Args:
            x: float32 or bfloat16 (B, H, W, C), contiguous.
            act: scale and shift of the swish, each (B, C); None: there is no swish.
            residual: added to the result, in its shape and type, contiguous.
            out: where the result is put, of its type; may be `residual`, and not x.
            narrow: whether the result is bfloat16.
        """
        dtype = torch.bfloat16 if narrow else torch.float32
        if self.algorithm == "library":
            plain = Map.of(self._plain(x.float(), act, residual))
            return Map(plain.values.to(dtype), plain.sums)
        assert x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous(), (x.dtype, x.stride())
        assert out is None or out.dtype == dtype, out.dtype
        assert residual is None or (residual.is_contiguous() and residual.dtype == dtype)
        batch, height, width, inputs = x.shape
        rows, columns = height // self.step, width // self.step
        if out is None:
            out = x.new_empty(batch, rows * self.factor, columns * self.factor, self.num_outputs, dtype=dtype)
        scale, shift = act or (None, None)
        call = _Call(
            _Shape(
                batch, height, width, inputs, rows, columns, self.num_outputs, self.side, self.step, self.factor,
                self.before, act is not None, x.dtype == torch.bfloat16, narrow,
            ), *(_pointer(t) for t in (x, scale, shift, self.weight, self.bias, residual, out)),
        )  # fmt: skip
        library = KERNELS[self.algorithm].load("native")
        library.num_blocks.restype = ctypes.c_int64
        num_blocks = library.num_blocks(ctypes.byref(call))
        sums = x.new_empty(batch, num_blocks // batch, 2, self.num_outputs, dtype=torch.float32)
        call.sums = sums.data_ptr()
        num_threads = torch.get_num_threads()
        num_parts = min(num_blocks, 4 * num_threads if num_threads > 1 else 1)
        cuts = [num_blocks * part // num_parts for part in range(num_parts + 1)]

        def work(part: int) -> None:
            library.convolve(ctypes.byref(call), ctypes.c_int64(cuts[part]), ctypes.c_int64(cuts[part + 1]))

        share(work, num_parts, num_threads)
        return Map(out, sums.double().sum(1))

    def _plain(self, x: Tensor, act: tuple[Tensor, Tensor] | None, residual: Tensor | None) -> Tensor:
        if act is not None:
            x = F.silu(torch.addcmul(act[1][:, None, None], x, act[0][:, None, None]))
        x = x.permute(0, 3, 1, 2).to(self.weight.dtype)
        if self.doubled:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.step == 2:
            x = F.pad(x, (0, 1, 0, 1))
        y = F.conv2d(x, self.weight, stride=self.step, padding=self.before).permute(0, 2, 3, 1) + self.bias
        return y if residual is None else y + residual


def algorithms() -> list[Algorithm]:
    """What this machine has, the fastest first."""
    names = [name for name in KERNELS if name != "tiles" or os.environ.get("CHAINRULE_NATIVE") != "vectors"]
    found = {name: KERNELS[name].load() for name in names}
    return [*(name for name, library in found.items() if library is not None and library.supported()), "library"]


def check_algorithm(algorithm: str) -> Algorithm:
    """Returns it; raises ValueError unless this machine has it."""
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"algorithm must be one of {', '.join(get_args(Algorithm))}, or None, got {algorithm!r}")
    if algorithm not in algorithms():
        raise ValueError(f"convolutions by {algorithm} cannot be had here; there are: {', '.join(algorithms())}")
    return algorithm


def _choose(algorithm: Algorithm | None, weight: Tensor, suits_winograd: bool) -> Algorithm:
    best = algorithms()[0] if algorithm is None else check_algorithm(algorithm)
    return "library" if weight.device.type != "cpu" or (best == "winograd" and not suits_winograd) else best


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pack_tiles(weight: Tensor) -> Tensor:
    """Weights (P P, K, C, side, side) in the order in which convolution_tiles.cpp reads them.

    For every 32 outputs, phase, place of the kernel and 32 channels: one or two tiles of 16 pairs of channels and 16
    outputs.
    """
    weight = F.pad(weight, (0, 0, 0, 0, 0, -weight.shape[2] % 32, 0, -weight.shape[1] % 16))
    panels = []
    for panel in weight.split(32, dim=1):
        tiles = panel.unflatten(2, (-1, 16, 2)).unflatten(1, (-1, 16))  # (P P, tiles, 16, C / 32, 16, 2, side, side)
        panels.append(tiles.permute(0, 6, 7, 3, 1, 4, 2, 5).flatten())
    return torch.cat(panels)


def _pack_winograd(weight: Tensor, doubled: bool) -> Tensor:
    """Kernels (K, C, 3, 3), transformed and in the order in which winograd.cpp reads them: for every 64 outputs and
    component, pairs of inputs together."""
    transform = torch.tensor(TRANSFORM, dtype=torch.float64)
    if doubled:
        transform = transform[[0, 1, 3]]
    components = torch.einsum("ia,kcab,jb->ijkc", transform, weight.double(), transform).flatten(0, 1)
    components = F.pad(components, (0, -components.shape[2] % 16, 0, -components.shape[1] % 16)).bfloat16()
    panels = (panel.unflatten(2, (-1, 2)).transpose(1, 2) for panel in components.split(64, dim=1))
    return torch.cat([panel.flatten() for panel in panels])


class _Shape(ctypes.Structure):
    _fields_ = integers(
        "batch", "height", "width", "inputs", "rows", "columns", "outputs", "side", "step", "factor", "before",
        "activated", "narrow_inputs", "narrow_outputs",
    )  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [("shape", _Shape), *pointers("x", "scale", "shift", "weight", "bias", "residual", "y", "sums")]


KERNELS = {
    "tiles": Kernel("convolution_tiles", 1, (_Shape, _Call)),
    "winograd": Kernel("winograd", 1, (_Shape, _Call)),
}
"""Compiled code, the fastest first."""
