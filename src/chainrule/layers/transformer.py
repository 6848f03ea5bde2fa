"""Causal transformer blocks as GPT-2 has them, and their form for one token at a time.

    x <- x + W_o attention(LN x)        x <- x + W_2 gelu(W_1 LN x)        (pre-norm; biases; exact GELU)

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; initialisation: normal, 0.02.

A `Block` reads whole sequences (training, scoring).  A `Decoder` holds the weights of many blocks as one step reads
them, in an explicit `precision`, and remembers keys and values in a `KVCache` of fixed size.  One token is bound by
the bytes of the weights, so narrower weights are faster:

    float32   the weights as they are (a float64 model stays float64)
    bfloat16  weights, and inputs of products, of 8 significant bits
    int8      weights of 8 bits with one scale per output; the embedding, norms and attention stay as they are

Shape letters: B batch, T tokens, L blocks, E width, H heads, F features of a head, K outputs.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Codes, Context, Prior
from ..kernels.native import compiled

Precision = Literal["float32", "bfloat16", "int8"]
STD = 0.02
HUGE_PAGE = 1 << 21  # bytes
NATIVE_WIDTH = 64
"""What the widths that compiled code reads are multiples of."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """`F.scaled_dot_product_attention`, which on a CPU is differentiated in float32: in bfloat16 that takes up to six
    times as long (64 tokens; from 512 on there is no difference)."""
    if torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[-2] < 512:
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout, is_causal)
        return y.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which some releases have for GELU."""
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm self-attention and MLP of 4 E features, each added to its input.

    Args:
        visible: bool (capacity, capacity), which tokens (columns) each token (row) attends to, itself and those before
            it at most; without one, all of these.
        activation: of the MLP.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float = 0.0, attention_dropout: float = 0.0,
        visible: Tensor | None = None, activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:  # fmt: skip
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("visible", visible, persistent=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); a token sees itself and those before it, or what is `visible`."""
        return self.read(x)[0]

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`; also the keys and values (B, H, T, F)."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        mask = None if self.visible is None else self.visible[: x.shape[1], : x.shape[1]]
        y = attend(q, k, v, mask, mask is None, dropout)
        x = x + self.dropout(self.projection(y.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.contract(self.activation(self.expand(self.mlp_norm(x)))))
        return x, k, v


class Head(nn.Module):
    """LayerNorm and a linear layer: (..., E) -> (..., K)."""

    def __init__(self, width: int, num_outputs: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def initialize(module: nn.Module) -> None:
    """For `nn.Module.apply`: matrices and embeddings normal with deviation 0.02, biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@dataclass
class KVCache:
    """Keys and values of the tokens read so far; may be emptied by setting `length` to 0."""

    keys: Tensor  # (B, L, H, capacity, F)
    values: Tensor  # (B, L, H, capacity, F)
    length: int


