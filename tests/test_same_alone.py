"""An image is the same alone and in any batch, bit for bit in float32, on one machine and number of threads."""

from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import select
from chainrule.decoding import image_seeds
from chainrule.kernels import rows

FOLDER = Path(chainrule.__file__).parent / "pretrained"
PIPELINES = sorted(path.parent.name for path in FOLDER.glob("*/config.yaml") if "\nprior:" in path.read_text())
SIZES = (1, 2, 3, 4, 5, 16)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def condition(pipeline, count: int) -> dict:
    """A class or text that differs between images."""
    if pipeline.prior.conditions.reads_text:
        return {"text": [("a large red circle", "a blue square", "violin, noto style")[i % 3] for i in range(count)]}
    return {"label": [i % pipeline.num_classes for i in range(count)]} if pipeline.num_classes else {}


def check(function, *batches, sizes=SIZES):
    """Rows of function(*batches) are those of each image alone."""
    alone = [function(*(batch[i : i + 1] for batch in batches)) for i in range(sizes[-1])]
    for size in sizes[1:]:
        together = function(*(batch[:size] for batch in batches))
        for i in range(size):
            assert torch.equal(alone[i], together[i : i + 1]), (size, i)


@pytest.mark.parametrize("backend", ["native", "plain"])
@torch.no_grad()
def test_products_round_rows_alike(backend, threads):
    x, add, matrix = torch.randn(16, 258), torch.randn(16, 100), torch.randn(258, 100)
    keys, values = torch.randn(2, 16, 3, 41, 24)
    windows, kernel = torch.randn(16, 5, 2, 9), torch.randn(16, 5, 2, 3)
    check(lambda x: rows.linear(x, matrix.T.contiguous(), add[0], backend), x)
    check(lambda x: rows.matmul(x, matrix, backend), x)
    check(lambda x: rows.addmm(add[0], x, matrix, backend), x)
    check(lambda add, x: rows.addmm(add, x, matrix, backend), add, x)
    check(rows.elu, x)
    check(lambda q, k, v: rows.attend(q, k, v), torch.randn(16, 3, 1, 24), keys, values)
    check(lambda window: rows.convolve_row(window, kernel, None, 1), windows)


@pytest.mark.parametrize(("count", "inputs", "outputs"), [(1, 7, 3), (2, 16, 16), (5, 33, 130), (7, 64, 64)])
@pytest.mark.parametrize("backend", ["native", "plain"])
@torch.no_grad()
def test_products_are_those_of_torch(backend, count, inputs, outputs, threads):
    wide, add = torch.randn(count, 2 * inputs), torch.randn(count, outputs)
    x = wide[:, inputs:]
    for matrix in (
        torch.randn(inputs, outputs),
        torch.randn(outputs, inputs).T,
        torch.randn(inputs, 2 * outputs)[:, ::2],
    ):
        expected = (x.double() @ matrix.double()).float()
        torch.testing.assert_close(rows.matmul(x, matrix, backend), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rows.addmm(add, x, matrix, backend), expected + add, rtol=1e-5, atol=1e-5)
        given = rows.linear(x[:, None], matrix.T, add[0], backend)
        torch.testing.assert_close(given[:, 0], expected + add[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_give_what_torch_gives():
    q, k, v = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    visible = torch.arange(7) < torch.tensor([4, 7])[:, None, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, visible)
    torch.testing.assert_close(rows.attend(q, k, v, visible), expected)
    images, layer = torch.randn(3, 2, 9, 8), torch.nn.Conv2d(2, 4, 3, stride=2, padding=1)
    torch.testing.assert_close(rows.by_images(layer, images), layer(images))
    window, kernel = torch.randn(2, 3, 2, 9), torch.randn(4, 3, 2, 3)
    row = torch.nn.functional.conv2d(window, kernel, padding=(0, 1), stride=2)[:, :, 0].mT
    torch.testing.assert_close(rows.convolve_row(window, kernel, None, 1, 2), row)


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_bundled_models_do_not_depend_on_the_batch(name):
    """Logits of the first codes, decoded images, and codes of these."""
    pipeline, count = chainrule.load(name), 4
    prior, given = pipeline.prior, condition(pipeline, count)
    caption, context = pipeline.condition(count, **given)
    codes = tuple(torch.randint(grid.codebook_size, (count, *grid.shape)) for grid in prior.spec.grids)
    runner, flat = prior.runner(), prior.spec.flatten(codes)

    def logits(index):
        state, previous, found = runner.init_state(len(index), select(context, index)), flat[index, 0], []
        for t in range(20):
            one, state = runner.step(previous, state)
            found.append(one)
            previous = flat[index, t]
        return torch.cat(found, 1)

    check(logits, torch.arange(count), sizes=(1, 3, 4))
    image = codes[len(caption) :]
    check(lambda *image: pipeline.tokenizer.decode(image), *image, sizes=(1, 3))
    images = pipeline.tokenizer.decode(image)
    check(lambda images: torch.cat([grid.flatten(1) for grid in pipeline.tokenizer.encode(images)], 1), images,
          sizes=(1, 3))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_bundled_models_draw_the_same_images_in_any_batch(name, threads):
    pipeline, seeds = chainrule.load(name), image_seeds(0, max(SIZES))
    given = condition(pipeline, len(seeds))
    check(lambda index: pipeline.sample(
        len(index), seed=[seeds[i] for i in index], **{key: [all_[i] for i in index] for key, all_ in given.items()}
    ), torch.arange(len(seeds)))  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}])
def test_many_images_are_drawn_in_batches(monkeypatch, options):
    pipeline = chainrule.load("shapes_parti")
    texts = ["a red circle", "a blue square", "a green triangle"]
    whole = pipeline.sample(3, text=texts, **options)
    monkeypatch.setattr("chainrule.pipeline.BATCH", 2)
    assert torch.equal(pipeline.sample(3, text=texts, **options), whole)
