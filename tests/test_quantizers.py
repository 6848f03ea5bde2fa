"""Quantizers alone: nearest codes, learning, gradients, restarts, and the same codebook on all processes."""

import itertools
import math
import sys

import pytest
import torch
import torch.distributed as dist

from chainrule.tokenizers._codebook import Codebook, codebook_spread, perplexity, spread_loss
from chainrule.tokenizers._gumbel_quantizer import GumbelQuantizer, relax_codes
from chainrule.tokenizers._residual_quantizer import ResidualQuantizer
from chainrule.tokenizers._vector_quantizer import VectorQuantizer
from forks import run_script

CENTRES = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) * 3


def clustered(count: int = 512) -> torch.Tensor:
    """Vectors around 64 centres, as a map (4, 16, count / 4, 1)."""
    vectors = CENTRES[torch.randint(0, 64, (count,))] + 0.3 * torch.randn(count, 16)
    return vectors.reshape(4, count // 4, 1, 16).permute(0, 3, 1, 2)


def used(quantizer, codebook_size: int) -> float:
    return quantizer.encode(clustered(8192)).unique().numel() / codebook_size


@torch.no_grad()
def test_codes_are_nearest_and_embed_gives_what_forward_gives():
    z = torch.randn(2, 5, 3, 4)
    quantizer = VectorQuantizer(11, 5).eval()
    quantizer.codebook.weight.normal_()
    result = quantizer(z)
    expected = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 5), quantizer.codebook.weight).argmin(1)
    assert torch.equal(result.codes.flatten(), expected)
    assert result.codes.shape == (2, 3, 4, 1) and torch.equal(quantizer.encode(z), result.codes)
    torch.testing.assert_close(quantizer.embed(result.codes), result.quantized, rtol=0, atol=0)


@torch.no_grad()
def test_cosine_ignores_lengths():
    z, quantizer = torch.randn(2, 4, 3, 3), VectorQuantizer(9, 4, metric="cosine").eval()
    result = quantizer(z)
    assert torch.equal(result.codes, quantizer.encode(7 * z))
    torch.testing.assert_close(result.quantized.norm(dim=1), torch.ones(2, 3, 3))


def test_gradient_passes_straight_through_and_losses_are_those_of_the_paper():
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, 4, 3, 3)
    for legacy in (False, True):
        quantizer = VectorQuantizer(9, 4, learning="loss", beta=0.3, legacy_beta=legacy).eval()
        result = quantizer(z)
        (gradient,) = torch.autograd.grad((result.quantized * weights).sum(), z, retain_graph=True)
        assert torch.equal(gradient, weights)
        error = (z - result.quantized).square().mean().detach()
        torch.testing.assert_close(result.loss.detach(), 1.3 * error)
        (to_z,) = torch.autograd.grad(result.loss, z, retain_graph=True)
        factor = 1.0 if legacy else 0.3
        torch.testing.assert_close(to_z, factor * 2 * (z - result.quantized).detach() / z.numel())
        (to_codes,) = torch.autograd.grad(result.loss, quantizer.codebook.weight)
        assert to_codes.abs().sum() > 0


@torch.no_grad()
def test_moving_averages_are_those_of_the_paper():
    """Without smoothing: N_k and m_k decay alike and e_k = m_k / N_k."""
    quantizer = VectorQuantizer(3, 2, decay=0.9, restart_below=0.0).train()
    weight = torch.tensor([[0.0, 0.0], [5.0, 5.0], [50.0, 50.0]])
    quantizer.codebook.weight.copy_(weight)
    count, total = torch.ones(3), weight.clone()
    quantizer.codebook.usage.copy_(count)
    for _ in range(5):
        z = torch.randn(1, 2, 20, 1) + torch.tensor([0.0, 5.0]).repeat(10)[:, None]
        codes = quantizer.encode(z).flatten()
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 2)
        count = 0.9 * count + 0.1 * torch.bincount(codes, minlength=3)
        total = 0.9 * total + 0.1 * torch.zeros(3, 2).index_add_(0, codes, vectors)
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook.usage, count)
    torch.testing.assert_close(quantizer.codebook.weight[:2], (total / count[:, None])[:2], rtol=1e-4, atol=1e-4)
    assert torch.equal(quantizer.codebook.weight[2], weight[2]), "an unused code stays where it is"


@pytest.mark.parametrize("trained", [0, 200])
@pytest.mark.parametrize(
    "options", [{"learning": "ema"}, {"learning": "loss"}, {"metric": "cosine"}], ids=lambda o: next(iter(o.values()))
)
def test_a_collapsed_codebook_is_revived(options, trained):
    quantizer = VectorQuantizer(128, 16, **options).train()
    for _ in range(trained):
        quantizer(clustered())
    with torch.no_grad():
        quantizer.codebook.weight.fill_(0.1)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-3) if options.get("learning") == "loss" else None
    for _ in range(300):
        result = quantizer(clustered().requires_grad_())
        if optimizer is not None:
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
    assert used(quantizer, 128) >= 0.9
    without = VectorQuantizer(128, 16, restart_below=0.0).train()
    with torch.no_grad():
        without.codebook.weight.fill_(0.1)
        without(clustered())
    assert used(without, 128) < 0.1


