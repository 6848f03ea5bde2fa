"""The importer of pclucas14's PixelCNN++."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core import CodeSpec, Context
from chainrule.official import convert, import_release, pclucas_pixelcnnpp
from chainrule.priors.pixelcnnpp import PixelCNNPP

FIXTURES = Path(os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
FOLDER = FIXTURES / "pclucas_pixelcnnpp"
FILE = "pcnn_lr0.00040_nr-resnet5_nr-filters160_889.pth"


@pytest.fixture(scope="module")
def imported():
    if not FOLDER.is_dir():
        pytest.skip("no fixtures of foreign checkpoints; name their folder in CHAINRULE_FIXTURES")
    return pclucas_pixelcnnpp.load(FOLDER), load_file(FOLDER / "io.safetensors")


def small(result, expected) -> tuple[PixelCNNPP, tuple[torch.Tensor]]:
    """The network over images of the recorded size, and their codes."""
    codes = ((expected["in.image"] + 1) * 127.5).round().long().permute(0, 2, 3, 1)
    prior = PixelCNNPP(CodeSpec.single(*codes.shape[1:3], 3, 256), result.prior.config).eval()
    prior.load_state_dict(result.prior.state_dict())
    return prior, (codes,)


def test_the_file_is_recognised_and_its_origin_named(imported):
    result, _ = imported
    assert (
        pclucas_pixelcnnpp.matches(FOLDER)
        and pclucas_pixelcnnpp.matches(FOLDER / FILE)
        and not pclucas_pixelcnnpp.matches(FOLDER / "README.md")
    )
    assert "pclucas14" in result.origin and result.licence == "MIT" and not result.non_commercial
    assert result.files == {FILE: hashlib.sha256((FOLDER / FILE).read_bytes()).hexdigest()}
    assert result.tokenizer.image_shape == (3, 32, 32) and result.prior.spec == result.tokenizer.spec
    config = result.prior.config
    assert (config.width, config.num_residual, config.num_mixtures) == (12, 2, 5)


@torch.no_grad()
def test_output_and_likelihood_are_those_of_the_original(imported):
    prior, codes = small(*imported)
    expected = imported[1]
    numbers = prior.numbers(codes, Context()).permute(0, 3, 1, 2)
    torch.testing.assert_close(numbers, expected["out.output"], atol=1e-4, rtol=0)
    torch.testing.assert_close(-prior.log_prob(codes), expected["out.nll"], atol=0, rtol=1e-5)


@torch.no_grad()
def test_logits_and_steps_give_the_same_likelihood(imported):
    prior, codes = small(*imported)
    expected = imported[1]["out.nll"]
    (logits,) = prior(codes, Context())
    nats = -logits.log_softmax(-1).gather(-1, codes[0].unsqueeze(-1)).flatten(1).sum(1)
    torch.testing.assert_close(nats, expected, atol=0, rtol=1e-5)
    runner = prior.runner()
    state, previous, nats = runner.init_state(2, Context()), torch.zeros(2, dtype=torch.int64), 0
    for code in codes[0].flatten(1).unbind(1):
        logits, state = runner.step(previous, state)
        nats = nats - logits.log_softmax(-1).gather(1, code[:, None])[:, 0]
        previous = code
    torch.testing.assert_close(nats, expected, atol=0, rtol=1e-5)


def test_converted_release_scores_in_bits_per_dim(imported, tmp_path):
    convert(FOLDER, tmp_path / "model")
    pipeline = chainrule.load(tmp_path / "model")
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(pipeline.reconstruct(images), images)
    bits = pipeline.bits_per_dim(-pipeline.log_prob(images))
    assert bits.isfinite().all() and (bits > 0).all()


def write(path: Path, channels: int, filters: int, residual: int, mixtures: int, prefix: str = ""):
    """A state dict of that code with other sizes; returns its tensors."""
    tensors = {}

    def layer(name, *shape, out=None):
        tensors[f"{name}.bias"] = torch.randn(out or shape[0])
        tensors[f"{name}.weight_g"] = torch.rand(shape[0], *[1] * (len(shape) - 1))
        tensors[f"{name}.weight_v"] = torch.randn(shape)

    for way in ("down", "up"):
        for level in range(3):
            for stream, width in (("u", 3), ("ul", 2)):
                for index in range(residual + (way == "down" and level > 0)):
                    name = f"{way}_layers.{level}.{stream}_stream.{index}"
                    layer(f"{name}.conv_input.conv", filters, 2 * filters, 2, width)
                    layer(f"{name}.conv_out.conv", 2 * filters, 2 * filters, 2, width)
                    skips = (way == "down") + (stream == "ul")
                    if skips:
                        layer(f"{name}.nin_skip.lin_a", filters, 2 * skips * filters)
    for index in range(2):
        for stream, width in (("u", 3), ("ul", 2)):
            layer(f"downsize_{stream}_stream.{index}.conv", filters, filters, 2, width)
            layer(f"upsize_{stream}_stream.{index}.deconv", filters, filters, 2, width)
    layer("u_init.conv", filters, channels + 1, 2, 3)
    layer("ul_init.0.conv", filters, channels + 1, 1, 3)
    layer("ul_init.1.conv", filters, channels + 1, 2, 1)
    layer("nin_out.lin_a", mixtures * (3 if channels == 1 else 10), filters)
    torch.save({prefix + name: value for name, value in tensors.items()}, path)
    return tensors


@pytest.mark.parametrize(
    ("channels", "filters", "residual", "mixtures", "prefix"), [(1, 4, 1, 3, ""), (3, 6, 3, 2, "module.")]
)
@torch.no_grad()
def test_sizes_follow_from_the_tensors(tmp_path, channels, filters, residual, mixtures, prefix):
    tensors = write(tmp_path / "some_name.pth", channels, filters, residual, mixtures, prefix)
    result = import_release(tmp_path)
    config, side = result.prior.config, 28 if channels == 1 else 32
    assert (config.width, config.num_residual, config.num_mixtures) == (filters, residual, mixtures)
    assert result.tokenizer.image_shape == (channels, side, side)
    assert sum(p.numel() for p in result.prior.parameters()) == sum(value.numel() for value in tensors.values())
    coarsest, middle = result.prior.level.inner.inner, result.prior.level.inner
    theirs = tensors["down_layers.0.ul_stream.0.conv_out.conv.weight_v"]
    torch.testing.assert_close(coarsest.up_v[0].second.direction, theirs)
    torch.testing.assert_close(middle.enlarge_u.direction, tensors["upsize_u_stream.0.deconv.weight_v"])
    torch.testing.assert_close(middle.shrink_v.bias, tensors["downsize_ul_stream.1.conv.bias"])


def test_other_architectures_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "one.pth"
    tensors = write(path, 2, 4, 1, 2)
    with pytest.raises(ValueError, match=r"one.pth holds no PixelCNN\+\+ of grey or colour images"):
        pclucas_pixelcnnpp.load(path)
    tensors = write(path, 3, 4, 1, 2)
    torch.save(tensors | {"extra.weight_v": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"one.pth does not fit.*extra"):
        pclucas_pixelcnnpp.load(path)
    del tensors["up_layers.2.ul_stream.0.conv_out.conv.bias"]
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"nothing in it is level.inner.inner.down_v.0.second.bias") as error:
        pclucas_pixelcnnpp.load(path)
    assert "\n" not in str(error.value)
    write(tmp_path / "two.pth", 3, 4, 1, 2)
    with pytest.raises(ValueError, match=r"there are: one.pth, two.pth; name the file"):
        pclucas_pixelcnnpp.load(tmp_path)