class Decoder:
    """Blocks, and a head on top where one is given, one token at a time; without gradients.

    Holds the weights packed for a precision, and no tensor of the batch: pack once, decode many images.  On the CPU, a
    step is one call of `transformer.cpp`, where there is a C++ compiler and the sizes suit it (float32 models, E a
    multiple of 64, F of 16); elsewhere it is plain torch.

    Args:
        blocks: in evaluation mode; their dropout is not applied.
        precision: see above.
        head: gives the outputs; without one they are the states after the last block.

    Raises:
        ValueError: no such precision.
    """

    def __init__(self, blocks: Sequence[Block], precision: Precision, head: Head | None = None) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        self.blocks, self.head, self.precision = list(blocks), head, precision
        layers = [
            StepLayer(block.attention_norm, *_linears(block)[:2], block.mlp_norm, *_linears(block)[2:])
            for block in self.blocks
        ]
        same = all(block.visible is None and block.activation is F.gelu for block in self.blocks)
        if same and suits_native(layers, self.blocks[0].num_heads, head):
            self.form = NativeStep(layers, self.blocks[0].num_heads, precision, head)
        else:
            self.form = _PlainStep(self.blocks, precision, head)

    def init_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for at most `capacity` tokens."""
        weight = self.blocks[0].query_key_value.weight
        heads = self.blocks[0].num_heads
        shape = (batch_size, len(self.blocks), heads, capacity, weight.shape[1] // heads)
        keys, values = (torch.empty(shape, dtype=self.form.cache_type, device=weight.device) for _ in range(2))
        if isinstance(self.form, NativeStep):
            for tensor in (keys, values):
                _use_huge_pages(tensor.data_ptr(), tensor.nbytes)
        return KVCache(keys, values, 0)

    @torch.no_grad()
    def prefill(self, x: Tensor, cache: KVCache) -> None:
        """Reads tokens (B, n, E) at once into an empty cache, in the model's own precision."""
        assert cache.length == 0
        cache.length = x.shape[1]
        if cache.length == 0:
            return
        for index, block in enumerate(self.blocks):
            x, cache.keys[:, index, :, : x.shape[1]], cache.values[:, index, :, : x.shape[1]] = block.read(x)

    @torch.no_grad()
    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Reads one token (B, E): outputs (B, K), or states (B, E) without a head; changes `cache`."""
        assert cache.length < cache.keys.shape[3], "the cache is full"
        y = self.form(x, cache)
        cache.length += 1
        return y


class _PlainStep:
    """A step in plain torch, on any device."""

    def __init__(self, blocks: Sequence[Block], precision: Precision, head: Head | None) -> None:
        self.blocks, self.head = blocks, head
        self.cache_type = blocks[0].query_key_value.weight.dtype
        self.layers = [tuple(pack_linear(linear, precision) for linear in _linears(block)) for block in blocks]
        self.output = None if head is None else pack_linear(head.linear, precision)

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        t = cache.length
        for index, (block, (query_key_value, projection, expand, contract)) in enumerate(
            zip(self.blocks, self.layers, strict=True)
        ):
            heads = query_key_value(block.attention_norm(x)).unflatten(-1, (3, block.num_heads, 1, -1))
            q, cache.keys[:, index, :, t : t + 1], cache.values[:, index, :, t : t + 1] = heads.unbind(1)
            k, v = cache.keys[:, index, :, : t + 1], cache.values[:, index, :, : t + 1]
            mask = None if block.visible is None else block.visible[t : t + 1, : t + 1]
            x = x + projection(F.scaled_dot_product_attention(q, k, v, mask).flatten(1))
            x = x + contract(block.activation(expand(block.mlp_norm(x))))
        return x if self.head is None else self.output(self.head.norm(x))


def pack_linear(linear: nn.Linear, precision: Precision) -> Callable[[Tensor], Tensor]:
    """A linear layer of (B, E) -> (B, K) with weights of another precision, results in the type of the input."""
    if precision == "float32":
        return linear
    weight, bias = linear.weight.detach(), linear.bias
    if precision == "bfloat16":
        narrow = weight.bfloat16()
        return lambda x: _add(F.linear(x.bfloat16(), narrow).to(x.dtype), bias)
    codes, scale = quantize_rows(weight)
    if weight.device.type == "cpu" and weight.shape[1] % 32 == 0:  # with other sizes its kernel reads past the end
        one = torch.ones_like(scale, dtype=torch.bfloat16)
        return lambda x: _add(torch._weight_int8pack_mm(x.bfloat16(), codes, one).to(x.dtype) * scale, bias)
    return lambda x: _add(F.linear(x.bfloat16(), codes.bfloat16()).to(x.dtype) * scale, bias)


def _add(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(K, E) -> int8 (K, E) in -127..127 and the scales (K,) of its rows."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _linears(block: Block) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    return block.query_key_value, block.projection, block.expand, block.contract


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled `transformer.cpp`, or None where it cannot be compiled; it works in torch's own threads."""
    library = compiled(Path(__file__).parents[1] / "kernels" / "transformer.cpp")
    runtimes = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if library is not None and runtimes:
        openmp = ctypes.CDLL(str(runtimes[0]))
        functions = (openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads)
        library.use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
    return library


def _use_huge_pages(address: int, size: int) -> None:
    """Asks for huge pages where memory, not yet written to, has room for them: it is read faster then."""
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    room = (address + size - first) // HUGE_PAGE * HUGE_PAGE
    if room > 0:
        native_library().use_huge_pages(ctypes.c_void_p(first), ctypes.c_int64(room))


