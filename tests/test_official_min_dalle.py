"""The importer of DALL-E Mini in min-dalle's files against outputs of the original code."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core import Context, entry
from chainrule.official import convert, import_release, kuprel_min_dalle
from chainrule.priors.dalle_bart import DalleBart
from chainrule.text.dalle_mini import DalleMiniTokenizer, name_emoji
from chainrule.tokenizers.vqgan import VQGAN

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
SOURCE = FIXTURES / "min_dalle"
needs_fixture = pytest.mark.skipif(not SOURCE.is_dir(), reason="no fixture min_dalle")


@pytest.fixture(scope="module")
def imported():
    return kuprel_min_dalle.load(SOURCE)


@needs_fixture
def test_texts_get_the_ids_of_the_original(imported):
    io, prompts = load_file(SOURCE / "io.safetensors"), json.loads((SOURCE / "prompts.json").read_text("utf-8"))
    with pytest.warns(UserWarning, match="longer than 64 tokens"):
        assert torch.equal(imported.text_tokenizer.encode(prompts), io["out.prompt_ids"])
    assert torch.equal(imported.text_tokenizer.encode(["", prompts[0]]), io["out.text_tokens"])
    assert imported.text_tokenizer.decode(io["out.text_tokens"]) == ["", prompts[0]]


@needs_fixture
@torch.no_grad()
def test_encoder_and_decoder_give_the_outputs_of_the_original(imported):
    prior, io = imported.prior, load_file(SOURCE / "io.safetensors")
    context, previous = Context(text=io["out.text_tokens"]), io["in.prev_tokens"].expand(2, -1)
    codebook_size, steps = prior.spec.only.codebook_size, previous.shape[1]
    assert not prior.training and previous[0, 0] == codebook_size - 1
    seen = io["out.text_tokens"] != 1
    close(prior.encode(io["out.text_tokens"])[0][seen], io["out.encoder_state"][seen])
    codes = torch.zeros(2, prior.spec.length, dtype=torch.int64)
    codes[:, : steps - 1] = previous[:, 1:]
    close(prior.rows(codes, context)[:, :steps], io["out.logits"])
    runner = prior.runner()
    state, greedy = runner.init_state(2, context), torch.zeros(2, dtype=torch.int64)
    for t in range(steps):
        logits, state = runner.step(greedy, state)
        if t == 0:
            close(logits, io["out.logits"][:, 0, :codebook_size])
        greedy = (logits[1] * 4 - logits[0] * 3).argmax().expand(2)
        assert greedy[0] == io["out.greedy_cfg4"][0, t]


@needs_fixture
@torch.no_grad()
def test_codes_become_the_pictures_of_the_original(imported):
    tokenizer, io = imported.tokenizer, load_file(SOURCE / "io.safetensors")
    codes = io["in.codes"].reshape(4, 16, 16, 1)
    assert not tokenizer.training and tokenizer.spec == imported.prior.spec
    grid = codes.reshape(2, 2, 16, 16).permute(1, 2, 0, 3).reshape(1, 32, 32, 1)  # by columns
    close(pixels(tokenizer, grid)[0], io["out.image_seamless"], 0.02)
    cells = pixels(tokenizer, codes).reshape(2, 2, 32, 32, 3).permute(1, 2, 0, 3, 4).reshape(64, 64, 3)
    close(cells, io["out.image"], 0.02)
    with pytest.raises(ValueError, match="has no encoder"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def pixels(tokenizer, codes):
    """The pictures before rounding, (B, H, W, 3) in 0..255."""
    images = tokenizer.decode_features(tokenizer.embed(codes))
    return ((images + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@needs_fixture
def test_it_becomes_a_pipeline(tmp_path, imported):
    convert(SOURCE, tmp_path / "model")
    pipeline, codes = chainrule.load(tmp_path / "model"), load_file(SOURCE / "io.safetensors")["in.codes"]
    assert pipeline.prior.config == imported.prior.config and not pipeline.tokenizer.config.has_encoder
    codes = (codes.reshape(4, 16, 16, 1),)
    assert torch.equal(pipeline.tokenizer.decode(codes), imported.tokenizer.decode(codes))
    with pytest.raises(ValueError, match="has no encoder"):
        pipeline.reconstruct(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@needs_fixture
def test_the_files_as_published_in_one_folder(tmp_path, imported):
    for path in (SOURCE / "dalle_bart_mini").iterdir():
        shutil.copy(path, tmp_path / f"{path.stem}_mini{path.suffix}")
    shutil.copy(SOURCE / "vqgan" / "detoker.pt", tmp_path)
    again = import_release(tmp_path)
    assert again.prior.config == imported.prior.config and again.text_tokenizer.hash() == imported.text_tokenizer.hash()
    assert set(again.files) == {
        "encoder_mini.pt", "decoder_mini.pt", "vocab_mini.json", "merges_mini.txt", "detoker.pt"
    }  # fmt: skip
    assert kuprel_min_dalle.matches(tmp_path / "decoder_mini.pt") and not kuprel_min_dalle.matches(
        tmp_path / "other.pt"
    )
    for path in (SOURCE / "dalle_bart_mini").iterdir():
        shutil.copy(path, tmp_path)
    with pytest.raises(ValueError, match=r"several models: .* encoder.pt or encoder_mini.pt"):
        kuprel_min_dalle.load(tmp_path)
    (tmp_path / "detoker.pt").unlink()
    with pytest.raises(ValueError, match=r"detoker.pt is missing"):
        kuprel_min_dalle.load(tmp_path / "encoder.pt")


@needs_fixture
def test_gains_that_the_files_lack_are_one_and_other_tensors_are_refused(tmp_path):
    shutil.copytree(SOURCE / "vqgan", tmp_path / "vqgan")
    folder = tmp_path / "dalle_bart_mini"
    shutil.copytree(SOURCE / "dalle_bart_mini", folder)
    tensors = torch.load(folder / "encoder.pt")
    del tensors["layers.1.glu.ln0.weight"]
    (folder / "encoder.pt").chmod(0o644)
    torch.save({key: value.float() for key, value in tensors.items()}, folder / "encoder.pt")
    assert (kuprel_min_dalle.load(tmp_path).prior.encoder[1].mlp.norm.weight == 1).all()
    for change, message in [
        ({"layers.0.self_attn.q_proj.bias": torch.zeros(128)}, "does not fit its config: it has layers.0.self_attn"),
        ({"layers.2.glu.fc2.weight": torch.zeros(128, 64)}, "nothing in it is encoder.2"),
        ({"layers.0.glu.fc1.weight": torch.zeros(64, 12)}, "differ in shape"),
        ({"embed_tokens.weight": torch.zeros(176, 100)}, "no multiple of 64"),
    ]:
        torch.save(tensors | change, folder / "encoder.pt")
        with pytest.raises(ValueError, match=message):
            kuprel_min_dalle.load(tmp_path)


@pytest.mark.parametrize(("preset", "count"), [("mini", 437_962_720), ("mega", 2_587_967_488)])
def test_parameters_of_the_published_models(preset, count):
    found = entry("priors", "dalle_bart").presets[preset]
    with torch.device("meta"):
        model = DalleBart(found.spec, found.config)
        tokenizer = VQGAN(entry("tokenizers", "vqgan").presets["dalle-mini"].config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 46_709_891
    assert tokenizer.spec == found.spec


def small_tokenizer(length=8):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "\u0120", "a", "b", "\u0120a", "\u0120ab"]
    vocabulary = json.dumps({token: number for number, token in enumerate(tokens)})
    return DalleMiniTokenizer(vocabulary, "#version\n\u0120 a\n\u0120a b\n", length, 12)


def test_texts_of_all_kinds_have_ids(tmp_path):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(["AB  a", "", "\u00e9\u4e2d", "z", "\ud83d", "a\nb"])
    assert ids.tolist() == [
        [0, 8, 7, 2, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 1], [0, 4, 3, 2, 1, 1, 1, 1],
        [0, 4, 3, 2, 1, 1, 1, 1], [0, 7, 3, 6, 2, 1, 1, 1],
    ]  # fmt: skip
    assert tokenizer.decode(ids[:1]) == ["ab a"]
    assert name_emoji("a \U0001f431\U0001f680 \u00b0") == "a cat_facerocket \u00b0"
    for name, text in tokenizer.files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert DalleMiniTokenizer.read(tmp_path, tokenizer.config).hash() == tokenizer.hash()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        DalleMiniTokenizer.read(tmp_path, tokenizer.config)


@pytest.mark.parametrize("vocabulary", ["", "[]", "{}", '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 40}'])
def test_other_vocabularies_are_refused(vocabulary):
    with pytest.raises(ValueError, match=r"no vocabulary|all ids in"):
        DalleMiniTokenizer(vocabulary, "", 8, 12)
