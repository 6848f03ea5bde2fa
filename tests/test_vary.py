"""Variations of an image: a share of its codes is drawn again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from PIL import Image

from chainrule import Pipeline, vary
from chainrule.core import Codes, CodeSpec, Context, Prior, entries
from chainrule.decoding import image_seeds
from chainrule.decoding.sampling import Rerun
from chainrule.drawing import repeat
from chainrule.images import to_pil
from chainrule.variation import kept
from sizes import tiny as size
from test_cli import SIDE, refused, run, tiny


def test_the_other_codes_stay():
    model = tiny()
    image, mask = model.sample(1, seed=9)[0], kept(model, 0.25)
    assert (~mask).sum() == SIDE * SIDE // 4
    varied = vary(model, image, 0.25, 3, seed=5)
    assert (varied[:, :, mask] == image[:, mask]).all() and len(varied.unique(dim=0)) == 3
    assert torch.equal(varied[1:2], vary(model, image, 0.25, seed=[image_seeds(5, 3)[1]]))


def test_a_greater_strength_draws_the_same_codes_again_and_more():
    model = tiny()
    masks = [kept(model, strength) for strength in (0.01, 0.3, 0.6, 1)]
    assert all((more <= less).all() for less, more in pairwise(masks)) and not masks[-1].any()
    assert torch.equal(vary(model, model.sample(1)[0], 1.0, 2, seed=4), model.sample(2, seed=4))
    for strength in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
            kept(model, strength)


class Uniform(Prior):
    """All codes are as probable, of any grids."""

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__(spec)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, codes: Codes, context: Context) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.zeros(*grid.shape, one.codebook_size) for grid, one in zip(codes, self.spec.grids, strict=True)
        )

    def runner(self, precision: str = "float32") -> Rerun:
        return Rerun(self)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_kept_codes_are_those_of_the_whole_image_and_fine_ones_go_with_the_coarse(name, monkeypatch):
    torch.manual_seed(0)
    tokenizer = entries("tokenizers")[name].model(size("tokenizers", name).config).eval()
    given, spec = {}, tokenizer.spec
    image = torch.randint(0, 256, tokenizer.image_shape, dtype=torch.uint8)
    model = Pipeline(tokenizer, Uniform(spec))
    request = model.request
    monkeypatch.setattr(model, "request", lambda *words, **more: given.update(more) or request(*words, **more))
    assert vary(model, image, 0.5, 2).shape == (2, *image.shape)
    known = given["known"]
    assert torch.equal(known.codes[:1], spec.flatten(tokenizer.encode(image[None])))
    coarse, *finer = (one[0, :, :, 0] for one in spec.unflatten(known.mask[None]))
    assert coarse.sum() == coarse.numel() - round(coarse.numel() / 2)
    assert all(torch.equal(coarse.repeat_interleave(2, 0).repeat_interleave(2, 1), fine) for fine in finer)


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = tiny(3)
    pipeline.save("model")
    image = pipeline.sample(1, "cat", seed=9)
    to_pil(image)[0].save("image.png")
    words = ["vary", "model", "image.png", "--label", "dog", "--strength", "0.5", "-n", "2", "--scale", "1"]
    assert "the image, what is kept, 2 variations" in run(*words, "--particles", "2", "--out", "varied.png")
    assert Image.open("varied.png").size == (4 * (SIDE + 1) + 1, SIDE + 2)
    again = repeat("varied.png")
    assert not again.differences
    assert torch.equal(again.drawing.draw(pipeline), vary(pipeline, image[0], 0.5, 2, label="dog", particles=2))
    assert "strength must be above 0" in refused(*words[:5], "--strength", "0")
