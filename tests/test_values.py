"""Numbers, arrays and masks of NumPy are taken wherever those of Python and PyTorch are, and mean the same."""

import json

import numpy as np
import pytest
import torch

import chainrule
from chainrule.core.values import as_codes, as_int, as_mask, as_tensor, plain
from chainrule.decoding import Sampling
from chainrule.evaluation import psnr
from chainrule.evaluation.scoring import score
from test_cli import tiny


@pytest.fixture(scope="module")
def model():
    return tiny(3)


@pytest.fixture(scope="module")
def images(model):
    return model.sample(2, "dog", seed=1)


def test_sampling_takes_numbers_and_arrays_of_numpy(model):
    expected = model.sample(2, ["cat", "dog"], seed=5, temperature=0.5, top_k=100)
    arrays = np.array(["cat", "dog"]), np.array([0, 1]), np.array([0, 1], np.uint8)
    for label in (*arrays, [np.int64(0), np.str_("dog")]):
        drawn = model.sample(np.int64(2), label, seed=np.uint32(5), temperature=np.float32(0.5), top_k=np.int16(100))
        assert torch.equal(drawn, expected)
    assert torch.equal(model.sample(torch.tensor(2), torch.tensor([0, 1]), seed=torch.tensor(5), temperature=0.5,
                                    top_k=torch.tensor(100)), expected)  # fmt: skip
    each = model.sample(2, np.int32(1), seed=np.array([3, 4]))
    assert torch.equal(each, model.sample(2, "dog", seed=[3, 4]))
    assert json.dumps(vars(Sampling(temperature=np.float64(0.5), top_k=np.int64(3))))


def test_images_and_masks_of_numpy(model, images):
    array, mask = images.numpy(), np.zeros(images.shape[2:], bool)
    mask[: len(mask) // 2] = True
    assert torch.equal(model.log_prob(array, np.array([1, 2])), model.log_prob(images, [1, 2]))
    assert torch.equal(model.surprise(array, "dog"), model.surprise(images, "dog"))
    assert torch.equal(model.classify(array), model.classify(images))
    assert torch.equal(model.reconstruct(array), model.reconstruct(images))
    assert torch.equal(score(model, array, np.array(["dog", "cat"])).nats, score(model, images, ["dog", "cat"]).nats)
    expected = model.complete(images[0], torch.from_numpy(mask), 2, "dog")
    for same in (mask, mask.astype(np.uint8), mask * np.uint8(255), mask.astype(float), mask.tolist()):
        assert torch.equal(model.complete(array[0], same, np.int64(2), "dog"), expected)
    assert psnr(array, array).tolist() == [100, 100]


@pytest.mark.parametrize("name", ["emoji_vqgan", "emoji_vqvae2", "emoji_dvae"])
def test_tokenizers_take_arrays(name):
    tokenizer = chainrule.load(name)
    images = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(1, 3, 64, 64)
    codes = tokenizer.encode(images)
    for read in (tokenizer.encode(images.numpy()), chainrule.encode(tokenizer, images.numpy())):
        assert all(torch.equal(a, b) for a, b in zip(read, codes, strict=True))
    narrow = [grid.numpy().astype(np.int16) for grid in codes]
    assert torch.equal(tokenizer.decode(narrow), tokenizer.decode(codes))
    assert torch.equal(chainrule.decode(tokenizer, narrow), tokenizer.decode(codes))


def test_values_that_are_something_else(model, images):
    for call, sentence in [
        (lambda: model.sample(2.5, 0), "n must be a whole number, got float 2.5"),
        (lambda: model.sample("2", 0), "n must be a whole number"),
        (lambda: model.sample(2, 1.0), "a class is given by its name or its number, got 1.0"),
        (lambda: model.sample(2, np.array([0.0, 1.0])), "label must hold whole numbers, got float64"),
        (lambda: model.sample(2, np.array([0, 9])), r"label must lie in 0..2, got 0..9"),
        (lambda: model.sample(2, 0, seed=1.5), "seed must be a whole number"),
        (lambda: model.sample(2, 0, seed=2**64), "a seed must lie in 0"),
        (lambda: model.log_prob([object()], 0), "images must be a tensor or an array of numbers, got list"),
        (lambda: model.log_prob(images.numpy() / 255, 0), "images must be uint8 .*, got float64"),
        (lambda: model.complete(images[0], images[0, 0] // 2 + 3, 1, 0), "mask must hold True and False, or 1 and 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_conversions():
    array = np.arange(4, dtype=np.uint8)
    assert as_tensor(array, "x").data_ptr() == array.ctypes.data
    assert as_tensor(array[::-1], "x").tolist() == [3, 2, 1, 0]
    array.flags.writeable = False
    assert as_tensor(array, "x").tolist() == [0, 1, 2, 3]
    assert as_tensor([torch.tensor([1]), torch.tensor([2])], "x").tolist() == [[1], [2]]
    assert as_codes(np.zeros((1, 2, 2, 1), np.uint8))[0].dtype == torch.int64
    assert as_codes(torch.zeros(1, 2, 2, 1))[0].dtype == torch.float32  # refused by the tokenizer
    assert as_mask(torch.zeros(2, 2)).tolist() == [[False] * 2] * 2
    assert as_int(np.int8(3), "n") == 3
    assert plain({"a": [np.float32(0.5), torch.tensor(2)], "b": (np.int64(1), "x")}) == {"a": [0.5, 2], "b": (1, "x")}
