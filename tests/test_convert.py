"""Public releases converted into our format: recognised, loaded back, and of identical codes."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import chainrule
from chainrule.core import entry
from chainrule.official import convert, importers
from chainrule.official.reader import sha256
from chainrule.saving.model import tokenizer_hash
from chainrule.saving.weights import weights_sha256
from chainrule.zoo import load_kind, load_tokenizer, read_card, save
from sizes import tiny

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures of official checkpoints are not here")
SIGNED, UNIT = (lambda x: (x + 1) / 2), (lambda x: x)  # the range of the recorded images -> [0, 1]
RELEASES = {  # folder: tokenizer, licence forbids commercial use, range, recorded codes coarse to fine, a file of it
    "taming_vqgan": ("vqgan", False, SIGNED, ["out.codes"], "checkpoints/last.ckpt"),
    "taming_gumbel_vqgan": ("vqgan_gumbel", False, SIGNED, ["out.codes"], "checkpoints/last.ckpt"),
    "kakao_rqvae": ("rqvae", True, SIGNED, ["out.codes"], "model.pt"),
    "openai_dvae": ("dvae", False, UNIT, ["out.codes"], "encoder.pkl"),
    "enhancing_vitvqgan": ("vit_vqgan", False, UNIT, ["out.codes"], "imagenet_vitvq_small.ckpt"),
    "taming_net2net": ("vqgan", False, SIGNED, ["out.image_codes"], "checkpoints/last.ckpt"),
    "rosinality_vqvae2": ("vqvae2", False, SIGNED, ["out.codes_top", "out.codes_bottom"], "vqvae_560.pt"),
}
SYSTEMS = ["kakao_rqtransformer", "pclucas_pixelcnnpp"]  # with a prior: converted in tests of their own


@needs_fixtures
@pytest.mark.parametrize("file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_recognised_and_gives_identical_codes(tmp_path, release, file):
    name, non_commercial, to_unit, recorded, weights = RELEASES[release]
    source = FIXTURES / release
    imported = convert(source / weights if file else source, tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.name == imported.tokenizer.name == name and not tokenizer.training
    values = load_file(source / "io.safetensors")
    images = (to_unit(values["in.image"]) * 255).round().to(torch.uint8)
    with torch.no_grad():
        codes = tokenizer.encode(images)
        for grid, key in zip(codes, recorded, strict=True):
            assert torch.equal(grid.reshape(values[key].shape), values[key])
        for one, two in zip(imported.tokenizer.encode(images), codes, strict=True):
            assert torch.equal(one, two)
        assert torch.equal(tokenizer.decode(codes), imported.tokenizer.decode(codes))
    card = read_card(tmp_path / "model")
    assert card["origin"] == imported.origin and card["licence"] == imported.licence
    assert imported.non_commercial == card["non_commercial"] == non_commercial
    known = {path.name: sha256(path) for path in source.rglob("*") if path.is_file()}
    assert card["sha256"] and all(known[Path(key).name] == value for key, value in card["sha256"].items())
    assert Path(weights).name in {Path(key).name for key in card["sha256"]}


@needs_fixtures
def test_every_importer_recognises_its_own_release_only():
    found = {
        release: [name for name, importer in importers().items() if importer.matches(FIXTURES / release)]
        for release in [*RELEASES, *SYSTEMS]
    }
    assert all(len(names) == 1 for names in found.values()), found


def test_what_is_no_release_is_refused_in_a_sentence(tmp_path):
    for source in (tmp_path / "nothing", tmp_path, Path(__file__)):
        with pytest.raises(ValueError) as caught:
            convert(source, tmp_path / "model")
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not (tmp_path / "model").exists()
    for importer in importers().values():  # a file of another ending is not searched for names of tensors
        (tmp_path / "notes.log").write_text(getattr(importer, "MARK", ""))
        with pytest.raises(ValueError, match="it holds no checkpoint"):
            convert(tmp_path, tmp_path.with_name("out"))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("name", ["encoder.pkl", "model.pt", "last.ckpt"])
def test_a_hostile_file_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"dall_e": Hostile()}}, name)
    with pytest.raises(ValueError, match=r"system"):
        convert(name, "model")
    Path(name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"system"):
        convert(name, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


# ---------------------------------------------------------------- a tokenizer alone

TINY = tiny("tokenizers", "vit_vqgan").config


def test_a_tokenizer_is_saved_and_loaded(tmp_path):
    tokenizer = entry("tokenizers", "vit_vqgan").model(TINY).eval()
    save(tokenizer, tmp_path / "model", {"data": "none", "figures": {"psnr": 1.5}})
    images = torch.randint(0, 256, (2, *tokenizer.image_shape), dtype=torch.uint8)
    loaded = load_tokenizer(tmp_path / "model")
    assert torch.equal(loaded.encode(images)[0], tokenizer.encode(images)[0])
    assert loaded.config == TINY and read_card(tmp_path / "model")["figures"] == {"psnr": 1.5}
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.yaml", "tokenizer.safetensors"]
    save(loaded, tmp_path / "model")  # a saved model is replaced
    assert read_card(tmp_path / "model") == {}


def test_weights_are_stored_in_half_the_bytes(tmp_path):
    torch.manual_seed(0)
    tokenizer = entry("tokenizers", "vit_vqgan").model(TINY).eval()
    gpt = entry("priors", "gpt")
    prior = gpt.model(tokenizer.spec, tiny("priors", "gpt").config)
    pipeline = chainrule.Pipeline(tokenizer, prior)
    pipeline.save(tmp_path / "whole")
    pipeline.save(tmp_path / "half", dtype=torch.bfloat16)
    size = {name: (tmp_path / name / "prior.safetensors").stat().st_size for name in ("whole", "half")}
    assert size["half"] < 0.7 * size["whole"]
    half = chainrule.load(tmp_path / "half")
    for key, value in half.prior.state_dict().items():
        expected = prior.state_dict()[key]
        assert value.dtype == expected.dtype and torch.equal(value, expected.bfloat16().to(value.dtype))
    half.save(tmp_path / "again", dtype=torch.bfloat16)  # nothing more is lost
    assert weights_sha256(tmp_path / "again") == weights_sha256(tmp_path / "half")
    save(tokenizer, tmp_path / "tokenizer", dtype=torch.bfloat16)
    rounded = load_tokenizer(tmp_path / "tokenizer").state_dict()
    assert all(torch.equal(rounded[key], value.bfloat16().float()) for key, value in tokenizer.state_dict().items())
    assert tokenizer_hash(half.tokenizer) == tokenizer_hash(tokenizer)


def test_a_model_shares_the_tokenizer_of_another(tmp_path, monkeypatch):
    tokenizer, gpt = entry("tokenizers", "vit_vqgan").model(TINY).eval(), entry("priors", "gpt")
    save(tokenizer, tmp_path / "codes")
    chainrule.Pipeline(tokenizer, gpt.model(tokenizer.spec, tiny("priors", "gpt").config)).save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.safetensors").unlink()
    path = tmp_path / "model" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["tokenizer"]["weights"] = "codes"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("chainrule.saving.hub.PRETRAINED", tmp_path)
    assert tokenizer_hash(chainrule.load("model").tokenizer) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(load_tokenizer("model")) == tokenizer_hash(tokenizer)
    save(entry("tokenizers", "vit_vqgan").model(TINY), tmp_path / "codes")
    with pytest.raises(ValueError, match="another tokenizer"):
        chainrule.load("model")
    for elsewhere in ("../codes", str(tmp_path / "codes"), "somebody/codes", "missing"):
        config["tokenizer"]["weights"] = elsewhere
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match="'tokenizer.weights' must be the name of a bundled model, got"):
            chainrule.load("model")


def test_the_tokenizer_of_a_whole_model_is_loaded_and_a_tokenizer_alone_is_no_whole_model(tmp_path):
    gated = entry("priors", "gated_pixelcnn")
    preset = tiny("priors", "gated_pixelcnn")
    grid = preset.spec.only
    pixels = entry("tokenizers", "pixels")
    tokenizer = pixels.model(
        pixels.config(
            image_height=grid.height, image_width=grid.width, image_channels=grid.depth, levels=grid.codebook_size
        )
    )
    chainrule.Pipeline(tokenizer, gated.model(preset.spec, preset.config)).save(tmp_path / "whole")
    assert load_tokenizer(tmp_path / "whole").config == tokenizer.config
    save(tokenizer, tmp_path / "alone")
    assert load_tokenizer(tmp_path / "alone").config == tokenizer.config
    assert isinstance(chainrule.load(tmp_path / "alone"), pixels.model)
    with pytest.raises(
        ValueError, match="holds a tokenizer, but a pipeline is needed; a tokenizer without a prior encodes"
    ):
        load_kind(tmp_path / "alone", "pipeline")


def test_damaged_models_and_wrong_folders_are_refused(tmp_path):
    tokenizer = entry("tokenizers", "vit_vqgan").model(TINY)
    save(tokenizer, tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no saved model"):
        save(tokenizer, tmp_path / "full")
    config = yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())
    (tmp_path / "model" / "tokenizer.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="missing or damaged"):
        load_tokenizer(tmp_path / "model")
    del config["tokenizer"]["name"]
    (tmp_path / "model" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load_tokenizer(tmp_path / "model")
