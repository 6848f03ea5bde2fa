"""Comparing sets of images as papers do: the figures of torch-fidelity on the same weights and images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from chainrule.evaluation import comparison, frechet_distance, load_features, perceptual_distance
from chainrule.evaluation.comparison import compare, inception_score, kernel_distance, read_set
from chainrule.images import to_pil
from chainrule.scorers.inception import Inception, load_inception
from test_cli import refused, run
from test_reranker import StubModel, StubProcessor

FIGURES = {"fid": 327.4268, "inception_score": 1.000504, "kid": -48.11844}
"""Of torch-fidelity 0.4.0 for the weights and images below, the subsets of KID as large as the smaller set."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of random weights in the format of the public one."""
    generator = torch.Generator().manual_seed(0)
    tensors = Inception().state_dict()
    for name, value in tensors.items():
        if name.endswith("conv.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "bn.weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """The features of a set are computed once for all tests: an image takes a quarter of a second."""
    found = {}

    def read(path, network):
        key = str(path), network.title
        if key not in found:
            found[key] = read_set(path, network)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "read_set", read)
        yield


def pictures(count: int, seed: int) -> torch.Tensor:
    """Smooth images of 24x20, uint8 (count, 3, 24, 20)."""
    coarse = torch.randint(0, 256, (count, 3, 3, 4), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(coarse, (24, 20), mode="bilinear").round().to(torch.uint8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 20 images and a .npz file of 4."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "generated").mkdir()
    for index, picture in enumerate(to_pil(pictures(20, seed=1))):
        picture.save(folder / "generated" / f"{index:02d}.png")
    np.savez(folder / "real.npz", arr_0=pictures(4, seed=2).permute(0, 2, 3, 1).numpy())
    return folder / "generated", folder / "real.npz"


def test_figures_are_those_of_torch_fidelity(weights, sets, tmp_path):
    found = compare(*sets, weights, tmp_path / "statistics.npz")
    for name, expected in FIGURES.items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-4, abs=1e-3), name
    assert (found.num_generated, found.num_reference) == (20, 4) and found.sfid > 0
    again = compare(sets[0], tmp_path / "statistics.npz", weights)
    assert again.fid == pytest.approx(found.fid) and again.sfid == pytest.approx(found.sfid)
    assert again.kid is None and again.precision is None and again.num_reference is None


def test_command(weights, sets, tmp_path):
    words = ["compare", *sets, "--weights", weights]
    value = json.loads(run(*words, "--json", "--statistics", tmp_path / "real.npz"))
    assert value["fid"] == pytest.approx(FIGURES["fid"], rel=1e-4) and value["resize"].startswith("bilinear to 299x299")
    text = run("compare", sets[0], tmp_path / "real.npz", "--weights", weights)
    assert f"{value['fid']:.4f}" in text and "KID" not in text and "20 generated images against statistics" in text
    assert "exists" in refused(*words, "--statistics", tmp_path / "real.npz")
    assert "is no file of weights" in refused("compare", *sets, "--weights", tmp_path / "missing.pth")


def test_sets_that_cannot_be_read(weights, tmp_path):
    network = load_inception(weights)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 8, 8, 3)))
    np.savez(tmp_path / "unequal.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    for name, message in (
        ("empty", "holds 0 images"), ("missing", "neither a folder"), ("text.npz", "no readable .npz file"),
        ("other.npz", "neither images"), ("float.npz", "arr_0 must be uint8"), ("unequal.npz", "do not fit each other"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / name, network)


def test_scores_by_hand():
    certain = 100.0 * torch.eye(4).repeat(10, 1)
    assert inception_score(certain[:, :1].expand(-1, 4)) == pytest.approx(1)
    assert 2 < inception_score(certain) <= 4
    a = torch.randn(20, 8)
    assert kernel_distance(a, a + 3)[0] > 1 > abs(kernel_distance(a, torch.randn(20, 8))[0])


def test_inception_as_features(weights, monkeypatch):
    network = load_features(str(weights))
    images = pictures(2, seed=3).float() / 255
    assert network.pooled(images).shape == (2, 2048) == network.pooled(images[:, :1]).shape  # grey
    assert perceptual_distance(network(images), network(images)).tolist() == [0, 0]

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match="weights of inception cannot be downloaded"):
        load_features("inception")


def test_other_weights_are_refused(weights, tmp_path):
    tensors = torch.load(weights, weights_only=True)
    torch.save({**tensors, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other weights than those of FID: 'fc.weight'"):
        load_inception(tmp_path / "other.pth")


def test_a_public_clip_gives_a_distance_and_a_score(sets, tmp_path, monkeypatch, weights):
    """Through stubs: their features of an image are the means of its channels, of a text its number of words."""
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(CLIPModel=StubModel, CLIPProcessor=StubProcessor))
    texts, clip = ["one two"] * 19 + ["three"], "openai/clip-vit-base-patch32"
    found = compare(*sets, statistics=tmp_path / "real.npz", clip=clip, texts=texts)
    a, b = (images.double().mean((2, 3)) / 255 for images in (pictures(20, seed=1), pictures(4, seed=2)))
    assert found.fid == pytest.approx(frechet_distance(a, b), rel=1e-4)
    words = torch.tensor([[2.0, 1, 1]] * 19 + [[1.0, 1, 1]])
    cosine = torch.nn.functional.cosine_similarity(a, words.double())
    assert found.clip_score == pytest.approx(100 * cosine.mean().item(), rel=1e-5)
    assert (found.sfid, found.inception_score, found.features) == (None, None, f"CLIP {clip}")
    assert found.resize == "by the model's own processor" and (found.num_generated, found.num_reference) == (20, 4)

    again = compare(sets[0], tmp_path / "real.npz", clip=clip)  # statistics are used again
    assert again.fid == pytest.approx(found.fid, rel=1e-4) and again.clip_score is again.kid is None
    with pytest.raises(ValueError, match="holds statistics of CLIP openai/clip-vit-base-patch32, not of Inception"):
        compare(sets[0], tmp_path / "real.npz", weights)
    with pytest.raises(ValueError, match="2 texts are not one for each of 20 generated images"):
        compare(*sets, clip=clip, texts=["a", "b"])
    (tmp_path / "captions.txt").write_text("\n".join(texts), encoding="utf-8")
    value = json.loads(run("compare", *sets, "--clip", clip, "--texts", tmp_path / "captions.txt", "--json"))
    assert value["clip_score"] == pytest.approx(found.clip_score)
    assert "CLIP score" in run("compare", *sets, "--clip", clip, "--texts", tmp_path / "captions.txt")
    assert "texts would be ignored without a CLIP" in refused("compare", *sets, "--texts", tmp_path / "captions.txt")
    assert "leave one out" in refused("compare", *sets, "--clip", clip, "--weights", weights)
