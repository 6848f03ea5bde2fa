"""3x3 convolutions for inference on CPUs, with what surrounds them in residual networks, by Winograd's algorithm.

    y = conv(act(x)) + bias + residual        act(x) = swish(scale x + shift), or x

Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308) has 16 products per 2x2 results and pair of channels
instead of 36, with d a 4x4 piece of the input, g the kernel, and * element by element:

    A^T [(G g G^T) * (B^T d B)] A

If the input is doubled by repeating pixels before the convolution, rows 1 and 2 of d are equal, and so are its columns:
one component in each direction is zero, 9 products are left of 36, and the doubled map is never made.  In bfloat16 the
two factors of * are rounded, and else only maps that are told to be narrow: sums and transforms stay float32.

`winograd.cpp` does this where it can be compiled (see `native`) and the CPU has the instructions (AVX-512 with
bfloat16, and no AMX).  Elsewhere it is an ordinary convolution, in channels-last bfloat16, which rounds as much.

Shape letters: B batch, H height, W width, C channels; maps are (B, H, W, C).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import Backend, Kernel, integers, pointers, share

LANES, PANEL = 16, 64  # of winograd.cpp
TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""G."""


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
        flat = values.flatten(1, 2)
        return Map(values, torch.stack([flat.sum(1), flat.square().sum(1)], 1).double())


def normalization(x: Map, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 (B, C) each, by which `norm` maps x."""
    count = x.values[0].numel() // norm.num_groups
    mean, square = (x.sums.unflatten(2, (norm.num_groups, -1)).sum(3) / count).unbind(1)
    deviation = ((square - mean.square()).clamp_min(0) + norm.eps).sqrt()
    repeats = norm.num_channels // norm.num_groups
    scale = norm.weight / deviation.repeat_interleave(repeats, 1)
    return scale.float(), (norm.bias - mean.repeat_interleave(repeats, 1) * scale).float()


class Convolution3x3:
    """A 3x3 convolution of stride 1 with padding 1, packed; without gradients.

    Args:
        conv: the convolution; its weights are copied.
        precision: float32 or bfloat16, of the products.
        doubled: repeat pixels 2x2 before it.
        backend: "native", "plain" or None: compiled code where it can be had and the CPU suits it.

    Raises:
        RuntimeError: "native", and there is no compiled code.
        ValueError: "native", and the device does not suit it.
    """

    def __init__(self, conv: nn.Conv2d, precision: str, doubled: bool = False, backend: Backend | None = None) -> None:
        assert conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1 and conv.bias is not None
        self.precision, self.doubled, self.num_outputs = precision, doubled, conv.out_channels
        weight = conv.weight.detach()
        self.bias = conv.bias.detach().float()
        library = native_library(backend) if weight.device.type == "cpu" else None
        if backend == "native" and library is None:
            raise ValueError("compiled convolutions need a CPU with AVX-512 and bfloat16, and without AMX")
        self.native = library is not None
        dtype = getattr(torch, precision)
        if self.native:
            self.weight = _pack(weight, doubled, dtype)
        else:
            self.weight = weight.to(dtype, memory_format=torch.channels_last)

    def __call__(
        self, x: Tensor, act: tuple[Tensor, Tensor] | None = None, residual: Tensor | None = None,
        out: Tensor | None = None, narrow: bool = False,
    ) -> Map:  # fmt: skip
        """Convolves.

        Args:
            x: float32 or bfloat16 (B, H, W, C), contiguous.
            act: scale and shift, each (B, C); None: the input is convolved as it is.
            residual: float32, added to the result, in its shape, contiguous.
            out: where the result is put, of its type; may be `residual`, and not x.
            narrow: whether the result is bfloat16.
        """
        if not self.native:
            plain = Map.of(self._plain(x.float(), act, residual))
            return Map(plain.values.bfloat16(), plain.sums) if narrow else plain
        dtype = torch.bfloat16 if narrow else torch.float32
        assert x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous(), (x.dtype, x.stride())
        assert out is None or out.dtype == dtype, out.dtype
        assert residual is None or residual.is_contiguous()
        batch, height, width, inputs = x.shape
        factor = 2 if self.doubled else 1
        if out is None:
            out = x.new_empty(batch, height * factor, width * factor, self.num_outputs, dtype=dtype)
        scale, shift = act or (None, None)
        flags = (self.doubled, act is not None, x.dtype == torch.bfloat16, narrow)
        call = _Call(
            _Shape(batch, height, width, inputs, self.num_outputs, *flags),
            *(_pointer(t) for t in (x, scale, shift, self.weight, self.bias, residual, out)),
        )
        library = native_library("native")
        num_blocks = library.num_blocks(ctypes.byref(call))
        sums = x.new_empty(batch, num_blocks // batch, 2, self.num_outputs, dtype=torch.float32)
        call.sums = sums.data_ptr()
        function = getattr(library, f"convolve_{self.precision}")
        num_threads = torch.get_num_threads()
        num_parts = min(num_blocks, 4 * num_threads if num_threads > 1 else 1)
        cuts = [num_blocks * part // num_parts for part in range(num_parts + 1)]

        def work(part: int) -> None:
            function(ctypes.byref(call), ctypes.c_int64(cuts[part]), ctypes.c_int64(cuts[part + 1]))

        share(work, num_parts, num_threads)
        return Map(out, sums.double().sum(1))

    def _plain(self, x: Tensor, act: tuple[Tensor, Tensor] | None, residual: Tensor | None) -> Tensor:
        if act is not None:
            x = F.silu(torch.addcmul(act[1][:, None, None], x, act[0][:, None, None]))
        x = x.permute(0, 3, 1, 2).to(self.weight.dtype)
        if self.doubled:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = F.conv2d(x, self.weight, padding=1).permute(0, 2, 3, 1) + self.bias
        return y if residual is None else y + residual


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pack(weight: Tensor, doubled: bool, dtype: torch.dtype) -> Tensor:
    """Kernels (K, C, 3, 3), transformed and in the order in which winograd.cpp reads them."""
    transform = torch.tensor(TRANSFORM, dtype=torch.float64)
    if doubled:
        transform = transform[[0, 1, 3]]
    components = torch.einsum("ia,kcab,jb->ijkc", transform, weight.double(), transform).flatten(0, 1)
    components = F.pad(components, (0, -components.shape[2] % LANES, 0, -components.shape[1] % LANES)).to(dtype)
    together = 2 if dtype == torch.bfloat16 else 1  # inputs that are multiplied at once
    panels = (panel.unflatten(2, (-1, together)).transpose(1, 2) for panel in components.split(PANEL, dim=1))
    return torch.cat([panel.flatten() for panel in panels])


class _Shape(ctypes.Structure):
    _fields_ = integers(
        "batch", "height", "width", "inputs", "outputs", "doubled", "activated", "narrow_inputs", "narrow_outputs"
    )


class _Call(ctypes.Structure):
    _fields_ = [("shape", _Shape), *pointers("x", "scale", "shift", "weight", "bias", "residual", "y", "sums")]


KERNEL = Kernel("winograd", 1, (_Shape, _Call))


def native_library(backend: Backend | None = None) -> ctypes.CDLL | None:
    """The compiled `winograd.cpp`, or None, see `Kernel.load`; also None where the CPU is not one it is for."""
    library = KERNEL.load(backend)
    if library is None or not library.supported():
        return None
    library.num_blocks.restype = ctypes.c_int64
    return library