@dataclass(frozen=True)
class StepLayer:
    """What compiled code reads of a block, whose activation is GELU; parts of None are left out.

    attention_norm .. contract:      as in `Block`; norms may have no gain
    attention_out_norm:              of what self-attention gives, before it is added
    cross_norm .. cross_out_norm:    likewise of attention to a memory, whose keys and values are given
    hidden_norm:                     of gelu(a) * b, where `expand` gives a and b, one after the other
    """

    attention_norm: nn.LayerNorm
    query_key_value: nn.Linear
    projection: nn.Linear
    mlp_norm: nn.LayerNorm
    expand: nn.Linear
    contract: nn.Linear
    attention_out_norm: nn.LayerNorm | None = None
    cross_norm: nn.LayerNorm | None = None
    query: nn.Linear | None = None
    cross_projection: nn.Linear | None = None
    cross_out_norm: nn.LayerNorm | None = None
    hidden_norm: nn.LayerNorm | None = None

    def parts(self) -> list[nn.LayerNorm | nn.Linear]:
        return [part for part in (getattr(self, f.name) for f in fields(self)) if part is not None]


def suits_native(layers: Sequence[StepLayer], num_heads: int, head: Head | None) -> bool:
    """Whether a `NativeStep` can be made of these."""
    parts = [part for layer in layers for part in layer.parts()]
    parameters = [p for part in [*parts, *([] if head is None else [head])] for p in part.parameters()]
    width, norms = layers[0].query_key_value.in_features, [part for part in parts if isinstance(part, nn.LayerNorm)]
    return (
        all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        and len({norm.eps for norm in norms}) == 1
        and width % NATIVE_WIDTH == 0
        and width // num_heads % 16 == 0
        and native_library() is not None
    )


class NativeStep:
    """A step in compiled code; `transformer.cpp` says how it stores weights."""

    def __init__(
        self, layers: Sequence[StepLayer], num_heads: int, precision: Precision, head: Head | None = None
    ) -> None:
        self.function = getattr(native_library(), f"step_{precision}")
        self.cache_type = torch.float32 if precision == "float32" else torch.bfloat16
        self.num_outputs = 0 if head is None else head.linear.out_features
        parts = [part for layer in layers for part in layer.parts()] + ([] if head is None else [head.linear])
        linears = [part for part in parts if isinstance(part, nn.Linear)]
        memory = _Memory(
            sum((one.out_features + 2 * NATIVE_WIDTH) * (one.in_features + NATIVE_WIDTH) for one in linears), precision
        )
        features = layers[0].contract.in_features
        padding = -features % NATIVE_WIDTH
        addresses = []
        for layer in layers:
            addresses += memory.norm(layer.attention_norm) + memory.norm(layer.attention_out_norm)
            addresses += memory.linear(layer.query_key_value) + memory.linear(layer.projection)
            addresses += memory.norm(layer.cross_norm) + memory.norm(layer.cross_out_norm)
            addresses += memory.linear(layer.query) + memory.linear(layer.cross_projection)
            addresses += memory.norm(layer.mlp_norm) + memory.norm(layer.hidden_norm, padding)
            addresses += memory.mlp(layer, padding)
        self.layers, self.memory = (ctypes.c_int64 * len(addresses))(*addresses), memory
        epsilon = struct.unpack("q", struct.pack("d", layers[0].attention_norm.eps))[0]
        output = [0] * 5 if head is None else memory.norm(head.norm) + memory.linear(head.linear)
        model = [
            len(layers), layers[0].query_key_value.in_features, num_heads, self.num_outputs, features + padding,
            padding, epsilon, ctypes.addressof(self.layers), *output,
        ]  # fmt: skip
        self.model = (ctypes.c_int64 * len(model))(*model)

    def __call__(
        self, x: Tensor, cache: KVCache, crossed: Sequence[Tensor] = (), places: Tensor | None = None
    ) -> Tensor:
        """One token (B, E) -> (B, K), or (B, E) without a head.

        Args:
            cache: that the token is entered into.
            crossed: keys and values of a memory (B, L, H, S, F), and how many of its tokens, the first, are seen,
                int64 (B,).
            places: int64 (n,), tokens that are seen, the new one among them; without it all up to the new one.
        """
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        y = x.new_empty(len(x), self.num_outputs) if self.num_outputs else x
        assert all(tensor.is_contiguous() for tensor in (cache.keys, cache.values, *crossed))
        keys, values, lengths = (tensor.data_ptr() for tensor in crossed) if crossed else (0, 0, 0)
        call = [
            len(x), cache.keys.shape[3], cache.length, torch.get_num_threads(), x.data_ptr(), y.data_ptr(),
            cache.keys.data_ptr(), cache.values.data_ptr(), keys, values, crossed[0].shape[3] if crossed else 0,
            lengths, *((0, 0) if places is None else (places.data_ptr(), len(places))),
        ]  # fmt: skip
        self.function(self.model, (ctypes.c_int64 * len(call))(*call))
        return y


