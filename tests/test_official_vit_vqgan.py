"""The importer of enhancing-transformers' ViT-VQGAN against what the original code gives."""

import os
import shutil
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from chainrule.official import import_release, thuanz123_vit_vqgan
from chainrule.official.reader import read_checkpoint
from chainrule.tokenizers.vit_vqgan import ENHANCING, TransformerSize, ViTVQGAN, ViTVQGANConfig

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "enhancing_vitvqgan"
needs_fixture = pytest.mark.skipif(not SOURCE.is_dir(), reason="the fixtures of official checkpoints are not here")


@needs_fixture
@torch.no_grad()
def test_codes_and_pictures_are_those_of_the_original():
    recorded = load_file(SOURCE / "io.safetensors")
    imported = import_release(SOURCE)
    model = imported.tokenizer
    assert imported.licence == "MIT" and not imported.non_commercial
    assert sorted(imported.files) == ["imagenet_vitvq_small.ckpt", "imagenet_vitvq_small.yaml"]
    z = model.features(recorded["in.image"])
    torch.testing.assert_close(z.flatten(2).transpose(1, 2), recorded["out.z"], atol=1e-4, rtol=0)
    (codes,) = model.encode((recorded["in.image"] * 255).round().to(torch.uint8))
    assert torch.equal(codes.flatten(1), recorded["out.codes"])
    pictures = model.decode_features(model.quantizer.embed(codes))
    torch.testing.assert_close(pictures, recorded["out.reconstruction"], atol=1e-4, rtol=0)
    given = recorded["in.codes"].reshape(-1, *model.spec.only.shape)
    pictures = model.decode_features(model.quantizer.embed(given))
    torch.testing.assert_close(pictures, recorded["out.decoded"], atol=1e-4, rtol=0)


def write_release(folder: Path, model: ViTVQGAN, beta: float = 0.25) -> None:
    """A model of ours in the release's files, under its names."""
    config = model.config
    tensors = {"loss.discriminator.weight": torch.ones(3)}
    for part, place in (("encoder", "en"), ("decoder", "de")):
        transformer = getattr(model, part).transformer
        tensors[f"{part}.{place}_pos_embedding"] = transformer.positions[None]
        tensors |= {f"{part}.transformer.norm.{k}": v for k, v in transformer.norm.state_dict().items()}
        for number, block in enumerate(transformer.blocks):
            modules = {
                "0.norm": block.attention_norm, "0.fn.to_qkv": block.attention.query_key_value,
                "0.fn.to_out": block.attention.output, "1.norm": block.mlp_norm, "1.fn.net.0": block.mlp[0],
                "1.fn.net.2": block.mlp[2],
            }  # fmt: skip
            for name, module in modules.items():
                tensors |= {f"{part}.transformer.layers.{number}.{name}.{k}": v for k, v in module.state_dict().items()}
    shape = (config.image_channels, config.patch_size, config.patch_size)
    tensors |= {
        "encoder.to_patch_embedding.0.weight": model.encoder.patches.weight.unflatten(1, shape),
        "encoder.to_patch_embedding.0.bias": model.encoder.patches.bias,
        "decoder.to_pixel.1.weight": model.decoder.patches.weight.T.unflatten(1, shape),
        "decoder.to_pixel.1.bias": model.decoder.bias,
        "quantizer.embedding.weight": model.quantizer.codebook.weight,
    }
    for ours, theirs in ((model.to_lookup, "pre_quant"), (model.from_lookup, "post_quant")):
        tensors |= {f"{theirs}.{k}": v for k, v in ours.state_dict().items()}
    sizes = {
        part: dict(zip(("dim", "depth", "heads", "mlp_dim"), astuple(size), strict=True))
        for part, size in (("encoder", config.encoder), ("decoder", config.decoder))
    }
    params = {
        "image_key": "image", "image_size": config.image_height, "patch_size": config.patch_size, **sizes,
        "quantizer": {"embed_dim": config.embedding_dim, "n_embed": config.codebook_size, "beta": beta},
        "loss": {"target": "enhancing.losses.vqperceptual.VQLPIPSWithDiscriminator"},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "weights.ckpt")
    config_text = yaml.safe_dump({"model": {"target": thuanz123_vit_vqgan.TARGET, "params": params}})
    (folder / "weights.yaml").write_text(config_text)


CONFIGS = {
    "grey, patches of 4, one head of the full width": ViTVQGANConfig(
        image_height=16, image_width=16, image_channels=1, patch_size=4, codebook_size=24, embedding_dim=4,
        encoder=TransformerSize(width=64, num_layers=1, num_heads=1, mlp_width=32),
        decoder=TransformerSize(width=32, num_layers=3, num_heads=2, mlp_width=48), **ENHANCING,
    ),
    "two images of one patch": ViTVQGANConfig(
        image_height=8, image_width=8, patch_size=8, codebook_size=5, embedding_dim=32, beta=0.5,
        encoder=TransformerSize(width=16, num_layers=2, num_heads=3, mlp_width=8),
        decoder=TransformerSize(width=64, num_layers=1, num_heads=1, mlp_width=8), **ENHANCING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_other_configurations_go(tmp_path, name):
    config = CONFIGS[name]
    model = ViTVQGAN(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    write_release(tmp_path, model, config.beta)
    for source in (tmp_path, tmp_path / "weights.ckpt"):
        imported = import_release(source)
        assert imported.tokenizer.config == config
        images = torch.randint(0, 256, (3, *model.image_shape), dtype=torch.uint8)
        (codes,) = model.encode(images)
        assert torch.equal(imported.tokenizer.encode(images)[0], codes)
        assert torch.equal(imported.tokenizer.decode((codes,)), model.decode((codes,)))


def test_files_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    model = ViTVQGAN(next(iter(CONFIGS.values())))
    write_release(tmp_path / "good", model)

    def refused(change_config=None, change_weights=None) -> str:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        if change_config:
            config = yaml.safe_load((folder / "weights.yaml").read_text())
            change_config(config["model"]["params"])
            (folder / "weights.yaml").write_text(yaml.safe_dump(config))
        if change_weights:
            checkpoint = read_checkpoint(folder / "weights.ckpt")
            change_weights(checkpoint)
            torch.save(checkpoint, folder / "weights.ckpt")
        with pytest.raises(ValueError) as caught:
            import_release(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'encoder' is missing" in refused(lambda c: c.pop("encoder"))
    assert "mlp.0.weight should be (99, 32)" in refused(lambda c: c["decoder"].update(mlp_dim=99))
    assert "positions should be (4, 64), is (16, 64)" in refused(lambda c: c.update(image_size=8))
    assert "residual" in refused(lambda c: c["quantizer"].update(use_residual=True))
    assert "must be" in refused(lambda c: c.update(image_size=[16, 16]))
    assert "pre_quant.bias" in refused(None, lambda c: c["state_dict"].pop("pre_quant.bias"))
    assert "no tensors" in refused(None, lambda c: c["state_dict"].clear())
    assert "layers.1" in refused(lambda c: c["encoder"].update(depth=2))
    (tmp_path / "good" / "weights.yaml").unlink()
    with pytest.raises(ValueError, match="none of the releases"):
        import_release(tmp_path / "good" / "weights.ckpt")
