"""Training tokenizers: losses, their balance, collapse and recovery, resuming, recipes.

As a script, under torchrun, it trains one and writes what each process holds: python test_tokenizer_task.py FOLDER.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chainrule import zoo
from chainrule.core import LearnedTokenizer
from chainrule.data import DataConfig, ImageDataset, load
from chainrule.recipe import NewModel, build_recipe, read_recipe
from chainrule.strict import parse_yaml, write_yaml
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig
from chainrule.training import EvaluationConfig, Hardware, TrainingConfig, train, train_task
from chainrule.training.tasks.discriminators import AdversarialConfig
from chainrule.training.tasks.examples import Examples
from chainrule.training.tasks.losses import ImageLosses, LossesConfig, PerceptualConfig, adaptive_weight, known_loss
from chainrule.training.tasks.tokenizer import RefinedTokenizer, TokenizerRecipe, TokenizerTask
from forks import run_script
from sizes import cases

TINY = {"width": 16, "residual_width": 8, "num_blocks": 1, "codebook_size": 32, "embedding_dim": 8}
TRAINING = TrainingConfig(
    steps=40, batch_size=8, learning_rate=2e-3, precision="float32", ema_decay=0.9, log_every=10, save_every=12,
    sample_every=40, optimizer="adam", schedule="constant", warmup_steps=0, gradient_clip=0.0,
)  # fmt: skip
ADVERSARIAL = AdversarialConfig(width=4, num_layers=2, start=0.5, learning_rate=1e-3)
LEARNED = cases("tokenizers", LearnedTokenizer)


class Blur(nn.Module):
    """A perceptual loss of its own: the squared error of local means."""

    def forward(self, target: Tensor, images: Tensor) -> Tensor:
        return (nn.functional.avg_pool2d(target - images, 4)).square().mean()


def shapes(split: str, size: int = 16) -> ImageDataset:
    return load(DataConfig("shapes", split, size=size))


def build(losses: LossesConfig = LossesConfig(), size: int = 16, **options) -> TokenizerTask:
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAEConfig(image_height=size, image_width=size, **(TINY | options)))
    perceptual = Blur() if losses.perceptual else None
    return TokenizerTask(
        tokenizer,
        Examples(
            data=DataConfig("shapes", size=size), training=shapes("train[:200]", size),
            evaluation=shapes("test[:40]", size), limit=20, batch_size=16,
        ),
        ImageLosses(losses, perceptual, tokenizer.image_shape),
    )  # fmt: skip


def run(task: TokenizerTask, folder, training: TrainingConfig = TRAINING):
    folder.mkdir(parents=True, exist_ok=True)
    fabric = Hardware("cpu").fabric()
    fabric.launch()
    return train_task(task, training, folder, 20, fabric, quiet=True)


def columns(folder) -> dict[str, list[float]]:
    header, *rows = (folder / "log.csv").read_text().splitlines()
    values = torch.tensor([[float(value) for value in row.split(",")] for row in rows], dtype=torch.float64)
    return dict(zip(header.split(","), values.T.tolist(), strict=True))


# ---------------------------------------------------------------- the contract of tokenizers


@pytest.mark.parametrize(("entry", "preset"), LEARNED)
def test_the_last_layer_makes_the_image(entry, preset):
    """Scaling it scales the image's variation: no other layer comes after it."""
    tokenizer = entry.model(preset.config)
    images = torch.randint(0, 256, (2, *tokenizer.image_shape), dtype=torch.uint8)
    result = tokenizer.reconstruction(images, 0.5)
    for part in (result.images.mean(), result.loss):
        (gradient,) = torch.autograd.grad(part, tokenizer.last_layer, retain_graph=True)
        assert gradient.norm() > 0
    with torch.no_grad():
        tokenizer.last_layer.zero_()
        flat = tokenizer.reconstruction(images, 0.5).images
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


# ---------------------------------------------------------------- losses


