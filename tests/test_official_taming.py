"""The importer of taming-transformers' VQGANs against outputs of the original code."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chainrule.official import compvis_vqgan

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
needs_vq = pytest.mark.skipif(not (FIXTURES / "taming_vqgan").is_dir(), reason="no fixture taming_vqgan")
needs_gumbel = pytest.mark.skipif(
    not (FIXTURES / "taming_gumbel_vqgan").is_dir(), reason="no fixture taming_gumbel_vqgan"
)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_vq
@torch.no_grad()
def test_vqgan_gives_the_outputs_of_the_original():
    source = FIXTURES / "taming_vqgan"
    assert compvis_vqgan.matches(source)
    imported = compvis_vqgan.load(source)
    model, io = imported.tokenizer, load_file(source / "io.safetensors")
    features = model.features(io["in.image"])
    close(features, io["out.prequant"])
    codes = model.encode_features(features)
    assert torch.equal(codes.squeeze(-1), io["out.codes"])
    close(model.decode_features(model.embed(codes)), io["out.reconstruction"])
    close(model.decode_features(model.embed(io["in.codes"].unsqueeze(-1))), io["out.decoded"])
    images = ((io["in.image"] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(model.encode(images)[0].squeeze(-1), io["out.codes"])
    assert not imported.non_commercial and set(imported.files) == {"model.yaml", "last.ckpt"}


@needs_gumbel
@torch.no_grad()
def test_gumbel_vqgan_gives_the_outputs_of_the_original():
    source = FIXTURES / "taming_gumbel_vqgan"
    model, io = compvis_vqgan.load(source).tokenizer, load_file(source / "io.safetensors")
    features = model.features(io["in.image"])
    close(features, io["out.prequant"])
    close(model.logits(features), io["out.logits"])
    codes = model.encode_features(features)
    assert torch.equal(codes.squeeze(-1), io["out.codes"])
    close(model.decode_features(model.embed(codes)), io["out.reconstruction"])
    close(model.decode_features(model.embed(io["in.codes"].unsqueeze(-1))), io["out.decoded"])
    assert model.temperature(0.0) == pytest.approx(0.9)


@needs_vq
def test_a_checkpoint_with_its_config_beside_it_and_one_that_does_not_fit(tmp_path):
    source = FIXTURES / "taming_vqgan"
    checkpoint, config = source / "checkpoints" / "last.ckpt", source / "configs" / "model.yaml"
    shutil.copy(checkpoint, tmp_path / "vqgan.ckpt")
    assert not compvis_vqgan.matches(tmp_path / "vqgan.ckpt")
    text = config.read_text(encoding="utf-8")
    (tmp_path / "vqgan.yaml").write_text(text, encoding="utf-8")
    assert compvis_vqgan.matches(tmp_path / "vqgan.ckpt") and compvis_vqgan.matches(tmp_path)
    assert compvis_vqgan.load(tmp_path / "vqgan.ckpt").tokenizer.spec.only.codebook_size == 64
    (tmp_path / "vqgan.yaml").write_text(text.replace("n_embed: 64", "n_embed: 65"), encoding="utf-8")
    with pytest.raises(ValueError, match="does not fit its config"):
        compvis_vqgan.load(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(text.replace("      - 8\n", "      - 4\n"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not fit its config: it has .*attention"):
        compvis_vqgan.load(tmp_path)
    (tmp_path / "vqgan.yaml").write_text(text.replace("double_z: false", "double_z: true"), encoding="utf-8")
    with pytest.raises(ValueError, match="double_z"):
        compvis_vqgan.load(tmp_path)


def original_names(model) -> dict[str, torch.Tensor]:
    """Tensors of one of our models under taming-transformers' names."""
    found = {}
    for key, value in model.state_dict().items():
        part, _, rest = key.partition(".")
        way = {"encoder": "down", "decoder": "up"}.get(part)
        for number, theirs in enumerate(("block_1", "attn_1", "block_2")):
            rest = rest.replace(f"middle.{number}.", f"mid.{theirs}.")
        if way is not None:
            rest = rest.replace("levels.", f"{way}.").replace(".blocks.", ".block.").replace(".attention.", ".attn.")
            rest = rest.replace(".resample.", f".{way}sample.").replace(".skip.", ".nin_shortcut.")
            rest = rest.replace(".out.", ".proj_out.")
            if ".qkv." in rest:
                for letter, chunk in zip("qkv", value.chunk(3), strict=True):
                    found[f"{part}.{rest.replace('.qkv.', f'.{letter}.')}"] = chunk.clone()
                continue
            found[f"{part}.{rest}"] = value
        elif part in ("to_codebook", "from_codebook"):
            found[f"{'post_' * (part == 'from_codebook')}quant_conv.{rest}"] = value
    return found


@torch.no_grad()
def test_other_configurations_come_back_as_they_went(tmp_path):
    """Greyscale, three levels, attention on two, no convolution at changes of resolution, no fixture needed."""
    config = compvis_vqgan.VQGANConfig(
        image_height=24, image_width=24, image_channels=1, width=32, multipliers=(1, 2, 1), num_blocks=2,
        attention_levels=(1, 2), latent_channels=6, resample_convolution=False, codebook_size=9, embedding_dim=5,
        beta=0.25, legacy_beta=True,
    )  # fmt: skip
    model = compvis_vqgan.VQGAN(config).eval()
    tensors = original_names(model) | {"quantize.embedding.weight": model.quantizer.codebook.weight.detach()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(
        "model: {target: taming.models.vqgan.VQModel, params: {embed_dim: 5, n_embed: 9, ddconfig: {double_z: false, "
        "z_channels: 6, resolution: 24, in_channels: 1, out_ch: 1, ch: 32, ch_mult: [1, 2, 1], num_res_blocks: 2, "
        "attn_resolutions: [12, 6], dropout: 0.0, resamp_with_conv: false}}}",
        encoding="utf-8",
    )
    again = compvis_vqgan.load(tmp_path).tokenizer
    assert again.config == config
    images = torch.randint(0, 256, (2, 1, 24, 24), dtype=torch.uint8)
    assert torch.equal(again.encode(images)[0], model.encode(images)[0])
