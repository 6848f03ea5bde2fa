"""Another decoder over the codes of a trained tokenizer: what encodes stays, and so do the codes and their prior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import Tokenizer, entries, entry
from chainrule.data import ImageDataset
from chainrule.pipeline import Pipeline
from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
from chainrule.recipe import build_recipe
from chainrule.saving.model import tokenizer_hash
from chainrule.strict import build_dataclass, to_plain, write_yaml
from chainrule.training import train
from chainrule.zoo import read_card, save
from sizes import tiny
from test_cli import refused, run

CHANGES = {
    "dvae": {"width": 12, "blocks_per_group": 2, "initial_width": 8},
    "rqvae": {"width": 12, "num_blocks": 2},
    "vit_vqgan": {
        "decoder": {"width": 12, "num_layers": 3, "num_heads": 2, "mlp_width": 24}, "output": "pixels",
        "logit_laplace_weight": 0.0,
    },
    "vqgan": {"width": 12, "latent_channels": 8, "attention_levels": []},
    "vqgan_gumbel": {"multipliers": [1, 1, 3]},
    "vqvae": {"width": 12, "num_blocks": 3},
    "vqvae2": {},
}  # fmt: skip
ABLE = [name for name, one in entries("tokenizers").items() if getattr(one.model, "decoder_parts", ())]


def build(name: str) -> Tokenizer:
    torch.manual_seed(0)
    found = entry("tokenizers", name)
    return found.model(tiny("tokenizers", name).config).eval()


def noise(tokenizer: Tokenizer, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, *tokenizer.image_shape), dtype=torch.uint8, generator=generator)


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def recipe(changes: dict, **sections) -> dict:
    plain = {
        "data": {"source": "noise"},
        "tokenizer": {"path": "old", "decoder": changes},
        "losses": {"adversarial": {"width": 4, "num_layers": 1, "start": 0.5}},
        "training": {
            "steps": 4, "batch_size": 4, "learning_rate": 1e-2, "optimizer": "adamw", "weight_decay": 0.1,
            "ema_decay": 0.5, "schedule": "constant", "warmup_steps": 0, "gradient_clip": 0.0, "precision": "float32",
            "save_every": 2, "log_every": 2,
        },
        "evaluation": {"limit": 6},
    }  # fmt: skip
    return {name: value for name, value in (plain | sections).items() if value is not None}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder for a tokenizer, `old`, with a data set `noise` of its images."""
    monkeypatch.chdir(tmp_path)

    def load(config, *_):
        return ImageDataset(noise(chainrule.load("old")), name=config.source)

    monkeypatch.setattr("chainrule.training.tasks.examples.load", load)


# ---------------------------------------------------------------- tokenizers


def test_every_tokenizer_that_says_so_is_tested():
    assert list(CHANGES) == ABLE


@pytest.mark.parametrize("name", ABLE)
def test_the_parts_of_a_decoder_have_no_part_in_encoding(name):
    tokenizer = build(name)
    images = noise(tokenizer)
    codes, decoded = tokenizer.encode(images), tokenizer.decode(tokenizer.encode(images))
    with torch.no_grad():
        for part in tokenizer.decoder_parts:
            for parameter in tokenizer.get_submodule(part).parameters():
                parameter.add_(0.3)
    assert equal(tokenizer.encode(images), codes) and not torch.equal(tokenizer.decode(codes), decoded)


