"""The importer of kakaobrain's RQ-Transformers against outputs of the original code."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import chainrule
from chainrule.core import Context
from chainrule.decoding import Sampling, sample
from chainrule.official import convert, import_release, kakao_rqtransformer, kakao_rqvae
from chainrule.official.reader import read_checkpoint, sha256
from chainrule.recipe import build_recipe
from chainrule.zoo import read_card

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "kakao_rqtransformer"
NOTES = (
    "the tensors of model.pt lie under state_dict",
    "the tensors of model.pt lie under state_dict_ema, with module in their names",
)
needs_fixture = pytest.mark.skipif(not SOURCE.is_dir(), reason="no fixture kakao_rqtransformer")


@needs_fixture
@torch.no_grad()
def test_logits_and_greedy_codes_are_those_of_the_original():
    imported = kakao_rqtransformer.load(SOURCE)
    prior, io = imported.prior, load_file(SOURCE / "io.safetensors")
    context = Context(label=io["in.cond"][:, 0])
    torch.testing.assert_close(prior((io["in.codes"],), context)[0], io["out.logits"], rtol=0, atol=1e-4)
    greedy = sample(prior.runner(), context, [0, 1], Sampling(temperature=0))
    assert torch.equal(greedy[0], io["out.greedy"])
    tokenizer = imported.tokenizer
    image = tokenizer.decode_features(tokenizer.embed(greedy[0]))
    torch.testing.assert_close(image, io["out.greedy_image"], rtol=0, atol=1e-4)
    assert imported.non_commercial and "non-commercial" in imported.licence
    assert imported.files == {
        f"{stage}/{name}": sha256(SOURCE / stage / name)
        for stage in ("stage1", "stage2")
        for name in ("config.yaml", "model.pt")
    }


@needs_fixture
@pytest.mark.parametrize("part", ["", "stage2", "stage2/model.pt"])
def test_a_release_becomes_a_pipeline(tmp_path, part):
    source = SOURCE / part
    assert kakao_rqtransformer.matches(source) and not kakao_rqvae.matches(source)
    imported = convert(source, tmp_path / "model")
    pipeline = chainrule.load(tmp_path / "model")
    codes = (load_file(SOURCE / "io.safetensors")["in.codes"],)
    context = Context(label=torch.tensor([3, 9]))
    assert torch.equal(pipeline.prior.log_prob(codes, context), imported.prior.log_prob(codes, context))
    assert read_card(tmp_path / "model")["non_commercial"]
    assert not kakao_rqtransformer.matches(SOURCE / "stage1")


def altered(folder: Path, change=lambda architecture, tensors: None) -> Path:
    """A copy of the release whose second stage `change` has altered."""
    release = folder / "release"
    if not release.exists():
        shutil.copytree(SOURCE, release)
    config = yaml.safe_load((SOURCE / "stage2" / "config.yaml").read_text(encoding="utf-8"))
    tensors = read_checkpoint(SOURCE / "stage2" / "model.pt")["state_dict"]
    change(config["arch"], tensors)
    (release / "stage2" / "config.yaml").unlink()
    (release / "stage2" / "model.pt").unlink()
    (release / "stage2" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.save(
        {"state_dict_ema": {"module." + key: value for key, value in tensors.items()}}, release / "stage2/model.pt"
    )
    return release


def text(architecture, tensors):
    """Makes the second stage one that is conditioned by texts of 5 tokens in 0..6."""
    architecture.update(block_size_cond=5, vocab_size_cond=7, vocab_size=[40] * 4)
    tensors.update({
        "pos_emb_cond": torch.randn(1, 5, 48), "cond_emb.weight": torch.randn(7, 48),
        "cond_classifier.layer_norm.weight": torch.ones(48), "cond_classifier.layer_norm.bias": torch.zeros(48),
        "cond_classifier.linear.weight": torch.randn(7, 48), "cond_classifier.linear.bias": torch.zeros(7),
    })  # fmt: skip


@needs_fixture
@pytest.mark.parametrize("place", ["stage2", ".", "tokenizer", "stage2/tokenizer"])
def test_the_text_tokenizer_lies_beside_the_checkpoint(tmp_path, place):
    folder = altered(tmp_path, text) / place
    folder.mkdir(exist_ok=True)
    (folder / "bpe-vocab.json").write_text(
        json.dumps({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "b</w>": 4, "ab</w>": 5})
    )
    with pytest.raises(ValueError, match=r"bpe-merges.txt is missing; bpe-vocab.json needs it"):
        import_release(tmp_path / "release")
    (folder / "bpe-merges.txt").write_text("#version: 0.2\na b</w>\n")
    imported = convert(tmp_path / "release", tmp_path / "model")
    assert {"bpe-vocab.json", "bpe-merges.txt"} < imported.files.keys() and imported.notes == NOTES
    pipeline = chainrule.load(tmp_path / "model")
    assert pipeline.text_tokenizer.encode(["AB b"]).tolist() == [[5, 4, 0, 0, 0]]
    (folder / "other-vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="several vocabularies"):
        import_release(tmp_path / "release")


@needs_fixture
def test_a_missing_text_tokenizer_is_said_and_training_is_refused(tmp_path):
    imported = convert(altered(tmp_path, text), tmp_path / "model")
    assert imported.text_tokenizer is None and "its text tokenizer is not there" in imported.notes[-1]
    recipe = {"data": {"source": "shapes"}, "prior": {"path": str(tmp_path / "model")}, "training": {"steps": 1}}
    with pytest.raises(ValueError, match="draws from texts but holds no text tokenizer"):
        build_recipe(recipe, "recipe").build()


@needs_fixture
@torch.no_grad()
def test_texts_and_models_without_a_condition(tmp_path):
    def nothing(architecture, tensors):
        architecture.update(block_size_cond=1, vocab_size_cond=1)
        tensors["cond_emb.weight"] = tensors["cond_emb.weight"][4:5]

    prior = import_release(altered(tmp_path, text)).prior
    assert (prior.config.text_length, prior.config.text_vocab_size, prior.conditions.num_classes) == (5, 7, 0)
    codes = torch.randint(0, 40, (2, 8, 8, 4))
    assert prior.forward_with_text((codes,), Context(text=torch.randint(0, 7, (2, 5))))[1].shape == (2, 4, 7)
    original = import_release(SOURCE).prior
    prior = import_release(altered(tmp_path, nothing)).prior
    expected = original.log_prob((codes,), Context(label=torch.tensor([4, 4])))
    torch.testing.assert_close(prior.log_prob((codes,)), expected)


@needs_fixture
@torch.no_grad()
def test_a_codebook_per_depth(tmp_path):
    release = altered(tmp_path)
    config = yaml.safe_load((SOURCE / "stage1" / "config.yaml").read_text(encoding="utf-8"))
    config["arch"]["hparams"]["shared_codebook"] = False
    tensors = read_checkpoint(SOURCE / "stage1" / "model.pt")["state_dict"]
    tensors["quantizer.codebooks.2.weight"] = tensors["quantizer.codebooks.2.weight"].flip(0).roll(-1, 0)
    for name in ("config.yaml", "model.pt"):
        (release / "stage1" / name).unlink()
    (release / "stage1" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.save({"state_dict": tensors}, release / "stage1" / "model.pt")
    separate, shared = import_release(release).prior, import_release(SOURCE).prior
    codes, context = torch.randint(0, 40, (2, 8, 8, 4)), Context(label=torch.tensor([0, 5]))
    reversed_third = codes.clone()
    reversed_third[..., 2] = 39 - codes[..., 2]
    torch.testing.assert_close(separate((codes,), context)[0], shared((reversed_third,), context)[0])


@needs_fixture
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    def config(**values):
        return lambda architecture, tensors: architecture.update(values)

    def lacking(key):
        return lambda architecture, tensors: tensors.pop(key)

    changes = [
        (config(cumsum_depth_ctx=False), "without cumsum_depth_ctx is not supported"),
        (config(body={"n_layer": 2, "block": {"n_head": 4, "gelu": "v2"}}), "gelu v2 in its body"),
        (config(body={"n_layer": 3, "block": {"n_head": 4}}), r"nothing in it is spatial.2.attention_norm.weight"),
        (config(head={"n_layer": 1, "block": {"n_head": 4}}), "which the model has not"),
        (config(head=None), "is missing or wrong"),
        (config(body="large"), "is missing or wrong"),
        (config(vocab_size=[40, 40, 40, 41]), "depths differ in vocab_size"),
        (config(vocab_size=41), "do not belong together"),
        (config(block_size=[8, 4, 8]), "do not belong together"),
        (config(block_size=[8, 8]), "is missing or wrong"),
        (config(vocab_size_cond=11), r"prefix.weight should be \(11, 48\), is \(10, 48\)"),
        (lacking("body_transformer.blocks.1.attn.key.weight"), "lacks a part of spatial.1.query_key_value.weight"),
        (lacking("input_mlp.bias"), "is missing or wrong"),
    ]
    for change, words in changes:
        with pytest.raises(ValueError, match=words) as caught:
            import_release(altered(tmp_path, change))
        assert "\n" not in str(caught.value)
    release = altered(tmp_path)
    import_release(release)
    shutil.rmtree(release / "stage1")
    with pytest.raises(ValueError, match="its folder stage1 must lie beside it"):
        import_release(release)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@needs_fixture
def test_a_hostile_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release = altered(tmp_path)
    torch.save({"state_dict": {"pos_emb_hw": Hostile()}}, release / "stage2" / "model.pt")
    with pytest.raises(ValueError, match="system"):
        convert(release, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]