def test_a_loss_of_known_gradient_trains_like_the_loss_itself():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    judged = images.detach().requires_grad_()
    loss = judged.pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, judged)
    stitched = 0.5 * known_loss(images * 1, loss.detach(), gradient)
    assert stitched.item() == 0.5 * loss.item()
    (found,) = torch.autograd.grad(stitched, images)
    torch.testing.assert_close(found, 1.5 * images.detach().square())


def test_the_adaptive_weight_is_a_ratio_of_gradients():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(5 / 2.0001)
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.zeros(2)).item() == pytest.approx(1e4)


def test_losses_are_summed_and_balanced_as_the_equations_say():
    """Against plain differentiation of the sum, with the weight from two passes back to the last layer."""
    losses = LossesConfig(perceptual=PerceptualConfig(weight=2.0), adversarial=replace(ADVERSARIAL, start=0.0))
    task = build(losses, decay=0.0, restart_below=0.0)  # a codebook that two passes would change alike
    batch = task.batch(torch.arange(8), slice(0, 8), torch.Generator())
    task.model.eval()  # no upkeep of the codebook between the two passes
    loss, metrics = task.loss(task.model, batch, 0.5)
    loss.backward()
    tokenizer = task.model.tokenizer
    found = {name: parameter.grad.clone() for name, parameter in tokenizer.named_parameters()}

    target = batch.images.float() / 255
    result = tokenizer.reconstruction(batch.images, 0.5)
    ours = result.loss + 2.0 * task.losses.perceptual(target, result.images)
    theirs = -task.adversary.module.score(result.images).mean()
    gradients = [torch.autograd.grad(part, tokenizer.last_layer, retain_graph=True)[0] for part in (ours, theirs)]
    weight = 0.8 * gradients[0].norm() / (gradients[1].norm() + 1e-4)
    torch.testing.assert_close(metrics["adversarial_weight"], weight)
    torch.testing.assert_close(loss, ours + weight * theirs)
    parameters = dict(tokenizer.named_parameters())
    expected = torch.autograd.grad(ours + weight.detach() * theirs, list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in task.adversary.module.parameters())


def test_before_its_start_an_adversary_changes_nothing(tmp_path):
    torch.manual_seed(0)
    run(build(), tmp_path / "alone")
    duel = build(LossesConfig(adversarial=ADVERSARIAL))
    run(duel, tmp_path / "duel")
    alone, against = columns(tmp_path / "alone"), columns(tmp_path / "duel")
    assert against["mse"][:2] == alone["mse"][:2]  # the first half
    assert against["mse"][2:] != alone["mse"][2:]
    for name in ("adversarial", "adversarial_weight", "adversary"):
        assert against[name][:2] == [0.0, 0.0] and all(against[name][2:])


def test_perceptual_loss_is_of_features():
    pytest.importorskip("chainrule.scorers.features", reason="the networks of features are not there yet")
    from chainrule.training.tasks.losses import PerceptualLoss

    class Edges(nn.Conv2d):
        weights = None

        def forward(self, images):
            return [super().forward(images.expand(-1, 3, -1, -1))]

    loss = PerceptualLoss(Edges(3, 4, 3))
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    assert loss(images.detach(), images).item() == pytest.approx(0, abs=1e-6)
    distance = loss(torch.rand(2, 1, 8, 8), images)
    distance.backward()
    assert distance > 0 and images.grad.norm() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


# ---------------------------------------------------------------- runs


