"""Images larger than those of training, from the tokenizer to the command line."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from chainrule import Pipeline
from chainrule.core import entries
from chainrule.drawing import repeat
from chainrule.images import to_pil
from chainrule.larger import at_size
from chainrule.priors.gpt import GPT, GPTConfig
from sizes import tiny as size
from test_cli import refused, run, tiny


def small() -> Pipeline:
    torch.manual_seed(0)
    tokenizer = entries("tokenizers")["vqvae"].model(size("tokenizers", "vqvae").config).eval()
    return Pipeline(tokenizer, GPT(tokenizer.spec, GPTConfig(num_layers=1, width=8, num_heads=2)))


def test_images_of_another_shape_by_the_same_weights():
    model = small()
    channels, height, width = model.tokenizer.image_shape
    wide = at_size(model, height, 2 * width)
    images = wide.sample(2, seed=3)
    assert images.shape == (2, channels, height, 2 * width) and wide.log_prob(images).isfinite().all()
    assert torch.equal(wide.sample(1, seed=[5]), wide.sample(2, seed=[4, 5])[1:])
    assert at_size(model, height, width) is model
    with pytest.raises(ValueError, match="must be at least"):
        at_size(model, height // 2, width)


def test_models_that_draw_their_own_size_only():
    with pytest.raises(ValueError, match="a model of pixels draws images of its own size only"):
        at_size(tiny(), 16, 16)
    model = small()
    prior = entries("priors")["pixelcnn"]
    other = Pipeline(model.tokenizer, prior.model(model.tokenizer.spec, size("priors", "pixelcnn").config))
    _, height, width = model.tokenizer.image_shape
    with pytest.raises(ValueError, match="pixelcnn draws images of the size it was trained on only"):
        at_size(other, 2 * height, width)


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    model.save("model")
    _, height, width = model.tokenizer.image_shape
    run("sample", "model", "-n", "2", "--size", f"{height}x{2 * width}", "--separate", "--out", "wide")
    expected = to_pil(at_size(model, height, 2 * width).sample(2))
    assert [Image.open(f"wide/{i}.png").tobytes() for i in range(2)] == [one.tobytes() for one in expected]
    assert not repeat("wide/1.png").differences
    assert "--size must be a number" in refused("sample", "model", "--size", "large")
