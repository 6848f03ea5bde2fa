"""New models by name, and the published sizes that they can have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from .core import CodeSpec, Prior, Tokenizer, entries, find_entry
from .core.building import shapes_only
from .layers.lora import LoRAConfig, add_lora, trained
from .strict import build_dataclass, to_plain


@dataclass(frozen=True)
class PresetInfo:
    """A published size of a model.

    model:      name of the tokenizer or prior
    preset:     name of the size
    kind:       "tokenizer" or "prior"
    parameters: learned numbers; a codebook is not among them where it is no parameter
    codes:      the grids of codes that a tokenizer gives or a prior models, as in CodeSpec.to_dict: [H, W, D, K] each
    lora:       parameters of LoRA of rank 16; None where a model has no attention of transformers, or is no prior
    """

    model: str
    preset: str
    kind: str
    parameters: int
    codes: list[list[int]]
    lora: int | None

    def memory(self) -> dict[str, float]:
        """Gigabytes (10^9 bytes) of the weights in `float32` and `bfloat16`, and of what a training holds in float32.

        That of all weights, `adam`, is weights, gradients, both moments of Adam, and the average; that of `lora` is all
        weights, and the others for the changes only.  What a batch needs comes on top, and grows with it.
        """
        gigabytes = self.parameters / 1e9
        found = {"float32": 4 * gigabytes, "bfloat16": 2 * gigabytes, "adam": 20 * gigabytes}
        return found if self.lora is None else found | {"lora": 4 * gigabytes + 20 * self.lora / 1e9}


def create(name: str, preset: str | None = None, *, spec: CodeSpec | None = None, **options: Any) -> Tokenizer | Prior:
    """A new tokenizer or prior with random weights.

    Example:
        >>> gpt = chainrule.create("gpt", spec=CodeSpec.single(8, 8, 1, 512), num_layers=2, width=64, num_heads=4)
        >>> with torch.device("meta"):  # the sizes without memory for them
        ...     dalle = chainrule.create("dalle", "dalle")
        >>> sum(parameter.numel() for parameter in dalle.parameters())
        12292820352

    Args:
        name: of the model, such as "vqgan" or "gpt".
        preset: a published size, see `presets`; without one, a size that a CPU trains, as in a recipe.
        spec: the codes that a prior models; a preset has its own.
        options: fields of the model's config, which replace those of the preset.

    Raises:
        ValueError: no such model, preset or field, a value out of range, or a prior without codes.
    """
    entry = find_entry(name)
    base = None if preset is None else entry.preset(preset)
    sizes = dict(entry.small) if base is None else to_plain(base.config)
    config = build_dataclass(entry.config, sizes | options, name)
    if issubclass(entry.model, Tokenizer):
        if spec is not None:
            raise ValueError(f"{name} is a tokenizer, which gives codes of its own: leave spec out")
        return entry.model(config)
    spec = spec or (base.spec if base else None)
    if spec is None:
        raise ValueError(f"{name} models codes: give spec, the shapes and sizes of their grids, or a preset")
    return entry.model(spec, config)


def presets(name: str | None = None) -> list[PresetInfo]:
    """The published sizes of all models, or of the model `name`; nothing of their size is held in memory.

    Raises:
        ValueError: no such model.
    """
    found = [*entries("tokenizers").values(), *entries("priors").values()] if name is None else [find_entry(name)]
    return [_info(entry.name, preset) for entry in found for preset in entry.presets]


@cache
def _info(model_name: str, preset_name: str) -> PresetInfo:
    entry = find_entry(model_name)
    preset = entry.presets[preset_name]
    with shapes_only():
        model = entry.model(preset.config) if preset.spec is None else entry.model(preset.spec, preset.config)
    kind = "tokenizer" if isinstance(model, Tokenizer) else "prior"
    count = sum(parameter.numel() for parameter in model.parameters())
    return PresetInfo(model_name, preset_name, kind, count, model.spec.to_dict(), _lora(model))


def _lora(model: Tokenizer | Prior) -> int | None:
    """Parameters of LoRA in a model on the device "meta", which it changes."""
    if isinstance(model, Tokenizer):
        return None
    try:
        with shapes_only():
            add_lora(model, LoRAConfig())
    except ValueError:  # no attention of transformers
        return None
    return sum(value.numel() for value in trained(model).values())