def test_training_lowers_the_loss_and_leaves_a_tokenizer(tmp_path):
    result = run(build(), tmp_path, replace(TRAINING, steps=80))
    losses = columns(tmp_path)["loss"]
    assert losses[-1] < 0.5 * losses[0]
    tokenizer = zoo.load_tokenizer(tmp_path)
    images = shapes("test[:40]").images
    decoded = tokenizer.decode(tokenizer.encode(images))
    error = (decoded.double() - images.double()).square().flatten(1).mean(1)
    assert result.metrics["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item())
    counts = torch.bincount(tokenizer.encode(images)[0].flatten(), minlength=32).double()
    assert result.metrics["usage"] == pytest.approx((counts > 0).double().mean().item())
    share = counts / counts.sum()
    assert result.metrics["perplexity"] == pytest.approx(torch.special.entr(share).sum().exp().item(), rel=1e-5)
    assert zoo.read_card(tmp_path)["metrics"] == result.metrics
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_a_collapsed_codebook_recovers(tmp_path):
    task = build(size=32, codebook_size=64)
    codebook = task.model.tokenizer.quantizer.codebook
    with torch.no_grad():
        codebook.weight.fill_(0.1)
    result = run(task, tmp_path, replace(TRAINING, steps=200, ema_decay=0.0))
    assert result.metrics["usage"] >= 0.9


def test_a_codebook_hardly_used_is_warned_of(tmp_path):
    task = build(restart_below=0.0)
    with torch.no_grad():
        task.model.tokenizer.quantizer.codebook.weight.fill_(0.1)
        with pytest.warns(UserWarning, match="only 3% of the 32 codes of grid 0 are in use; .*restart_below .now 0.0"):
            assert task.evaluate(task.model.eval(), final=True)["usage"] == 1 / 32


def test_preview_shows_originals_beside_reconstructions():
    task = build()
    with torch.no_grad():
        pairs = task.preview(task.model.eval(), seed=0)
    assert pairs.shape == (16, 3, 16, 16) and torch.equal(pairs[0::2], task.evaluation.images[:8])
    assert not torch.equal(pairs[1::2], pairs[0::2])


def test_a_stopped_duel_resumes_bit_for_bit(tmp_path):
    losses = LossesConfig(perceptual=PerceptualConfig(), adversarial=ADVERSARIAL)
    training = replace(TRAINING, steps=30, precision="bfloat16", channels_last=True)
    run(build(losses), tmp_path / "one", training)
    for steps in (19, 30):  # nothing depends on the number of steps but the start of the adversary
        task = build(replace(losses, adversarial=replace(ADVERSARIAL, start=0.5 * 30 / steps)))
        run(task, tmp_path / "two", replace(training, steps=steps))
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "step-00000030.pt", weights_only=True) for name in ("one", "two")
    )
    for part in ("learner", "average"):
        states = [s[part]["module"] for s in (one, two)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, value in one["adversary"]["module"].items():
        assert torch.equal(value, two["adversary"]["module"][name])
    assert one["adversary"]["optimizer"]["state"][0]["step"] == two["adversary"]["optimizer"]["state"][0]["step"] == 15


def test_two_processes_hold_the_same_codebook_and_adversary(tmp_path):
    child = run_script(__file__, str(tmp_path), processes=2)
    assert child.returncode == 0, child.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for part in first:
        for name, value in first[part].items():
            if "running" not in name:  # statistics of a batch are those of a process, in VQGAN, too
                assert torch.equal(value, second[part][name]), name
    before = build(LossesConfig(adversarial=ADVERSARIAL))
    codebook = "tokenizer.quantizer.codebook.weight"
    assert not torch.equal(first["model"][codebook], before.model.state_dict()[codebook])
    assert not torch.equal(first["adversary"]["layers.0.weight"], before.adversary.module.layers[0].weight)


# ---------------------------------------------------------------- recipes


RECIPE = TokenizerRecipe(
    data=DataConfig("shapes", "train[:64]", size=16),
    tokenizer=NewModel(name="vqvae", options=TINY),
    training=replace(TRAINING, steps=4, sample_every=0),
    evaluation=EvaluationConfig(split="test[:8]", every=4),
    losses=LossesConfig(adversarial=ADVERSARIAL),
)


def test_recipe_without_prior_trains_its_tokenizer(tmp_path):
    plain = RECIPE.build()[1].plain()
    assert plain["tokenizer"]["image_height"] == 16 and "prior" not in plain
    assert plain["losses"]["perceptual"] is None and plain["losses"]["adversarial"]["weight"] == 0.8
    path = tmp_path / "shapes.yaml"
    path.write_text(write_yaml(plain))
    assert read_recipe(path).build()[1].plain() == plain
    assert train(path, tmp_path / "run", quiet=True).steps == 4
    assert train(path, tmp_path / "run", quiet=True).steps == 4  # the same recipe: nothing is left to do
    card = zoo.read_card(tmp_path / "run")
    assert card["steps"] == 4 and card["recipe"]["losses"] == plain["losses"]


@pytest.mark.parametrize(("found", "preset"), LEARNED)
def test_a_tokenizer_is_made_for_images_of_another_size(found, preset):
    model = found.model(preset.config).eval()
    channels, height, width = model.image_shape
    try:
        other = model.at_size(2 * height, width)
    except ValueError as error:
        assert "works on images of" in str(error) and found.name == "vit_vqgan"
        return
    assert other.image_shape == (channels, 2 * height, width) and not other.training
    assert other.spec.length == 2 * model.spec.length
    large = torch.randint(0, 256, (2, *other.image_shape), dtype=torch.uint8)
    codes = model.encode(large)
    other.spec.check(codes)
    assert all(torch.equal(a, b) for a, b in zip(other.encode(large), codes, strict=True))
    assert torch.equal(other.decode(codes), model.decode(codes))
    assert model.at_size(height, width) is model
    with pytest.raises(ValueError, match="must be"):
        model.at_size(height + 1, width)


def test_the_decoder_of_a_trained_tokenizer_learns_at_another_size(tmp_path):
    zoo.save(build(size=16).model.tokenizer, tmp_path / "saved")
    data = DataConfig("shapes", "train[:64]", size=32)
    refined = RefinedTokenizer(path=str(tmp_path / "saved"), decoder={})
    recipe = replace(RECIPE, tokenizer=refined, data=data, losses=LossesConfig())
    (tmp_path / "r.yaml").write_text(write_yaml(recipe.plain()))
    train(tmp_path / "r.yaml", tmp_path / "run", quiet=True)
    trained = zoo.load(tmp_path / "run")
    assert trained.image_shape == (3, 32, 32) and zoo.read_card(tmp_path / "run")["steps"] == 4
    assert replace(recipe, data=replace(data, size=None)).build()[1].data.size == (16, 16)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer": NewModel(name="pixels")}, "the tokenizer pixels has nothing to learn; add the section 'prior'"),
        ({"training": replace(TRAINING, compile=True)}, "leave training.compile out, or set"),
        ({"data": DataConfig("shapes", size=16, binarize="threshold")}, "set data.binarize to none"),
        (
            {"tokenizer": NewModel(name="vqvae", options=TINY | {"image_height": 32})},
            r"is for images \(3, 32, 16\), those of shapes are \(3, ",
        ),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(RECIPE, **change).build()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{perceptual: {wieght: 1}}", "unknown key 'wieght' in 'losses.perceptual'; did you mean 'weight'?"),
        ("{perceptual: {side: -1}}", "side must be at least 0"),
        ("{perceptual: {network: vgg}}", "'losses.perceptual.network' must be efficientnet_lite0 or vgg16_lpips"),
        ("{adversarial: {start: 1.5}}", "start must lie in 0..1"),
        ("{adversarial: {discriminator: style, num_layers: 2}}", "num_layers belongs to the patch discriminator"),
        ("{adversarial: {weight: 0}}", "weight of the adversarial loss must be above 0"),
    ],
)
def test_one_sentence_for_every_mistake_in_losses(text, sentence):
    plain = RECIPE.build()[1].plain() | {"losses": parse_yaml(text, "r.yaml")}
    with pytest.raises(ValueError) as error:
        build_recipe(plain, "r.yaml")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_losses_beside_a_prior_are_refused():
    plain = RECIPE.build()[1].plain() | {"prior": {"name": "gated_pixelcnn"}}
    with pytest.raises(ValueError, match="a recipe with 'prior' has no 'losses'"):
        build_recipe(plain, "r.yaml")


def main(folder: str) -> None:
    torch.set_num_threads(1)
    task = build(LossesConfig(adversarial=ADVERSARIAL))
    run(task, Path(folder) / "run", replace(TRAINING, steps=8))
    parts = {"model": task.model.state_dict(), "adversary": task.adversary.module.state_dict()}
    torch.save(parts, Path(folder) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