@pytest.mark.parametrize("name", ABLE)
def test_weights_of_the_same_shape_are_kept(name):
    tokenizer = build(name)
    images = noise(tokenizer)
    same = tokenizer.with_decoder(tokenizer.config)
    assert same.encoder_config is None
    assert torch.equal(same.decode(same.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    config = build_dataclass(type(tokenizer.config), to_plain(tokenizer.config) | CHANGES[name], "r")
    larger = tokenizer.with_decoder(config).eval()
    assert equal(larger.encode(images), tokenizer.encode(images)) and larger.config == config
    assert larger.decode(larger.encode(images)).shape == images.shape
    before, after = tokenizer.state_dict(), larger.state_dict()
    kept = [key for key in after if key in before and torch.equal(after[key], before[key])]
    shapes = [key for key in after if key in before and after[key].shape == before[key].shape]
    assert kept == shapes and (len(kept) < len(after)) == bool(CHANGES[name])
    shared = {id(parameter) for parameter in tokenizer.parameters()}
    assert not any(id(value) in shared for key, value in larger.named_parameters() if tokenizer.is_decoding(key))
    assert larger.same_codes(tokenizer) and tokenizer.same_codes(larger)


def test_a_decoder_of_other_codes_is_refused():
    tokenizer = build("vqgan")
    changes = {"multipliers": [2], "attention_levels": []}
    config = build_dataclass(type(tokenizer.config), to_plain(tokenizer.config) | changes, "r")
    with pytest.raises(ValueError, match="this decoder is for codes .*, the tokenizer gives "):
        tokenizer.with_decoder(config)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", ABLE)
def test_codes_are_the_same_before_and_after(here, name):
    tokenizer = build(name)
    save(tokenizer, "old")
    Path("recipe.yaml").write_text(write_yaml(recipe(CHANGES[name])), encoding="utf-8")
    assert train("recipe.yaml", "run", ["training.steps=2"], quiet=True).steps == 2
    result = train("run/recipe.yaml", "run", ["training.steps=4"], quiet=True)
    larger, images = chainrule.load("run"), noise(tokenizer)
    assert equal(larger.encode(images), tokenizer.encode(images)) and tokenizer.same_codes(larger)
    before, after = tokenizer.state_dict(), larger.state_dict()
    for key, value in after.items():
        assert tokenizer.is_decoding(key) or torch.equal(value, before[key]), key
    untrained, _ = build_recipe(recipe(CHANGES[name]), "r").build()
    start = dict(untrained.model.tokenizer.named_parameters())
    learned = [key for key, value in larger.named_parameters() if not torch.equal(value, start[key])]
    for part in tokenizer.decoder_parts:
        assert any(key.startswith(f"{part}.") for key in learned), part
    assert all(tokenizer.is_decoding(key) for key in learned)
    assert tokenizer_hash(larger) != tokenizer_hash(tokenizer)
    assert result.steps == 4 and read_card("run")["recipe"]["tokenizer"]["hash"] == tokenizer_hash(tokenizer)
    assert to_plain(larger.config) == to_plain(tokenizer.config) | CHANGES[name]


def test_it_can_be_done_again(here):
    tokenizer = build("vqvae")
    save(tokenizer, "old")
    once = build_recipe(recipe(CHANGES["vqvae"]), "r").build()[0].model.tokenizer
    save(once, "old")
    twice = build_recipe(recipe({"num_blocks": 1}), "r").build()[0].model.tokenizer
    assert twice.config.width == 12 and twice.encoder_config == tokenizer.config
    assert twice.same_codes(tokenizer)


@pytest.mark.parametrize(
    ("name", "sections", "sentence"),
    [
        ("vqvae2", {"tokenizer": {"path": "old", "decoder": {"width": 5}}},
         "'tokenizer.decoder.width' is not the decoder's alone; .* no field, only the weights"),
        ("pixels", {}, "the tokenizer pixels has nothing to learn; add the section 'prior'"),
        ("vqvae", {"tokenizer": {"path": "old", "decoder": {"embedding_dim": 5}}},
         "'tokenizer.decoder.embedding_dim' is not the decoder's alone; .* width, residual_width, num_blocks"),
        ("vqvae", {"tokenizer": {"path": "old", "decoder": {"num_blocks": -1}}}, "'tokenizer.decoder': .*num_blocks"),
        ("vqvae", {"prior": {"name": "gpt"}, "losses": None}, "unknown key 'decoder' in 'tokenizer'"),
    ],
)  # fmt: skip
def test_mistakes_in_recipes(here, name, sections, sentence):
    save(build(name), "old")
    with pytest.raises(ValueError, match=sentence):
        build_recipe(recipe({}, **sections), "r").build()


def test_a_tokenizer_that_does_not_tell_what_decodes(here, monkeypatch):
    save(build("vqvae"), "old")
    monkeypatch.setattr("chainrule.tokenizers.vqvae.VQVAE.decoder_parts", ())
    with pytest.raises(ValueError, match="vqvae has no decoder that could change while its codes stay"):
        build_recipe(recipe({}), "r").build()


# ---------------------------------------------------------------- with a prior


def test_a_prior_of_the_old_codes_draws_by_the_new_decoder(here):
    old = build("vqvae")
    save(old, "old")
    new = build_recipe(recipe(CHANGES["vqvae"]), "r").build()[0].model.tokenizer
    with torch.no_grad():
        new.decoder.conv_in.bias.add_(1.0)
    save(new, "new")
    prior = PixelCNN(old.spec, PixelCNNConfig(num_layers=2, width=4, head_width=6, num_classes=3))
    Pipeline(old, prior, ["a", "b", "c"], {"note": "prior"}).save("model")
    model = chainrule.load("model")
    better = model.with_tokenizer(chainrule.load("new"))
    better.save("better")
    again = chainrule.load("better")
    images = noise(old)
    assert torch.equal(again.log_prob(images, label=1), model.log_prob(images, label=1))
    assert again.class_names == ("a", "b", "c") and again.card == {"note": "prior"}
    drawn = again.sample(3, label=1)
    assert torch.equal(drawn, better.sample(3, label=1)) and not torch.equal(drawn, model.sample(3, label=1))
    run("sample", "model", "-n", "3", "--label", "1", "--decoder", "new", "--no-metadata", "--out", "new.png")
    run("sample", "better", "-n", "3", "--label", "1", "--no-metadata", "--out", "better.png")
    assert Path("new.png").read_bytes() == Path("better.png").read_bytes()

    with torch.no_grad():
        new.encoder.out.bias.add_(1e-3)
    save(new, "other")
    assert "does not encode as the model's own" in refused("sample", "model", "--decoder", "other", "--force")
    with pytest.raises(ValueError, match="does not encode as the model's own"):
        model.with_tokenizer(build("vqgan"))