def test_equal_vectors_restart_one_code():
    """Flat areas: a batch of mostly one value still fills the codebook with what else there is."""
    quantizer = VectorQuantizer(32, 4).train()
    z = torch.zeros(1, 4, 1000, 1)
    z[:, :, :40] = torch.randn(1, 4, 40, 1)
    for _ in range(3):
        quantizer(z)
    assert quantizer.encode(z).unique().numel() >= 28


@torch.no_grad()
def test_residual_codes_refine():
    quantizer = ResidualQuantizer(32, 16, 4).train()
    for _ in range(60):
        result = quantizer(clustered())
    quantizer.eval()
    z = clustered()
    result = quantizer(z)
    assert torch.equal(result.codes, quantizer.encode(z)) and result.codes.shape == (4, 128, 1, 4)
    errors = [(z - quantizer.embed(result.codes[..., : d + 1])).square().mean() for d in range(4)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    torch.testing.assert_close(result.loss, 0.25 * torch.stack(errors).mean())
    partial = quantizer.embed_depths(result.codes).cumsum(-2)
    torch.testing.assert_close(partial[..., 1, :].permute(0, 3, 1, 2), quantizer.embed(result.codes[..., :2]))
    with pytest.raises(ValueError, match="has depth 4"):
        quantizer.embed(torch.zeros(1, 2, 2, 5, dtype=torch.int64))


@pytest.mark.parametrize("shared", [True, False])
def test_a_collapsed_residual_quantizer_is_revived(shared):
    quantizer = ResidualQuantizer(64, 16, 3, shared=shared).train()
    with torch.no_grad():
        for codebook in quantizer.codebooks:
            codebook.weight.fill_(0.5)
    for _ in range(60):
        quantizer(clustered())
    codes = quantizer.encode(clustered(8192))
    for d in range(3):
        of_depth = codes if shared else codes[..., d]
        assert of_depth.unique().numel() >= 0.9 * 64
    assert not any(p.requires_grad for p in quantizer.parameters())
    assert sum(p.numel() for p in quantizer.parameters()) == 64 * 16 * (1 if shared else 3)


@torch.no_grad()
def test_soft_targets_of_residual_codes():
    quantizer, z = ResidualQuantizer(16, 4, 2).eval(), torch.randn(2, 4, 3, 3)
    quantizer.codebooks[0].weight.normal_()
    codes, targets = quantizer.encode_soft(z, 1e-6)
    assert torch.equal(codes, quantizer.encode(z)) and torch.equal(targets.argmax(-1), codes)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    codes, targets = quantizer.encode_soft(z, 0.5, generators[0])
    assert torch.equal(codes, quantizer.encode_soft(z, 0.5, generators[1])[0])
    first = z.permute(0, 2, 3, 1)[..., None, :] - quantizer.codebooks[0].weight
    torch.testing.assert_close(targets[..., 0, :], (-first.square().sum(-1) / 0.5).softmax(-1))
    second = first.gather(-2, codes[..., :1, None].expand(-1, -1, -1, -1, 4)) - quantizer.codebooks[0].weight
    torch.testing.assert_close(targets[..., 1, :], (-second.square().sum(-1) / 0.5).softmax(-1))


def test_relaxed_codes():
    logits = torch.randn(2, 7, 3, 3, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    relaxed = relax_codes(logits, 1.0, False, generator)
    torch.testing.assert_close(relaxed.weights.sum(1), torch.ones(2, 3, 3))
    assert torch.equal(relaxed.codes.squeeze(-1), logits.argmax(1))
    p = logits.softmax(1)
    torch.testing.assert_close(relaxed.kl, (p * (p * 7).log()).sum(1).mean())
    hard = relax_codes(logits, 1.0, True, torch.Generator().manual_seed(0))
    assert torch.equal(hard.weights.argmax(1), relaxed.weights.argmax(1))
    assert set(hard.weights.unique().tolist()) == {0.0, 1.0}
    assert torch.autograd.grad(hard.weights[:, 0].sum(), logits)[0].abs().sum() > 0
    many = relax_codes(torch.tensor([1.0, 0.0]).log().clamp_min(-1).reshape(1, 2, 1, 1).expand(1, 2, 100, 100), 1, True)
    share = math.e / (1 + math.e)
    assert abs(many.weights[:, 0].mean().item() - share) < 0.02, "hard samples are draws from the softmax"


def test_gumbel_quantizer_is_noisy_in_training_only():
    quantizer, logits = GumbelQuantizer(7, 3, kl_weight=0.5), torch.randn(2, 7, 4, 4)
    result = quantizer(logits, 0.9)
    assert not torch.equal(result.quantized, quantizer(logits, 0.9).quantized)
    torch.testing.assert_close(result.loss, 0.5 * relax_codes(logits, 1.0, False).kl)
    quantizer.eval()
    result = quantizer(logits, 0.9)
    assert torch.equal(result.quantized, quantizer.embed(quantizer.encode(logits)))


def test_perplexity_of_histograms():
    assert perplexity(torch.ones(8)).item() == pytest.approx(8)
    assert perplexity(torch.tensor([5.0, 0.0])).item() == pytest.approx(1)


def test_wrong_options_are_refused():
    for build, words in (
        (lambda: VectorQuantizer(1, 4), "at least 2 codes"),
        (lambda: VectorQuantizer(4, 4, metric="dot"), "metric must be"),
        (lambda: VectorQuantizer(4, 4, learning="kmeans"), "learning must be"),
        (lambda: VectorQuantizer(4, 4, legacy_beta=True), "would be ignored"),
        (lambda: VectorQuantizer(4, 4, restart_below=1.0), "restart_below"),
        (lambda: ResidualQuantizer(4, 4, 0), "depth must be"),
        (lambda: relax_codes(torch.zeros(1, 2, 1, 1), 0.0, False), "temperature"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


def test_half_precision_chooses_the_same_codes():
    """Under autocast a quantizer works in float32: only the precision of its input is less."""
    quantizer = VectorQuantizer(64, 8).eval()
    z = torch.randn(2, 8, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(z)
    assert torch.equal(result.codes, quantizer(z.float()).codes) and result.loss.dtype == torch.float32


STEPS = 8


def data_of(rank: int, step: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank)) * (1 + rank)


def build_quantizers():
    torch.manual_seed(0)
    quantizers = [
        VectorQuantizer(32, 4), VectorQuantizer(32, 4, learning="loss"), ResidualQuantizer(32, 4, 2),
        VectorQuantizer(32, 4, restart_below=0.0),
    ]  # fmt: skip
    with torch.no_grad():
        for quantizer in quantizers[:3]:
            next(iter(quantizer.state_dict().values())).fill_(0.3)
        quantizers[3].codebook.weight.normal_()
    return quantizers


def one_process(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    quantizers = build_quantizers()
    torch.manual_seed(100 + rank)  # processes draw different restart candidates
    for step in range(STEPS):
        for quantizer in quantizers:
            quantizer(data_of(rank, step))
    torch.save([quantizer.state_dict() for quantizer in quantizers], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_all_processes_hold_the_same_codebook(tmp_path):
    child = run_script(__file__, str(tmp_path), processes=2)
    assert child.returncode == 0, child.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, two in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], two[name]), name
    assert all(state[name].unique(dim=0).shape[0] > 25 for state in first for name in state if "weight" in name)
    together = build_quantizers()[3]  # without restarts, as one process that sees everything
    for step in range(STEPS):
        together(torch.cat([data_of(0, step), data_of(1, step)]))
    torch.testing.assert_close(first[3]["codebook.weight"], together.codebook.weight, rtol=1e-4, atol=1e-5)


def test_spread_loss_is_zero_if_all_codes_are_chosen_alike_and_log_k_if_one_is():
    assert spread_loss(torch.zeros(5, 7)).item() == pytest.approx(0, abs=1e-6)
    assert spread_loss(100 * torch.eye(7)).item() == pytest.approx(0, abs=1e-6)
    one = torch.zeros(5, 7)
    one[:, 3] = 100
    one.requires_grad_()
    loss = spread_loss(one * 1e4)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7)) and one.grad.isfinite().all()


def test_vectors_that_all_choose_one_code_are_pushed_to_many():
    torch.manual_seed(0)
    codebook = Codebook(16, 4)
    codebook.weight.normal_()
    vectors = (0.01 * torch.randn(64, 4)).requires_grad_()
    optimizer = torch.optim.Adam([vectors], 0.05)
    before = codebook.nearest(vectors).unique().numel()
    for _ in range(60):
        optimizer.zero_grad()
        codebook_spread(codebook, vectors).backward()
        optimizer.step()
    assert before <= 2 and codebook.nearest(vectors).unique().numel() >= 12


@pytest.mark.parametrize("make", [VectorQuantizer, lambda *args, **more: ResidualQuantizer(*args, 2, **more)])
def test_spread_is_part_of_the_loss_of_training_alone(make):
    z = torch.randn(1, 4, 8, 8)
    with_spread, without = make(16, 4, spread=10.0), make(16, 4)
    with_spread.load_state_dict(without.state_dict())
    assert with_spread.eval()(z).loss == without.eval()(z).loss
    assert with_spread.train()(z).loss > without.train()(z).loss


if __name__ == "__main__":
    one_process(*sys.argv[1:])