class _Memory:
    """Weights one after the other, as a step reads them, in memory of huge pages; gives their addresses."""

    def __init__(self, num_weights: int, precision: Precision) -> None:
        self.precision = precision
        size = num_weights * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
        self.bytes = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
        self.used = -self.bytes.data_ptr() % HUGE_PAGE
        _use_huge_pages(self.bytes.data_ptr() + self.used, size)
        self.others: list[Tensor] = []  # small and apart

    def norm(self, norm: nn.LayerNorm | None, padding: int = 0) -> list[int]:
        """Addresses of gain and shift, with as many zeros behind them."""
        if norm is None:
            return [0, 0]
        size = norm.normalized_shape
        pair = (norm.weight, norm.bias) if norm.elementwise_affine else (torch.ones(size), torch.zeros(size))
        return [self._small(F.pad(tensor.detach(), (0, padding))) for tensor in pair]

    def linear(self, linear: nn.Linear | None) -> list[int]:
        """Addresses of weight, scales and bias; 0 where there is none."""
        return [0, 0, 0] if linear is None else self._weights(linear.weight.detach(), linear.bias)

    def mlp(self, layer: StepLayer, padding: int) -> list[int]:
        """Addresses of the matrices of an MLP, gate first, with as many features of zero at the end."""
        gated = layer.hidden_norm is not None
        expand, contract = layer.expand, layer.contract
        assert not (gated and expand.bias is not None), "gated MLPs have no biases"
        halves = expand.weight.detach().chunk(2 if gated else 1)
        bias = None if expand.bias is None else F.pad(expand.bias.detach(), (0, padding))
        found = [self._weights(F.pad(half, (0, 0, 0, padding)), bias) for half in halves]
        addresses = [0, 0, 0] if not gated else found[0]
        return addresses + found[-1] + self._weights(F.pad(contract.weight.detach(), (0, padding)), contract.bias)

    def _weights(self, weight: Tensor, bias: Tensor | None) -> list[int]:
        place = 0 if bias is None else self._small(bias)
        if self.precision != "int8":
            return [self._large(weight, getattr(torch, self.precision)), 0, place]
        codes, scale = quantize_rows(weight)
        return [self._large(codes.to(torch.int16) + 128, torch.uint8), self._small(scale), place]

    def _small(self, tensor: Tensor) -> int:
        self.others.append(tensor.detach().clone())
        return self.others[-1].data_ptr()

    def _large(self, weight: Tensor, dtype: torch.dtype) -> int:
        """Rows in fours, whose parts of 64 bytes alternate, so that memory is read in order; the rest row by row."""
        size = weight.numel() * dtype.itemsize
        place = self.bytes[self.used : self.used + size].view(dtype)
        self.used += -(-size // 64) * 64
        fours = len(weight) // 4 * 4
        tiles = weight[:fours].unflatten(0, (-1, 4)).unflatten(-1, (-1, 64 // dtype.itemsize)).transpose(1, 2)
        place[: tiles.numel()].view(tiles.shape).copy_(tiles)
        place[tiles.numel() :].view(-1, weight.shape[1]).copy_(weight[fours:])
        return place.data_ptr()


class TransformerPrior(Prior):
    """A prior whose `step` reads packed weights; `decoding` packs them once, for many images."""

    @abstractmethod
    def pack(self, precision: Precision) -> Any:
        """The weights as `step` reads them: a `Decoder`, or several."""

    @abstractmethod
    def start(self, packed: Any, batch_size: int, context: Context) -> object:
        """`init_state` with these weights."""

    def init_state(self, batch_size: int, context: Context) -> object:
        return self.start(self.pack("float32"), batch_size, context)

    def decoding(self, precision: str) -> Prior:
        return Packed(self, precision)


class Packed(Prior):
    """A transformer prior with its weights packed for decoding in a precision; `forward` is the model's own."""

    def __init__(self, prior: TransformerPrior, precision: Precision) -> None:
        super().__init__()
        self.prior, self.spec, self.num_classes = prior, prior.spec, prior.num_classes
        self.text_length, self.joint_text = prior.text_length, prior.joint_text
        self.packed = prior.pack(precision)

    def check_context(self, context: Context, batch_size: int) -> None:
        self.prior.check_context(context, batch_size)

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        return self.prior(codes, context)

    def init_state(self, batch_size: int, context: Context) -> object:
        return self.prior.start(self.packed, batch_size, context)

    def step(self, previous: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.prior.step(previous, state)
