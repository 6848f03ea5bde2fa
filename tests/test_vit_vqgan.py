"""ViT-VQGAN: sizes of the published models, the losses, gradients, and what it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chainrule.core import entry
from chainrule.layers.logit_laplace import logit_laplace_log_prob, map_pixels
from chainrule.strict import build_dataclass, to_plain
from chainrule.tokenizers.vit_vqgan import ENHANCING, ViTVQGAN, ViTVQGANConfig, sine_cosine_positions
from sizes import tiny

PRESETS = entry("tokenizers", "vit_vqgan").presets
TINY = tiny("tokenizers", "vit_vqgan").config


def images(config=TINY, count=4):
    generator = torch.Generator().manual_seed(1)
    shape = (count, config.image_channels, config.image_height, config.image_width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def trainable(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("preset", "millions"), [("enhancing-small", 50.9), ("enhancing-base", 170.7), ("enhancing-small-large", 613.5)]
)
def test_parameters_of_the_public_models(preset, millions):
    with torch.device("meta"):
        model = ViTVQGAN(PRESETS[preset].config)
    assert round(trainable(model) / 1e6, 1) == millions


@pytest.mark.parametrize(("preset", "millions"), [("small", 25.2), ("base", 85.0), ("large", 587.6)])
def test_blocks_of_the_paper(preset, millions):
    with torch.device("meta"):
        model = ViTVQGAN(PRESETS[preset].config)
    for part in (model.encoder, model.decoder):
        assert round(trainable(part.transformer.blocks) / 1e6, 1) == millions


def test_the_large_decoder_can_follow_the_small_encoder():
    with torch.device("meta"):
        small_large = ViTVQGAN(PRESETS["small-large"].config)
        small, large = (ViTVQGAN(PRESETS[name].config) for name in ("small", "large"))
    assert trainable(small_large.encoder) == trainable(small.encoder)
    assert trainable(small_large.decoder) == trainable(large.decoder)
    assert small_large.spec.only.shape == (32, 32, 1) and small_large.spec.only.codebook_size == 8192


def test_positions_tell_rows_from_columns():
    positions = sine_cosine_positions(3, 5, 8).reshape(3, 5, 8)
    assert torch.equal(positions[0, :, :4], positions[2, :, :4])
    assert torch.equal(positions[:, 0, 4:], positions[:, 4, 4:])
    assert len(positions.reshape(15, 8).unique(dim=0)) == 15
    torch.testing.assert_close(positions[2, 4, :4], torch.tensor([4.0, 0.04, 4.0, 0.04]).sin().where(
        torch.tensor([True, True, False, False]), torch.tensor([4.0, 0.04, 4.0, 0.04]).cos()))  # fmt: skip


@pytest.mark.parametrize("preset", ["tiny", "tiny-enhancing"])
def test_features_codes_and_pictures_have_the_shape_of_the_config(preset):
    config = tiny("tokenizers", "vit_vqgan", preset).config
    model = ViTVQGAN(config).eval()
    pixels = images(config) / 255
    features = model.features(pixels)
    assert features.shape == (4, config.embedding_dim, *config.grid)
    (codes,) = model.encode(images(config))
    unit, table = F.normalize(features, dim=1), F.normalize(model.quantizer.codebook.weight, dim=1)
    assert torch.equal(codes.squeeze(-1), torch.einsum("bchw,kc->bkhw", unit, table).argmax(1))
    quantized = model.quantizer.embed(codes)
    torch.testing.assert_close(quantized.norm(dim=1), torch.ones(4, *config.grid))
    result = model.decode_features(quantized)
    assert result.shape == pixels.shape
    assert torch.equal(model.decode((codes,)), (result.clamp(0, 1) * 255).round().to(torch.uint8))


def test_a_patch_is_where_it_was():
    """The first and the last layer cut and lay patches alike: the same pixel is of the same token."""
    config = replace(TINY, **ENHANCING)
    model = ViTVQGAN(config).eval()
    row, column = 5, 3
    token = (row // 4) * (config.image_width // 4) + column // 4
    tokens = torch.zeros(1, 8, config.decoder.width, requires_grad=True)
    values = model.decoder.patches(tokens).transpose(1, 2).unflatten(2, config.grid)
    F.pixel_shuffle(values, 4)[0, 1, row, column].backward()
    assert tokens.grad[0].abs().sum(1).nonzero().tolist() == [[token]]
    pixels = torch.zeros(1, 3, 16, 8, requires_grad=True)
    model.encoder.patches(F.pixel_unshuffle(pixels, 4).flatten(2).transpose(1, 2))[0, token].sum().backward()
    seen = pixels.grad[0, 1].nonzero()
    assert seen.min(0).values.tolist() == [4, 0] and seen.max(0).values.tolist() == [7, 3]


def test_the_loss_is_the_sum_that_the_paper_names():
    model = ViTVQGAN(TINY).eval()
    batch = images()
    pixels = batch / 255
    made = model.reconstruction(batch, 0.5)
    outputs = model.decode_outputs(model.quantizer.embed(made.codes[0]))
    quantized = model.quantizer(model.features(pixels))
    nats = -logit_laplace_log_prob(map_pixels(pixels), outputs, torch.zeros(())).mean()
    mse = (model.decode_features(model.quantizer.embed(made.codes[0])) - pixels).square().mean()
    torch.testing.assert_close(made.loss, mse + 0.1 * nats + quantized.loss)
    assert made.images.shape == pixels.shape and torch.equal(made.codes[0], model.encode(batch)[0])
    assert set(made.metrics) >= {"mse", "logit_laplace", "commitment", "perplexity"}
    assert not any(value.requires_grad for value in made.metrics.values())


@pytest.mark.parametrize("preset", ["tiny", "tiny-enhancing"])
def test_every_parameter_learns_and_the_loss_falls(preset):
    config = tiny("tokenizers", "vit_vqgan", preset).config
    model = ViTVQGAN(config).train()
    batch = images(config, 8) // 2 + 64
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(30):
        made = model.reconstruction(batch, step / 30)
        optimizer.zero_grad()
        made.loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                learns = parameter.grad is not None and bool(parameter.grad.any())
                assert learns == (not name.endswith("positions")), name
        optimizer.step()
        losses.append(made.metrics["mse"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_positions_can_be_learned():
    model = ViTVQGAN(replace(TINY, learned_positions=True))
    model.reconstruction(images(), 0.0).loss.backward()
    assert model.encoder.transformer.positions.grad.any() and model.decoder.transformer.positions.grad.any()


def test_a_code_is_known_where_its_patch_is():
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[4:12, 0:7] = True
    known = ViTVQGAN(TINY).known_codes(mask).reshape(TINY.grid)
    assert known.nonzero().tolist() == [[1, 0], [2, 0]]


def test_the_config_survives_yaml():
    config = PRESETS["enhancing-small-large"].config
    assert build_dataclass(ViTVQGANConfig, to_plain(config), "config.yaml") == config


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 16, 8), (3, 16, 8)])
def test_other_sizes_are_refused_in_a_sentence(shape):
    model = ViTVQGAN(TINY)
    for call in (model.encode, lambda x: model.reconstruction(x, 0.0)):
        with pytest.raises(ValueError, match=r"\(B, 3, 16, 8\), the only size .* got uint8"):
            call(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"int64 \(B, 4, 2, 1\)"):
        model.decode((torch.zeros(1, 4, 4, 1, dtype=torch.int64),))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_height": 18}, "multiples of the patch size 4, got 18x8"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"variant": "other"}, "paper or enhancing"),
        ({"output": "other"}, "sigmoid or pixels"),
        ({"output": "pixels"}, "logit_laplace_weight would be ignored"),
        ({"mse_weight": -1.0}, "at least 0"),
    ],
)
def test_impossible_configs_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **change)
    with pytest.raises(ValueError, match="multiple of 4"):
        replace(TINY.encoder, width=10)
