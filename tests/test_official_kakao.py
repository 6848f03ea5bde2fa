"""The importer of kakaobrain's RQ-VAEs against outputs of the original code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chainrule.official import kakao_rqvae
from chainrule.tokenizers.rqvae import RQVAE, RQVAEConfig

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "kakao_rqvae"
needs_fixture = pytest.mark.skipif(not SOURCE.is_dir(), reason="no fixture kakao_rqvae")


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_fixture
@torch.no_grad()
def test_rqvae_gives_the_outputs_of_the_original():
    assert kakao_rqvae.matches(SOURCE) and kakao_rqvae.matches(SOURCE / "model.pt")
    imported = kakao_rqvae.load(SOURCE)
    model, io = imported.tokenizer, load_file(SOURCE / "io.safetensors")
    features = model.features(io["in.image"])
    close(features.permute(0, 2, 3, 1), io["out.z_e"])
    codes = model.encode_features(features)
    assert torch.equal(codes, io["out.codes"])
    close(model.decode_features(model.embed(codes)), io["out.reconstruction"])
    close(model.decode_features(model.embed(io["in.codes"])), io["out.decoded"])
    each = model.quantizer.embed_depths(codes)
    for depth in range(4):
        close(model.decode_features(model.embed(codes[..., : depth + 1])), io[f"out.partial_add_{depth}"])
    close(model.decode_features(each[..., 1, :].permute(0, 3, 1, 2)), io["out.partial_select_1"])
    close(model.quantizer.embed_depths(io["in.codes"]), io["out.code_emb_with_depth"])
    assert imported.non_commercial and "non-commercial" in imported.licence
    assert set(imported.files) == {"config.yaml", "model.pt"}
    partial = model.decode_partial((codes,), 2)
    assert partial.dtype == torch.uint8 and partial.shape == io["in.image"].shape


CONFIG = """
arch:
  type: rq-vae
  hparams: {bottleneck_type: rq, embed_dim: 4, n_embed: [7, 7], latent_shape: [2, 2, 4], code_shape: [2, 2, 2],
            shared_codebook: false, decay: 0.9, loss_type: l1, restart_unused_codes: false}
  ddconfig: {double_z: false, z_channels: 6, resolution: 4, in_channels: 3, out_ch: 3, ch: 32, ch_mult: [1, 1],
             num_res_blocks: 1, attn_resolutions: []}
"""


def test_one_codebook_per_depth_and_configs_that_are_not_supported(tmp_path):
    model = RQVAE(
        RQVAEConfig(image_height=4, image_width=4, width=32, multipliers=(1, 1), num_blocks=1, attention_levels=(),
                    latent_channels=6, codebook_size=7, embedding_dim=4, depth=2, shared=False, decay=0.9, error="l1",
                    restart_below=0.0)
    ).eval()  # fmt: skip
    from test_official_taming import original_names

    tensors = {key: value.detach() for key, value in original_names(model).items()}
    for index, codebook in enumerate(model.quantizer.codebooks):
        tensors[f"quantizer.codebooks.{index}.weight"] = torch.cat([codebook.weight.detach(), torch.zeros(1, 4)])
        tensors[f"quantizer.codebooks.{index}.cluster_size_ema"] = torch.arange(7.0)
        tensors[f"quantizer.codebooks.{index}.embed_ema"] = torch.zeros(7, 4)
    torch.save({"state_dict": tensors}, tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    again = kakao_rqvae.load(tmp_path).tokenizer
    assert again.config == model.config
    assert torch.equal(again.quantizer.codebooks[1].usage, torch.arange(7.0))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(again.encode(images)[0], model.encode(images)[0])
    for old, new, words in (
        ("[7, 7]", "[7, 8]", "depths differ in n_embed"),
        ("code_shape: [2, 2, 2]", "code_shape: [1, 1, 2]", "several latent positions"),
        ("embed_dim: 4", "embed_dim: 5", "does not fit its config"),
        ("embed_dim: 4, ", "", "'embed_dim' is missing"),
    ):
        assert old in CONFIG
        (tmp_path / "config.yaml").write_text(CONFIG.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            kakao_rqvae.load(tmp_path)
