"""The importer of minDALL-E against outputs of the original code."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core import Context
from chainrule.decoding import Known, Sampling, image_seeds, sample
from chainrule.official import compvis_vqgan, convert, import_release, kakao_mindalle

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "mindalle_kakao"
pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="no fixture mindalle_kakao")


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def prompts() -> list[str]:
    return json.loads((SOURCE / "prompts.json").read_text(encoding="utf-8"))


@torch.no_grad()
def test_it_gives_the_outputs_of_the_original():
    assert kakao_mindalle.matches(SOURCE) and not compvis_vqgan.matches(SOURCE)
    imported = import_release(SOURCE)
    tokenizer, prior, io = imported.tokenizer, imported.prior, load_file(SOURCE / "io.safetensors")
    with pytest.warns(UserWarning, match="1 of 6 texts are longer than 16 tokens"):
        ids = imported.text_tokenizer.encode(prompts())
    assert torch.equal(ids, io["out.token_ids"])
    codes = ids[:2, None, :, None], io["in.codes"].unsqueeze(-1)
    text, image = prior(codes, Context())
    close(image.flatten(1, 3), io["out.logits_img"])
    close(text.flatten(1, 3)[:, 1:], io["out.logits_txt"])
    assert torch.equal(text[:, 0, 0, 0], torch.zeros(2, 320))
    images = ((io["in.image"] + 1) * 127.5).round().to(torch.uint8)
    found = tokenizer.encode(images)
    assert torch.equal(found[0].squeeze(-1), io["out.image_codes"])
    close(tokenizer.decode_features(tokenizer.embed(found[0])), io["out.reconstruction"])
    close(tokenizer.decode_features(tokenizer.embed(codes[1])), io["out.decoded"])
    known = Known(prior.spec.flatten(codes), torch.arange(80) < 16)
    greedy = sample(prior.runner(), Context(), image_seeds(0, 2), Sampling(temperature=0), known)
    assert torch.equal(greedy[1].squeeze(-1), io["out.greedy"])
    assert imported.non_commercial and len(imported.files) == 5


def test_it_becomes_a_pipeline(tmp_path):
    convert(SOURCE, tmp_path / "model")
    pipeline, io = chainrule.load(tmp_path / "model"), load_file(SOURCE / "io.safetensors")
    drawn = pipeline.sample(2, text=prompts()[:2], temperature=0)
    assert torch.equal(drawn, pipeline.tokenizer.decode((io["out.greedy"].unsqueeze(-1),)))
    assert pipeline.card["non_commercial"] is True


def test_the_approximate_gelu_and_layers_without_biases(tmp_path):
    """Biases of zero are the same as none; x sigmoid(1.702 x) is another function."""
    folder = tmp_path / "release"
    shutil.copytree(SOURCE, folder)
    imported = import_release(folder)
    path = folder / "stage2_last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for key in [key for key in checkpoint["state_dict"] if key.startswith("blocks.") and key.endswith("bias")]:
        if ".ln" not in key:
            del checkpoint["state_dict"][key]
    torch.save(checkpoint, path)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    text = text.replace("gelu_use_approx: false", "gelu_use_approx: true").replace("_bias: true", "_bias: false")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    other = import_release(folder)
    assert other.prior.config.quick_gelu and not imported.prior.config.quick_gelu
    block = other.prior.blocks[0]
    assert not any(layer.bias.any() for layer in (block.query_key_value, block.projection, block.expand))
    x = torch.randn(5)
    torch.testing.assert_close(block.activation(x), x * torch.sigmoid(1.702 * x))


def test_what_does_not_fit_is_refused(tmp_path):
    shutil.copytree(SOURCE, tmp_path, dirs_exist_ok=True)
    text = (SOURCE / "config.yaml").read_text(encoding="utf-8")
    for old, new, message in [
        ("n_layers: 3", "n_layers: 2", "does not fit its config: it has blocks.2"),
        ("n_layers: 3", "n_layers: 4", r"nothing in it is blocks\.3"),
        ("ctx_len_txt: 16", "ctx_len_txt: 17", "should be"),
        ("ctx_len_img: 64", "ctx_len_img: 32", "models 32 codes of 60, the VQGAN gives 64 of 60"),
        ("context_length: 16", "context_length: 64", "context_length must be ctx_len_txt, which is 16"),
        ("vocab_size_txt: 320", "vocab_size_txt: 321", "should be"),
        ("n_embed: 60", "n_embed: 61", "does not fit its config"),
    ]:
        assert old in text
        (tmp_path / "config.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
        assert kakao_mindalle.matches(tmp_path)
        with pytest.raises(ValueError, match=message):
            kakao_mindalle.load(tmp_path)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    vocabulary = tmp_path / "tokenizer" / "bpe-16k-vocab.json"
    words = json.loads(vocabulary.read_text(encoding="utf-8"))
    vocabulary.write_text(json.dumps({"[PAD]": 1, "[UNK]": 0} | {k: v for k, v in words.items() if v > 1}))
    with pytest.raises(ValueError, match=r"\[PAD\] must be token 0 of bpe-16k-vocab.json, is 1"):
        kakao_mindalle.load(tmp_path)
    vocabulary.write_text("{")
    with pytest.raises(ValueError, match=r"bpe-16k-vocab.json or bpe-16k-merges.txt is missing or damaged"):
        kakao_mindalle.load(tmp_path)
