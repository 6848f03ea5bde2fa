"""Nothing that is nan or infinite leaves the package: neither images nor figures, weights or JSON."""

import pytest
import torch

import chainrule
from chainrule import Pipeline
from chainrule.cli.output import to_json
from chainrule.core import class_number, entry
from chainrule.decoding import Sampling
from chainrule.training.engine.checkpoint import list_checkpoints
from sizes import tiny
from test_training_engine import Toy, run


def pipeline() -> Pipeline:
    tokenizer = entry("tokenizers", "pixels").model(tiny("tokenizers", "pixels").config)
    found = entry("priors", "gated_pixelcnn")
    return Pipeline(tokenizer, found.model(tokenizer.spec, tiny("priors", "gated_pixelcnn").config))


def spoiled(value: float) -> Pipeline:
    """A model with one wrong weight."""
    model = pipeline()
    with torch.no_grad():
        next(model.prior.parameters()).view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [1e-320, float("inf"), float("nan"), -1.0])
def test_a_temperature_is_0_or_a_number_that_logits_can_be_divided_by(value):
    with pytest.raises(ValueError, match="temperature must be 0, for the most probable code, or a number from 1e-06"):
        Sampling(temperature=value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_guidance_is_finite(value):
    with pytest.raises(ValueError, match="guidance must be a finite number"):
        Sampling(guidance=value)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 2}, {"guidance": 1e38}])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_codes_are_drawn_from_finite_logits(options, wrong):
    sampling = Sampling(**options)
    with pytest.raises(ValueError, match="logits that are nan or infinite"):
        sampling.probabilities(torch.tensor([[0.0, 1.0], [wrong, 0.0]]))
    assert sampling.probabilities(torch.tensor([[0.0, -torch.inf]])).tolist() == [[1.0, 0.0]]  # a code that cannot be


def test_a_damaged_model_neither_draws_nor_scores():
    model = spoiled(float("nan"))
    with pytest.raises(ValueError, match="logits that are nan or infinite: its weights are damaged"):
        model.sample(2)
    with pytest.raises(ValueError, match="log-likelihoods that are nan"):
        model.log_prob(torch.zeros(1, *model.tokenizer.image_shape, dtype=torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, monkeypatch, value):
    with pytest.raises(ValueError, match="the model is not saved: its weights .* are not all finite numbers"):
        spoiled(value).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with monkeypatch.context() as patched:
        patched.setattr("chainrule.saving.weights._check_finite", lambda tensors, consequence: None)
        spoiled(value).save(tmp_path / "old")
    with pytest.raises(ValueError, match=r"prior\.safetensors is damaged, or of a training that diverged"):
        chainrule.load(tmp_path / "old")


def test_a_last_step_that_diverges_saves_nothing(tmp_path):
    toy = Toy()

    def spoil(number: int) -> None:
        if number == 40:
            toy.model[0].weight.register_hook(lambda gradient: gradient + torch.nan)

    toy.on_loss = spoil
    with pytest.raises(ValueError, match=r"the weights 0\.weight are not all finite numbers at step 40"):
        run(tmp_path, toy=toy)
    assert next(path.name for path in list_checkpoints(tmp_path / "checkpoints")) == "step-00000036.pt"


def test_an_evaluation_that_is_not_finite_stops_in_a_sentence(tmp_path):
    toy = Toy()
    toy.evaluate = lambda model, final: {"nats": float("nan")}
    with pytest.raises(ValueError, match="the evaluation gives nats nan at step 5"):
        run(tmp_path, toy=toy)


def test_json_holds_finite_numbers():
    assert to_json({"nats": 1.5}) == '{\n  "nats": 1.5\n}'
    with pytest.raises(ValueError, match="a figure is nan or infinite, so no JSON is written"):
        to_json({"nats": [float("nan")]})


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("café", ["bar", "café"], 1),
        ("cafe\u0301", ["bar", "café"], 1),  # decomposed, as a Mac has it
        ("1", ["bar", "café"], 1),
        ("3", ["cat", "3", "dog", "5"], 1),
        (1, ["1", "2", "10"], 0),
        ("10", ["1", "2", "10"], 2),
        (7, ["03", "07"], 1),
        (2, None, 2),
    ],
)
def test_a_class_is_found_by_name_first(label, names, number):
    assert class_number(label, 3 if names is None else len(names), names, "model") == number


@pytest.mark.parametrize("label", ["0", 0, "11", -1])
def test_a_number_that_is_no_name_is_refused_where_names_are_numbers(label):
    with pytest.raises(ValueError, match=f"this model has no class '?{label}'?; it knows 3: 1, 2, 10"):
        class_number(label, 3, ["1", "2", "10"], "model")
