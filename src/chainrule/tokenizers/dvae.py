"""The discrete VAE of DALL-E: Ramesh et al., "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, 2.1, A.2, A.3.

The encoder gives logits of q(z | x), independent at every position of the grid; the prior of z is uniform over
K codes, and the decoder gives a logit-Laplace distribution of every pixel (`layers.logit_laplace`).  Minimised is

    -E_q [ln p(x | z)] + beta KL(q(z | x) || uniform),    divided by the number of values of an image,

with the sample of q relaxed by the Gumbel-softmax: z = softmax((logits + g) / tau), g standard Gumbel noise.
tau falls from 1 to 1/16 in the first 150,000 of 3 million steps and beta rises from 0 to 6.6 in the first 5,000,
here given as shares of the training.  Codes are the noise-free argmax, and a picture is that of the location.

Network (figure of the code released with the paper): groups of pre-activation bottleneck blocks

    y = skip(x) + gain . convolutions(x),    gain = 1 / (number of blocks)^2,

of kernels 3, 3, 3, 1 in the encoder and 1, 3, 3, 3 in the decoder, with a quarter of the width inside;
max-pooling between the groups of the encoder, nearest-neighbour upsampling between those of the decoder.

Deviations: `num_groups` may differ from 4; in training exp(`min_log_scale`) is added to b, because flat regions of
8-bit images would drive b to 0 and the density to infinity; both schedules are half a cosine (the paper says so of
tau only).  While tau falls, dead codes are restarted as halves of others: where the recent use of a code falls below
`restart_below` times the mean of all, it becomes a copy, but for a little noise, of one that is used more than that
mean, the most used first.  Shape letters: B batch, C channels, H, W image; h, w grid; K vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Preset, Reconstruction, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ..layers.logit_laplace import logit_laplace_image, logit_laplace_log_prob, map_pixels
from ._codebook import check_codebook, spread_loss, sum_over_processes, track_use
from ._grid import GridTokenizer, ImageConfig, square
from ._gumbel_quantizer import relax_codes

RESTART_NOISE = 0.05
"""By which the weights of a restarted code differ from those of the code it copies, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class DVAEConfig(ImageConfig):
    """Defaults are the paper's.

    codebook_size:           K
    width:     width of the encoder's first and the decoder's last group; each further one has twice it
    blocks_per_group, num_groups: the grid is 2^(num_groups - 1) times smaller than the image
    initial_width:    width of a code's embedding, the decoder's input
    kl_weight, kl_share: beta rises from 0 to kl_weight over that share of the training
    final_temperature, temperature_share: tau falls from 1 to final_temperature over that share of the training
    min_log_scale:       soft floor of ln b in training; -5 is about half a level of an 8-bit image
    restart_below:       share of the mean use below which a code is restarted, see below; 0 (the paper) is never
    spread:              weight of `_codebook.spread_loss` of the logits divided by tau, so that in the end it is the
                         codes that spread and not only q, which can be flat while few codes win; 0 (the paper) is none
    """

    codebook_size: int = 8192
    width: int = 256
    blocks_per_group: int = 2
    num_groups: int = 4
    initial_width: int = 128
    kl_weight: float = 6.6
    kl_share: float = 1 / 600
    final_temperature: float = 1 / 16
    temperature_share: float = 0.05
    min_log_scale: float = -5.0
    restart_below: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "blocks_per_group", "initial_width")
        check_range(self, 1, 16, "num_groups")
        check_range(self, 4, MAX_SIZE, "width")
        check_range(self, 0, 1, "kl_share", "temperature_share")
        check_range(self, -80, 80, "min_log_scale")
        check_codebook(**vars(self))
        if not 0 < self.final_temperature <= 1:
            raise ValueError(f"final_temperature must lie in 0..1, 0 excluded, got {self.final_temperature}")

    @property
    def factor(self) -> int:
        """Pixels per code along each side."""
        return 2 ** (self.num_groups - 1)

    def temperature(self, progress: float) -> float:
        """tau at a share 0..1 of the training."""
        return 1 + (self.final_temperature - 1) * _ramp(progress, self.temperature_share)

    def beta(self, progress: float) -> float:
        """Weight of the KL divergence at a share 0..1 of the training."""
        return self.kl_weight * _ramp(progress, self.kl_share)


