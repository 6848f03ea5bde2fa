"""Published sizes by name, and new models of them."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

import chainrule
from chainrule.core import CodeSpec, Tokenizer, entries, find_entry
from chainrule.priors.gpt import GPT, GPTConfig
from chainrule.strict import build_dataclass, to_plain
from sizes import sizes
from test_cli import refused, run

COUNTS = {  # parameters of the published models and code
    ("dalle", "mindalle"): 1_291_180_032,
    ("dalle_bart", "mega"): 2_587_967_488,
    ("dalle_bart", "mini"): 437_962_720,
    ("dvae", "dalle"): 97_616_006,
    ("gpt", "depth"): 304_932_864,
    ("gpt", "imagenet-big"): 1_410_642_432,
    ("hierarchical_pixelsnail", "rosinality"): 84_873_280 + 89_762_816,
    ("pixelcnnpp", "cifar10"): 53_659_080,
    ("pixelsnail", "rosinality-top"): 84_873_280,
    ("rq_transformer", "cc3m"): 654_061_568,
    ("rq_transformer", "ffhq"): 355_393_536,
    ("rq_transformer", "imagenet-1.4b"): 1_387_529_728,
    ("rq_transformer", "imagenet-3.8b"): 3_822_488_064,
    ("rq_transformer", "imagenet-480m"): 480_921_088,
    ("rq_transformer", "imagenet-821m"): 820_899_328,
    ("rq_transformer", "lsun-bedroom"): 612_061_184,
    ("rq_transformer", "lsun-cat"): 612_061_184,
    ("rq_transformer", "lsun-church"): 370_087_936,
    ("rqvae", "ffhq256"): 100_731_779,
    ("rqvae", "imagenet256"): 104_401_795,
    ("vqgan", "dalle-mini"): 46_709_891,
    ("vqgan", "f16-1024"): 72_141_699,
    ("vqgan", "f16-16384"): 76_073_859,
    ("vqvae2", "rosinality"): 1_388_867,
}


@pytest.fixture(scope="module")
def found():
    return {(info.model, info.preset): info for info in chainrule.presets()}


def test_every_preset_is_listed_with_its_codes(found):
    expected = {
        (name, preset): one.spec
        for kind in ("tokenizers", "priors")
        for name, entry in entries(kind).items()
        for preset, one in entry.presets.items()
    }
    assert found.keys() == expected.keys()
    for key, spec in expected.items():
        assert spec is None or found[key].codes == spec.to_dict()
        assert found[key].kind == ("prior" if spec else "tokenizer")


def test_parameter_counts(found):
    assert {key: found[key].parameters for key in COUNTS} == COUNTS


@pytest.mark.parametrize(
    ("model", "preset", "codes"),
    [
        ("vqvae2", "ffhq1024", [[32, 32, 1, 512], [64, 64, 1, 512], [128, 128, 1, 512]]),
        ("vqvae2", "imagenet256", [[32, 32, 1, 512], [64, 64, 1, 512]]),
        ("vqgan_gumbel", "f8-8192", [[32, 32, 1, 8192]]),
        ("rqvae", "imagenet256", [[8, 8, 4, 16384]]),
    ],
)
def test_codes_of_tokenizers(found, model, preset, codes):
    assert found[model, preset].codes == codes


def test_create():
    spec = CodeSpec.single(2, 3, 1, 7)
    sizes = {"num_layers": 1, "width": 8, "num_heads": 2}
    model = chainrule.create("gpt", spec=spec, **sizes)
    assert isinstance(model, GPT) and model.spec == spec and model.config.width == 8
    smaller = chainrule.create("gpt", "imagenet", spec=spec, **sizes)
    assert smaller.config.num_classes == 1000 and smaller.spec == spec
    nested = chainrule.create(
        "vit_vqgan",
        image_height=16,
        image_width=16,
        encoder={"width": 16, "num_layers": 1, "num_heads": 1, "mlp_width": 8},
    )
    assert isinstance(nested, Tokenizer) and nested.config.encoder.width == 16
    assert chainrule.create("gpt", spec=spec).config == build_dataclass(GPTConfig, find_entry("gpt").small, "gpt")
    with torch.device("meta"):
        assert chainrule.create("dalle", "dalle").spec == find_entry("dalle").preset("dalle").spec


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("gtp",), {}, "no tokenizer or prior is called 'gtp'; did you mean 'gpt'?"),
        (("gpt", "imagenet-bag"), {}, "gpt has no preset 'imagenet-bag'; did you mean 'imagenet-big'?"),
        (("pixels", "small"), {}, "pixels has no preset 'small'; there are none"),
        (("gpt",), {}, "gpt models codes: give spec"),
        (("vqgan", "f16-1024"), {"spec": CodeSpec.single(1, 1, 1, 2)}, "leave spec out"),
        (("gpt", "rin"), {"widht": 8}, "unknown key 'widht'; did you mean 'width'?"),
        (("gpt", "rin"), {"width": 8.0}, "'width' must be a whole number"),
        (("gpt", "rin"), {"num_layers": 0}, "layer"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, options, sentence):
    with pytest.raises(ValueError) as raised:
        chainrule.create(*arguments, **options)
    assert sentence in str(raised.value)


def test_the_command(found):
    rows = [row.split() for row in run("presets", "gpt").splitlines()]
    assert rows[0] == ["model", "preset", "kind", "codes", "parameters"]
    assert ["gpt", "imagenet-big", "prior", "16x16", "of", "16,384", "1,410,642,432"] in rows
    value = json.loads(run("presets", "rqvae", "--json"))
    assert value[0] == {
        "model": "rqvae", "preset": "imagenet256", "kind": "tokenizer", "parameters": 104_401_795,
        "codes": [[8, 8, 4, 16384]], "lora": None, "memory": value[0]["memory"],
    }  # fmt: skip
    assert run("presets", "pixels") == "pixels has no presets\n"
    assert "did you mean 'gpt'?" in refused("presets", "gtp")


def test_a_model_registered_twice_is_an_error():
    code = (
        "from chainrule.core import register, entries; entries('priors'); entries('tokenizers')\n"
        "register('priors', 'vqgan', object)(type('Other', (), {}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "vqgan is registered twice" in done.stderr


@pytest.mark.parametrize("kind", ["tokenizers", "priors"])
def test_every_config_is_frozen_documented_and_checks_its_ranges(kind):
    ours = {name: found for name, found in entries(kind).items() if found.model.__module__.startswith("chainrule.")}
    for name, found in ours.items():  # other tests register toys
        params, names = found.config.__dataclass_params__, [field.name for field in fields(found.config)]
        assert params.frozen and all(field.kw_only for field in fields(found.config)), name
        described = "".join(cls.__doc__ or "" for cls in found.config.__mro__)
        for field in names:
            assert re.search(rf"\b{field}\b", described), f"{name}.{field} is not documented"
        tiny = to_plain(next(iter(sizes(kind, name).values())).config)
        for size in {"width", "num_layers", "kernel_size", "head_width", "codebook_size"} & set(names):
            for wrong in (0, 2**40 + 1):
                with pytest.raises(ValueError, match=f"{size}|a codebook needs"):
                    build_dataclass(found.config, tiny | {size: wrong}, name)


@pytest.mark.parametrize("kernel_size", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ["gated_pixelcnn", "pixelsnail"])
def test_kernels_that_cannot_be_causal_are_refused(name, kernel_size):
    with pytest.raises(ValueError, match="kernel_size must be"):
        chainrule.create(name, spec=CodeSpec.single(4, 4, 1, 2), kernel_size=kernel_size)


def test_lora_of_large_transformers_trains_at_most_2_percent_and_memory_is_counted():
    large = [one for one in chainrule.presets() if one.lora and one.parameters > 3e8]
    assert {one.model for one in large} == {"dalle", "dalle_bart", "gpt", "parti", "rq_transformer"}
    for one in large:
        assert 0 < one.lora <= 0.02 * one.parameters, one
    (mindalle,) = (one for one in large if one.preset == "mindalle")
    found = mindalle.memory()
    assert found.pop("lora") == pytest.approx(4 * 1.291180032 + 20 * mindalle.lora / 1e9)
    assert found == pytest.approx({"float32": 5.164720128, "bfloat16": 2.582360064, "adam": 25.82360064})
    assert "memory" in json.loads(run("presets", "gpt", "--json"))[0]
    assert "LoRA's share" in run("presets", "dvae", "--memory")
