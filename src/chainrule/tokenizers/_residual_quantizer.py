"""Residual quantization (Lee et al. 2022, arXiv:2203.01941): D codes per position.

    r_0 = z        c_d = argmin_k ||r_(d-1) - e_k||        r_d = r_(d-1) - e_(c_d)

Deviation from the published code: the codebook is updated once per batch over all depths, not once per depth.

Shape letters: B batch, C channels of a vector, h w grid, D depth, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._codebook import Codebook, check_codebook, codebook_spread
from ._vector_quantizer import Quantized, straight_through, to_map, to_vectors, upkeep


class ResidualQuantizer(nn.Module):
    """D codes per position, each the nearest to what the codes before it left: q^d = e_{c_1} + ... + e_{c_d}.

    Learned by ema.  The loss is beta times the mean over depths of mean (z - sg[q^d])^2.

    Args:
        codebook_size: K.
        embedding_dim: C, channels of the map.
        depth: D.
        shared: one codebook for all depths (as in the paper) or one each.
        beta, decay, restart_below, spread: as in VectorQuantizer.
    """

    def __init__(
        self, codebook_size: int, embedding_dim: int, depth: int, *, shared: bool = True, beta: float = 0.25,
        decay: float = 0.99, restart_below: float = 0.1, spread: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        check_codebook(beta=beta, spread=spread)
        self.depth, self.shared, self.beta, self.spread = depth, shared, beta, spread
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, embedding_dim, decay=decay, restart_below=restart_below, as_parameter=True)
            for _ in range(1 if shared else depth)
        )

    def codebook(self, depth: int) -> Codebook:
        """The codebook of depth 0..D-1."""
        return self.codebooks[0 if self.shared else depth]

    def forward(self, z: Tensor) -> Quantized:
        """(B, C, h, w) -> Quantized; in training mode the codebooks learn."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = to_vectors(z)
            residuals, codes, partial, losses = [], [], torch.zeros_like(vectors), []
            for d in range(self.depth):
                residuals.append(vectors - partial)
                codes.append(self.codebook(d).nearest(residuals[-1]))
                partial = partial + self.codebook(d).lookup(codes[-1]).to(partial.dtype)
                losses.append((vectors - partial).square().mean())
            commitment = torch.stack(losses).mean()
            loss = self.beta * commitment
            if self.spread and self.training:
                spreads = [codebook_spread(self.codebook(d), residuals[d]) for d in range(self.depth)]
                loss = loss + self.spread * torch.stack(spreads).mean()
            metrics: dict[str, Tensor] = {}
            if self.shared:
                metrics = upkeep(self, self.codebooks[0], torch.cat(residuals), torch.cat(codes))
            else:
                each = [upkeep(self, self.codebook(d), residuals[d], codes[d]) for d in range(self.depth)]
                metrics = {name: torch.stack([m[name] for m in each]).mean() for name in each[0]}
            metrics["commitment"] = commitment.detach()
            quantized = to_map(straight_through(vectors, partial), z)
        return Quantized(quantized, _deep_grid(codes, z), loss, metrics)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> codes int64 (B, h, w, D); nothing is learned."""
        with torch.autocast(z.device.type, enabled=False):
            residual, codes = to_vectors(z), []
            for d in range(self.depth):
                codes.append(self.codebook(d).nearest(residual))
                residual = residual - self.codebook(d).lookup(codes[-1]).to(residual.dtype)
        return _deep_grid(codes, z)

    @torch.no_grad()
    def encode_soft(
        self, z: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stochastic codes and soft targets (section 3.2.3 of 2203.01941): p_d(k) = softmax_k(-||r_d - e_k||^2 / T).

        Args:
            z: (B, C, h, w).
            temperature: T > 0 (0.5 in the paper); towards 0 the codes are those of `encode`.
            generator: of the draws, on z's device.

        Returns:
            codes int64 (B, h, w, D), each drawn from p_d, where r_d is what the drawn codes before it left,
            and p (B, h, w, D, K).
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        with torch.autocast(z.device.type, enabled=False):
            residual, codes, targets = to_vectors(z), [], []
            for d in range(self.depth):
                targets.append((-self.codebook(d).distances(residual) / temperature).softmax(1))
                codes.append(torch.multinomial(targets[-1], 1, generator=generator).squeeze(1))
                residual = residual - self.codebook(d).lookup(codes[-1]).to(residual.dtype)
        shape = (z.shape[0], *z.shape[2:], self.depth)
        return _deep_grid(codes, z), torch.stack(targets, 1).reshape(*shape, -1)

    def embed_depths(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, d) of the first d <= D depths -> their vectors (B, h, w, d, C), not summed."""
        if codes.shape[-1] > self.depth:
            raise ValueError(f"this quantizer has depth {self.depth}; the codes have depth {codes.shape[-1]}")
        return torch.stack([self.codebook(d).lookup(codes[..., d]) for d in range(codes.shape[-1])], dim=-2)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, d) of the first d <= D depths -> q^d (B, C, h, w)."""
        return self.embed_depths(codes).sum(-2).permute(0, 3, 1, 2).contiguous()


def _deep_grid(codes: list[Tensor], like: Tensor) -> Tensor:
    """D tensors (B h w,) -> (B, h, w, D)."""
    return torch.stack(codes, 1).reshape(like.shape[0], *like.shape[2:], len(codes))
