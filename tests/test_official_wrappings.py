"""Checkpoints of official code as users have them: wrapped, renamed, in parts, among others, or none at all."""

import functools
import json
import pickle
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from chainrule.official import compvis_vqgan, import_release, openai_dvae
from chainrule.official.reader import module_tensors, read_checkpoint
from test_official_openai import fake_package, write
from test_official_rosinality import write as write_vqvae2
from test_official_taming import original_names

NETWORK = {
    "double_z": False, "z_channels": 4, "resolution": 8, "in_channels": 1, "out_ch": 1, "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": 1, "attn_resolutions": [],
}  # fmt: skip
PARAMS = {"embed_dim": 4, "n_embed": 6, "ddconfig": NETWORK}
CONFIG = {"model": {"target": "taming.models.vqgan.VQModel", "params": PARAMS}}


def vqgan(fill: float | None = None) -> dict[str, torch.Tensor]:
    """A small VQGAN under the names of the original code."""
    config = compvis_vqgan.VQGANConfig(
        image_height=8, image_width=8, image_channels=1, width=32, multipliers=(1, 1), num_blocks=1,
        attention_levels=(), latent_channels=4, codebook_size=6, embedding_dim=4,
    )  # fmt: skip
    model = compvis_vqgan.VQGAN(config)
    codebook = model.quantizer.codebook.weight.detach()
    codebook = codebook if fill is None else torch.full_like(codebook, fill)
    return original_names(model) | {"quantize.embedding.weight": codebook}


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return vqgan()


def put(folder, config=CONFIG, **files):
    """Files in a folder, the config beside them."""
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "model.yaml").write_text(yaml.safe_dump(config))
    for name, value in files.items():
        name = name.replace("__", ".")
        save_file(value, folder / name) if name.endswith("safetensors") else torch.save(value, folder / name)
    return folder


def codebook_of(source):
    return import_release(source).tokenizer.quantizer.codebook.weight[0, 0].item()


