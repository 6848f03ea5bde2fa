"""Activation checkpointing: layers that are computed again give the same gradients and keep fewer tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chainrule.training.engine.hardware import recompute_layers
from sizes import cases
from test_contract import context, random_codes


def has_layers(case) -> bool:
    entry, preset = case.values
    arguments = (preset.config,) if preset.spec is None else (preset.spec, preset.config)
    return any(getattr(module, "is_layer", False) for module in entry.model(*arguments).modules())


PRIORS, TOKENIZERS = ([case for case in cases(kind) if has_layers(case)] for kind in ("priors", "tokenizers"))


def gradients(model: nn.Module, loss_of) -> tuple[int, dict]:
    """The number of tensors kept for the backward pass, and the gradient of a loss by parameter."""
    kept = []
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(0) or tensor, lambda tensor: tensor):
        loss = loss_of(model)
    loss.backward()
    return len(kept), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check(model: nn.Module, loss_of) -> None:
    many, expected = gradients(model, loss_of)
    recompute_layers(model)
    few, found = gradients(model, loss_of)
    assert few < many and expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
def test_priors_have_the_same_gradients(entry, preset):
    model = entry.model(preset.spec, preset.config).train()
    codes = random_codes(preset.spec, 3)
    check(model, lambda model: -model.log_prob(codes, context(model, 3)).mean())


@pytest.mark.parametrize(("entry", "preset"), TOKENIZERS)
def test_tokenizers_have_the_same_gradients(entry, preset):
    model = entry.model(preset.config).train()
    images = torch.randint(0, 256, (2, *model.image_shape), dtype=torch.uint8)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def loss_of(model):
        model.load_state_dict(state)  # codebooks learn at each call
        return model.reconstruction(images, 0.5).loss

    check(model, loss_of)


def test_models_of_the_families_are_there():
    names = {case.values[0].name for case in (*PRIORS, *TOKENIZERS)}
    assert {"gpt", "dalle", "dalle_bart", "parti", "rq_transformer", "vqgan", "rqvae", "dvae", "vit_vqgan"} <= names


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="checkpointing would be ignored: the model has no layers"):
        recompute_layers(nn.Linear(2, 2))
