"""The importer of taming-transformers' transformers against outputs of the original code."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core import CodeSpec, Context
from chainrule.decoding import Sampling, image_seeds, sample
from chainrule.official import compvis_net2net, compvis_vqgan, convert
from chainrule.official.renaming import MINGPT
from chainrule.priors.gpt import GPT, GPTConfig
from test_official_taming import original_names

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "taming_net2net"
needs_fixture = pytest.mark.skipif(not SOURCE.is_dir(), reason="no fixture taming_net2net")


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_fixture
@torch.no_grad()
def test_it_gives_the_outputs_of_the_original():
    assert compvis_net2net.matches(SOURCE) and not compvis_vqgan.matches(SOURCE)
    imported = compvis_net2net.load(SOURCE)
    tokenizer, prior, io = imported.tokenizer, imported.prior, load_file(SOURCE / "io.safetensors")
    context, images = Context(label=io["in.class"]), ((io["in.image"] + 1) * 127.5).round().to(torch.uint8)
    assert not prior.training and not tokenizer.training and tokenizer.spec == prior.spec
    close(prior((io["in.codes"].unsqueeze(-1),), context)[0].flatten(1, 3), io["out.logits"])
    codes = tokenizer.encode(images)
    assert torch.equal(codes[0].squeeze(-1), io["out.image_codes"])
    close(prior(codes, context)[0].flatten(1, 3), io["out.image_logits"])
    greedy = sample(prior.runner(), context, image_seeds(0, 2), Sampling(temperature=0))
    assert torch.equal(greedy[0].squeeze(-1), io["out.greedy"])
    close(tokenizer.decode_features(tokenizer.embed(io["in.codes"].unsqueeze(-1))), io["out.decoded"])
    assert not imported.non_commercial and set(imported.files) == {"2021-04-03T19-39-50-project.yaml", "last.ckpt"}


@needs_fixture
def test_it_becomes_a_pipeline(tmp_path):
    convert(SOURCE, tmp_path / "model")
    pipeline, io = chainrule.load(tmp_path / "model"), load_file(SOURCE / "io.safetensors")
    drawn = pipeline.sample(2, io["in.class"], temperature=0)
    assert torch.equal(drawn, pipeline.tokenizer.decode((io["out.greedy"].unsqueeze(-1),)))
    with pytest.raises(ValueError, match=r"label in 0\.\.11"):
        pipeline.sample(1)


@needs_fixture
def test_what_does_not_fit_is_refused(tmp_path):
    (config,) = (SOURCE / "configs").iterdir()
    shutil.copy(SOURCE / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    text = config.read_text(encoding="utf-8")
    for old, new, message in [
        ("n_layer: 2", "n_layer: 1", "does not fit its config: it has blocks.1"),
        ("n_layer: 2", "n_layer: 3", "does not fit its config: nothing in it is blocks.2"),
        ("block_size: 65", "block_size: 100", "positions should be"),
        ("n_head: 4", "n_unmasked: 1", "n_unmasked"),
        ("taming.modules.util.Labelator", "taming.models.vqgan.VQModel", "only by a class or by nothing"),
        ("mingpt.GPT", "mingpt.CodeGPT", "only mingpt.GPT"),
        ("n_embed: 48", "n_embed: 49", "does not fit its config"),
        ("n_classes: 12", "num: 12", "'n_classes' is missing or wrong"),
        ("cond_stage_key:", "permuter_config: {target: Spiral}\n    cond_stage_key:", "another order than raster"),
    ]:
        assert old in text
        (tmp_path / "project.yaml").write_text(text.replace(old, new), encoding="utf-8")
        assert compvis_net2net.matches(tmp_path)
        with pytest.raises(ValueError, match=message):
            compvis_net2net.load(tmp_path)


@pytest.mark.parametrize("block_size", [16, 17, 30])
@torch.no_grad()
def test_a_model_without_condition_over_a_gumbel_vqgan_comes_back_as_it_went(tmp_path, block_size):
    """Start token 2, a vocabulary larger than the VQGAN's, no fixture needed."""
    config = compvis_vqgan.VQGANGumbelConfig(
        image_height=8, image_width=8, width=32, multipliers=(1, 1), num_blocks=1, attention_levels=(),
        latent_channels=6, codebook_size=9, embedding_dim=6,
    )  # fmt: skip
    tokenizer = compvis_vqgan.VQGANGumbel(config).eval()
    prior = GPT(CodeSpec.single(4, 4, 1, 9), GPTConfig(num_layers=2, width=12, num_heads=3, dropout=0.1)).eval()
    for parameter in prior.parameters():
        parameter.normal_(std=0.3)
    tensors = original_names(tokenizer) | {
        "quantize.embed.weight": tokenizer.quantizer.weight,
        "quantize.proj.weight": tokenizer.to_logits.weight,
        "quantize.proj.bias": tokenizer.to_logits.bias,
    }
    tensors = {f"first_stage_model.{key}": value.detach().clone() for key, value in tensors.items()}
    tensors |= {f"transformer.{key}": value for key, value in original_transformer(prior, 11, block_size).items()}
    tensors["transformer.tok_emb.weight"][2] = prior.beginning
    prior.tokens.weight[2] = prior.beginning
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(
        "model: {target: taming.models.cond_transformer.Net2NetTransformer, params: {unconditional: true, "
        "sos_token: 2, cond_stage_config: __is_unconditional__, transformer_config: {target: "
        f"taming.modules.transformer.mingpt.GPT, params: {{vocab_size: 11, block_size: {block_size}, n_layer: 2, "
        "n_head: 3, n_embd: 12, resid_pdrop: 0.1}}, first_stage_config: {target: taming.models.vqgan.GumbelVQ, params: "
        "{embed_dim: 6, n_embed: 9, ddconfig: {double_z: false, z_channels: 6, resolution: 8, in_channels: 3, "
        "out_ch: 3, ch: 32, ch_mult: [1, 1], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}}}}}",
        encoding="utf-8",
    )
    imported = compvis_net2net.load(tmp_path)
    assert imported.prior.config == prior.config and imported.prior.spec == prior.spec == imported.tokenizer.spec
    codes = (torch.randint(0, 9, (2, 4, 4, 1)),)
    assert torch.equal(imported.prior(codes, Context())[0], prior(codes, Context())[0])