def refusal(source) -> str:
    with pytest.raises(ValueError) as caught:
        import_release(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prefixed(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


class Whole(nn.Module):
    """A module saved whole, by code that is not here when it is read."""

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            place = self
            for word in path:
                if word not in dict(place.named_children()):
                    place.add_module(word, nn.Module())
                place = getattr(place, word)
            place.register_buffer(last, value)


WRAPPINGS = {
    "DataParallel": (prefixed("module."), "module"),
    "compiled": (prefixed("_orig_mod."), "_orig_mod"),
    "both, deeper": (lambda t: {"state_dict": prefixed("model._orig_mod.module.")(t)}, "model"),
    "compiled inside": (lambda t: {k.replace("encoder.", "encoder._orig_mod."): v for k, v in t.items()}, "_orig_mod"),
    "colon": (prefixed("model:"), "model"),
    "of a larger model": (
        lambda t: {"state_dict": prefixed("first_stage_model.")(t) | {"x.w": t["conv"]}},
        "first_stage",
    ),
    "model": (lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "under model"),
    "twice": (lambda t: {"state_dict": {"model": t}}, "under state_dict.model"),
    "any name": (lambda t: {"epoch": 3, "loss": torch.ones(()), "vqgan": t}, "under vqgan"),
    "average beside": (lambda t: {"model_ema": {k: 0 * v for k, v in t.items()}, "net": {"a": t}}, "under net.a"),
    "average alone": (lambda t: {"state_dict_ema": t}, "under state_dict_ema"),
    "whole module": (lambda t: Whole(t), None),
    "whole module inside": (lambda t: {"net": Whole(t)}, "under net"),
    "harmless objects": (
        lambda t: {"state_dict": t, "hyper": {"norm": functools.partial(nn.LayerNorm, eps=1e-6), "p": re.compile("a")}},
        "under state_dict",
    ),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_wrapping_is_undone_and_named(tmp_path, tensors, name):
    wrap, words = WRAPPINGS[name]
    extra = {"conv": torch.ones(1)} if name == "of a larger model" else {}
    imported = import_release(put(tmp_path / "a", last__ckpt=wrap(tensors | extra)))
    assert torch.equal(imported.tokenizer.quantizer.codebook.weight, tensors["quantize.embedding.weight"])
    assert words is None or words in " ".join(imported.notes)


@pytest.mark.parametrize("name", ["vqgan__pt", "vqgan__pth", "pytorch_model__bin", "vqgan__safetensors"])
def test_the_ending_of_a_file_does_not_matter(tmp_path, tensors, name):
    folder = put(tmp_path / "a", **{name: tensors})
    expected = tensors["quantize.embedding.weight"][0, 0].item()
    assert codebook_of(folder) == codebook_of(folder / name.replace("__", ".")) == expected
    assert import_release(folder).notes == ()


def test_a_checkpoint_in_parts(tmp_path, tensors):
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in names[start::2]} for start in (0, 1)]
    files = {f"model-0000{index + 1}-of-00002__safetensors": half for index, half in enumerate(halves)}
    folder = put(tmp_path / "a", **files)
    expected = tensors["quantize.embedding.weight"][0, 0].item()
    assert codebook_of(folder) == codebook_of(folder / "model-00002-of-00002.safetensors") == expected
    index = {"weight_map": {name: f"model-0000{1 + (name in halves[1])}-of-00002.safetensors" for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    imported = import_release(folder)
    assert codebook_of(folder / "model.safetensors.index.json") == expected and imported.notes == ()
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} < imported.files.keys()
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is not beside it" in refusal(folder)
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must name files beside it" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("[1")
    assert "no index of a checkpoint's parts" in refusal(folder)


def test_of_several_checkpoints_the_highest_number_counts_and_is_said(tmp_path):
    numbers = {f"epoch={number}__ckpt": {"state_dict": vqgan(number)} for number in (9, 10, 2)}
    folder = put(tmp_path / "a", **numbers, discriminator__pt={"main.0.weight": torch.ones(2)})
    assert codebook_of(folder) == 10
    assert "of 3 checkpoints epoch=10.ckpt was read" in import_release(folder).notes[0]
    assert codebook_of(folder / "epoch=9.ckpt") == 9 and "3 checkpoints" not in str(
        import_release(folder / "epoch=9.ckpt").notes
    )
    put(folder, last__ckpt={"state_dict": vqgan(99)})
    assert codebook_of(folder) == 99


TARGETS = {
    "latent-diffusion": {"target": "ldm.models.autoencoder.VQModel"},
    "its first stage": {"target": "ldm.models.autoencoder.VQModelInterface"},
    "a fork": {"target": "some.fork.taming.models.vqgan.VQModel"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_network_under_other_classes(tmp_path, tensors, name):
    imported = import_release(put(tmp_path / "a", {"model": TARGETS[name] | {"params": PARAMS}}, last__ckpt=tensors))
    assert torch.equal(imported.tokenizer.quantizer.codebook.weight, tensors["quantize.embedding.weight"])
    assert ("latent-diffusion" in imported.origin) == (name != "a fork")


def test_configs_of_other_forms(tmp_path, tensors):
    for index, config in enumerate((
        CONFIG["model"],  # without the key "model"
        {"model": {"_target_": "taming.models.vqgan.VQModel", **PARAMS}},  # Hydra's
        {"_target_": "taming.models.vqgan.VQModel", "params": PARAMS},
    )):  # fmt: skip
        imported = import_release(put(tmp_path / str(index), config, last__ckpt=tensors))
        assert imported.tokenizer.spec.only.codebook_size == 6


JUNK = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "page of HTML": b"\n<!DOCTYPE html><html><body>Virus scan warning</body></html>",
    "page of XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "gzip archive": b"\x1f\x8b\x08\x00",
    "tar archive": b"model.pt".ljust(257, b"\0") + b"ustar",
}


@pytest.mark.parametrize("what", JUNK)
@pytest.mark.parametrize("place", ["last.ckpt", "vqvae_560.pt", "model.safetensors", "model.yaml"])
def test_a_file_that_is_something_else_is_called_that(tmp_path, tensors, what, place):
    folder = put(tmp_path / "a", None if place == "vqvae_560.pt" else CONFIG)
    if place == "model.yaml":
        put(folder, last__ckpt=tensors)
    (folder / place).write_bytes(JUNK[what])
    assert f"{place} is a {what}" in refusal(folder)
    if place != "model.yaml":
        assert f"{place} is a {what}" in refusal(folder / place)


def test_a_config_that_is_missing_misplaced_or_another_is_said(tmp_path, tensors):
    folder = put(tmp_path / "a", None, last__ckpt=tensors)
    assert "last.ckpt looks like compvis_vqgan, but no config (.yaml) lies beside it;" in refusal(folder)
    assert "no config (.yaml) lies beside it;" in refusal(folder / "last.ckpt")
    put(folder / "options")
    assert f"{folder / 'options' / 'model.yaml'} is one: copy it there" in refusal(folder)
    put(folder, {"model": {"target": "ldm.models.autoencoder.AutoencoderKL"}})
    assert "model.yaml describes ldm.models.autoencoder.AutoencoderKL" in refusal(folder)
    (folder / "model.yaml").write_text("model: {target: [}")
    assert "model.yaml: not valid YAML" in refusal(folder)
    assert "it is a config, not a checkpoint" in refusal(folder / "model.yaml")
    (tmp_path / "empty").mkdir()
    assert "it holds no checkpoint" in refusal(tmp_path / "empty")


def test_the_same_tensors_twice_are_refused(tmp_path, tensors):
    both = {"module.quant_conv.weight": tensors["quant_conv.weight"], **tensors}
    assert "holds tensors twice" in refusal(put(tmp_path / "a", last__ckpt=both))


@pytest.mark.parametrize("key", ["state_dict", "model", "net"])
def test_releases_without_a_config_are_unwrapped_alike(tmp_path, key):
    tensors = write_vqvae2(tmp_path / "vqvae_560.pt", 3, 6, 1, 5, 7, 9)
    torch.save({key: prefixed("module.")(tensors)}, tmp_path / "vqvae_560.pt")
    imported = import_release(tmp_path)
    assert torch.equal(imported.tokenizer.quantizers[1].codebook.weight, tensors["quantize_b.embed"].T)


@torch.no_grad()
@pytest.mark.parametrize("other", [{"blocks": 2}, {"hidden": 12}])
def test_a_dvae_whose_halves_differ(tmp_path, monkeypatch, other):
    classes = fake_package(monkeypatch)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    write(tmp_path / "b", classes, **other)
    write(tmp_path / "a", classes)
    encoder = openai_dvae.load(tmp_path / "a").tokenizer
    decoder = openai_dvae.load(tmp_path / "b").tokenizer
    (tmp_path / "b" / "decoder.pkl").rename(tmp_path / "a" / "decoder.pkl")
    both = import_release(tmp_path / "a").tokenizer
    images = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8)
    codes = both.encode(images)
    assert torch.equal(codes[0], encoder.encode(images)[0]) and torch.equal(both.decode(codes), decoder.decode(codes))
    for part in ("encoder", "decoder"):  # copies that hold tensors only
        save_file(
            module_tensors(read_checkpoint(tmp_path / "a" / f"{part}.pkl")), tmp_path / "b" / f"{part}.safetensors"
        )
    (tmp_path / "b" / "encoder.pkl").unlink()
    again = import_release(tmp_path / "b").tokenizer
    assert torch.equal(again.decode(codes), decoder.decode(codes))


def test_harmless_objects_stay_stubs(tmp_path):
    value = functools.partial(nn.functional.gelu, approximate="tanh")
    torch.save({"a": value}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")["a"]
    assert found.type_name == "functools.partial"
    (tmp_path / "b.pt").write_bytes(pickle.dumps(functools.partial(print)))
    assert "builtins.print" in refusal(tmp_path / "b.pt")
