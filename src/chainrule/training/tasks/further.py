"""What changes in a trained prior before it is trained further: its classes, the size of its codes, and LoRA."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core import ClassLabels, CodeSpec, Prior
from ...core.building import shapes_only
from ...layers.lora import LoRAConfig
from ...saving.model import AdapterPart


@dataclass(frozen=True, kw_only=True)
class LoRATraining(LoRAConfig):
    """Small changes of the matrices of attention are trained in place of all weights, see `layers.lora`.

    merge: whether the model is saved whole, and not as an adapter of the one it began from
    """

    merge: bool = False


@dataclass(frozen=True)
class Further:
    """How a trained prior differs from the one that it was.

    adapter: where its changes are saved apart; None: it is saved whole
    notes:   sentences for the log
    """

    adapter: AdapterPart | None = None
    notes: tuple[str, ...] = ()


def with_classes(prior: Prior, count: int, null_label: bool) -> tuple[Prior, list[str], str]:
    """A prior of `count` other classes, the names of its parameters that are new or have new rows, and a sentence.

    The vectors of the new labels begin as that of "no class", or else as the mean of the old labels' vectors; all other
    weights stay.  Vectors that classes share with codes, as in GPT, stay as well.

    Raises:
        ValueError: a prior that can have no classes.
    """
    if not isinstance(prior.config, ClassLabels):
        raise ValueError(f"{prior.name} has no classes that could be replaced; leave out prior.num_classes")
    had, new, changed = prior.config, _like(prior, count, null_label), []
    old, first_label = prior.state_dict(), _rows_without_labels(prior)
    for name, value in new.state_dict().items():  # the tensors of the new prior itself
        first = first_label.get(name)
        if first is None and name in old:
            value.copy_(old[name])
            continue
        if name in old and had.num_labels:
            labels = old[name][: had.num_labels]
            value[first:] = labels[-1] if had.null_label else labels.mean(0)
            value[:first] = old[name][:first]
        if first is None or len(value) > first:
            changed.append(name)
    start = "at random" if not had.num_classes else "as no class" if had.null_label else "as the mean of the old ones"
    fresh = f"new are {', '.join(changed)}, whose labels begin {start}" if changed else "no weights are new"
    return new, changed, f"num_classes was {had.num_classes} and is {count}: {fresh}"


def _like(prior: Prior, count: int, null_label: bool = False) -> Prior:
    return type(prior)(prior.spec, replace(prior.config, num_classes=count, null_label=null_label))


def _rows_without_labels(prior: Prior) -> dict[str, int]:
    """By the name of each tensor with rows for labels: its first such row, the number of its rows for codes."""
    many = max(grid.codebook_size for grid in prior.spec.grids) + 1
    with shapes_only():
        one, two, more = (_like(prior, count).state_dict() for count in (1, many, many + 1))
    depends = [name for name, value in more.items() if value.shape != two[name].shape]
    return {name: 0 if len(one[name]) == 1 else len(one[name]) for name in depends}


def at_codes(prior: Prior, image: CodeSpec) -> Prior:
    """A trained prior over the codes of images of another size, with the same weights.

    Raises:
        ValueError: weights that belong to one size, such as a vector for each position.
    """
    text = prior.spec.grids[: int(prior.conditions.joint_text)]
    if prior.spec.grids[len(text) :] == image.grids:
        return prior
    other = type(prior)(type(prior).spec_of(image, *text or (None,)), prior.config)
    mine, new = prior.state_dict(), other.state_dict()
    if any(name not in new or new[name].shape != value.shape for name, value in mine.items()):
        had, wanted = (" and ".join(f"{grid.height}x{grid.width}" for grid in grids)
                       for grids in (prior.spec.grids[len(text) :], image.grids))  # fmt: skip
        raise ValueError(
            f"this {prior.name} has weights for each position of {had} codes, and these images have {wanted}; leave "
            "out data.size"
        )
    other.load_state_dict(mine)
    return other