def original_transformer(prior, vocab_size, block_size) -> dict[str, torch.Tensor]:
    """Tensors of one of our models under minGPT's names; rows and positions that it does not need are random."""
    width = prior.config.width
    found = {
        "tok_emb.weight": torch.randn(vocab_size, width),
        "head.weight": torch.randn(vocab_size, width),
        "pos_emb": torch.randn(1, block_size, width),
        "ln_f.weight": prior.head.norm.weight,
        "ln_f.bias": prior.head.norm.bias,
    }
    found["tok_emb.weight"][: len(prior.tokens.weight)] = prior.tokens.weight
    found["head.weight"][: len(prior.head.linear.weight)] = prior.head.linear.weight
    found["pos_emb"][0, : len(prior.positions)] = prior.positions[:block_size]
    for index, block in enumerate(prior.blocks):
        found[f"blocks.{index}.attn.mask"] = torch.ones(1, 1, block_size, block_size)
        for kind in ("weight", "bias"):
            projections = getattr(block.query_key_value, kind).chunk(3)
            for name, value in zip(("query", "key", "value"), projections, strict=True):
                found[f"blocks.{index}.attn.{name}.{kind}"] = value
            for theirs, ours in MINGPT.items():
                if ":" not in ours:
                    name = theirs.replace("*", kind)
                    found[f"blocks.{index}.{name}"] = getattr(getattr(block, ours.removesuffix(".*")), kind)
    return {key: value.detach().clone() for key, value in found.items()}