def _ramp(progress: float, share: float) -> float:
    """Half a cosine from 0 at progress 0 to 1 at `share` and after."""
    return 1.0 if progress >= share else (1 - math.cos(math.pi * progress / share)) / 2


def conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps the size; weights N(0, 1 / fan_in), biases 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(in_channels * kernel_size**2))
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """A pre-activation bottleneck block of four convolutions."""

    is_layer = True  # training.checkpointing recomputes it

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...], gain: float) -> None:
        super().__init__()
        inside = out_channels // 4
        widths = [in_channels, inside, inside, inside, out_channels]
        self.gain = gain
        self.skip = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.convolutions = nn.ModuleList(
            conv(*pair, size) for *pair, size in zip(widths, widths[1:], kernel_sizes, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.convolutions:
            y = convolution(F.relu(y))
        return self.skip(x) + self.gain * y


class Groups(nn.ModuleList):
    """Groups of blocks; `widths` are those at the input and after each group."""

    def __init__(self, widths: list[int], num_blocks: int, kernel_sizes: tuple[int, ...]) -> None:
        gain = 1 / ((len(widths) - 1) * num_blocks) ** 2
        super().__init__(
            nn.Sequential(*(Block(out if i else width, out, kernel_sizes, gain) for i in range(num_blocks)))
            for width, out in pairwise(widths)
        )


class Encoder(nn.Module):
    """Mapped pixels (B, C, H, W) -> logits (B, K, h, w)."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        widths = [config.width * 2**group for group in range(config.num_groups)]
        self.input = conv(config.image_channels, widths[0], 7)
        self.groups = Groups([widths[0], *widths], config.blocks_per_group, (3, 3, 3, 1))
        self.output = conv(widths[-1], config.codebook_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.before_output(x))

    def before_output(self, x: Tensor) -> Tensor:
        """Features before the last layer, (B, C, h, w)."""
        x = self.input(x)
        for index, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if index else x)
        return F.relu(x)


class Decoder(nn.Module):
    """Embedded codes (B, initial_width, h, w) -> location and log scale, each (B, C, H, W)."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        widths = [config.width * 2**group for group in reversed(range(config.num_groups))]
        self.groups = Groups([config.initial_width, *widths], config.blocks_per_group, (1, 3, 3, 3))
        self.output = conv(widths[-1], 2 * config.image_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for index, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2, mode="nearest") if index else x)
        location, log_scale = self.output(F.relu(x)).chunk(2, 1)
        return location, log_scale


FOR_A_CPU = {
    "codebook_size": 512, "width": 64, "num_groups": 3, "blocks_per_group": 1, "initial_width": 64, "kl_weight": 0.1,
    "kl_share": 0.1, "temperature_share": 0.6, "restart_below": 0.2, "spread": 0.4,
}  # fmt: skip


@register("tokenizers", "dvae", DVAEConfig, {"dalle": Preset(DVAEConfig(**square(256)))}, small=FOR_A_CPU)
class DVAE(GridTokenizer):
    """One grid of codes; `features` are the logits of q(z | x)."""

    decoder_parts = ("embedding", "decoder")
    decoder_options = ("width", "blocks_per_group", "initial_width", "min_log_scale")

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__(config, config.factor)
        self.encoder = Encoder(config)
        self.embedding = conv(config.codebook_size, config.initial_width, 1)
        self.decoder = Decoder(config)
        if config.restart_below:
            self.register_buffer("recent", torch.zeros(config.codebook_size))

    def features(self, images: Tensor) -> Tensor:
        """Logits of q(z | x): images float (B, C, H, W) in [-1, 1] -> (B, K, h, w)."""
        return self.encoder(map_pixels((images + 1) / 2))

    def encode_features(self, features: Tensor) -> Tensor:
        return features.argmax(1).unsqueeze(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """What `embedding` makes of the one-hot maps of codes (B, h, w, 1): (B, initial_width, h, w)."""
        table = self.embedding.weight[:, :, 0, 0].t()
        return (F.embedding(codes.squeeze(-1), table) + self.embedding.bias).permute(0, 3, 1, 2).contiguous()

    def distribution(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, initial_width, h, w) -> location and ln of the scale of p(x | z), each (B, C, H, W)."""
        return self.decoder(embedded)

    def decode_features(self, features: Tensor) -> Tensor:
        """As `distribution`, but its image, about [-1, 1] (0.25 beyond at most)."""
        return logit_laplace_image(self.distribution(features)[0]) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.output.weight

    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        """In training mode of a relaxed sample, else of the codes."""
        self.check_images(images)
        x = self.scale(images)
        restarts = self.training and self.config.restart_below > 0 and progress < self.config.temperature_share
        pixels = map_pixels((x + 1) / 2)
        hidden = self.encoder.before_output(pixels)
        if restarts:
            self._restart_codes(hidden)
        logits = self.encoder.output(hidden)
        temperature = self.config.temperature(progress)
        relaxed = relax_codes(logits, temperature, hard=False)
        embedded = self.embedding(relaxed.weights.to(x.dtype)) if self.training else self.embed(relaxed.codes)
        location, log_scale = self.distribution(embedded)
        with torch.autocast(x.device.type, enabled=False):  # likelihoods are not summed in half precision
            location, log_scale = location.to(x.dtype), log_scale.to(x.dtype)
            log_scale = torch.logaddexp(log_scale, torch.full_like(log_scale, self.config.min_log_scale))
            nats = -logit_laplace_log_prob(pixels, location, log_scale).mean()
        if restarts:
            counts = torch.bincount(relaxed.codes.flatten(), minlength=self.config.codebook_size).to(self.recent)
            track_use(self.recent, sum_over_processes(counts))
        codes_per_value = relaxed.codes.numel() / x.numel()
        loss = nats + self.config.beta(progress) * codes_per_value * relaxed.kl
        if self.config.spread and self.training:
            choices = logits.float().permute(0, 2, 3, 1).flatten(0, 2)
            loss = loss + self.config.spread * spread_loss(choices / temperature)
        metrics = {"nats": nats.detach(), "kl": relaxed.kl.detach(), **relaxed.metrics}
        return Reconstruction(logit_laplace_image(location), (relaxed.codes,), loss, metrics)

    @torch.no_grad()
    def _restart_codes(self, hidden: Tensor) -> None:
        """Has the most used codes share their work with dead ones: where the noise in a copy's logit is above 0, which
        it is on the mean of hidden (B, C, h, w)."""
        mean, order = self.recent.mean(), self.recent.argsort(descending=True)
        busy, dead = order[self.recent[order] > mean], order[self.recent[order] < self.config.restart_below * mean]
        count = min(len(busy), len(dead))
        if not count:
            return
        busy, dead = busy[:count], dead[:count]
        rows, bias, embedding = self.encoder.output.weight, self.encoder.output.bias, self.embedding.weight
        # Both are the same in all processes.
        noise = RESTART_NOISE * rows.std() * sum_over_processes(torch.randn_like(rows[dead]))
        centre = sum_over_processes(hidden.mean((0, 2, 3)).to(rows.dtype)) / sum_over_processes(torch.ones_like(mean))
        rows[dead] = rows[busy] + noise
        bias[dead] = bias[busy] - noise[:, :, 0, 0] @ centre
        embedding[:, dead] = embedding[:, busy]
        self.recent[busy] /= 2
        self.recent[dead] = self.recent[busy]
