"""How a run trains and when it evaluates: the sections `training` and `evaluation` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEARNING_RATES = {"muon": 2e-3, "adam": 1e-3, "adamw": 1e-3, "adamax": 2e-3, "rmsprop": 1e-3}
"""By optimizer, the learning rate where a recipe gives none: for small models and batches of about 32 images."""
MAX_BATCH, MAX_STEPS = 1 << 20, 1 << 31
"""No batch has more images, and no run more steps."""
WARMUP_STEPS = 100
"""Steps of the warm-up where a recipe gives none; of a short run a tenth of the steps."""


def check_at_least(config: object, smallest: float, *names: str) -> None:
    """Raises ValueError unless these fields of a config are at least `smallest`."""
    for name in names:
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}")


def check_at_most(config: object, largest: int, *names: str) -> None:
    """Raises ValueError unless these fields of a config are at most `largest`."""
    for name in names:
        if getattr(config, name) > largest:
            raise ValueError(f"{name} must be at most {largest:,}, got {getattr(config, name):,}")


def check_share(config: object, *names: str) -> None:
    """Raises ValueError unless these fields of a config lie in 0..1, 1 excluded."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in 0..1, 1 excluded, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; the same for every model.

    steps:            number of optimizer steps
    batch_size:       images per step, over all processes together
    accumulate:       parts into which a process cuts its images of a step, to need less memory; their gradients are
                      added up.  What a model takes from a whole batch, as batch normalisation and codebooks learned by
                      averages do, it takes from each part
    checkpointing:    whether the activations inside layers are computed again in the backward pass, to need less memory
                      (Chen et al. 2016, arXiv:1604.06174); transformers, dvae and the convolutional autoencoders can
    learning_rate:    at the peak of the schedule; auto is the entry of `LEARNING_RATES` for the optimizer
    optimizer:        muon, adam, adamw, adamax or rmsprop
    betas:            of the Adams (in muon, too); left out, the optimizer's default
    weight_decay:     of matrices and filters; biases and gains are never decayed
    schedule:         constant; cosine or linear, which fall to 0 at the last step; or wsd (warm-up, stable,
                      decay: constant, then linear to 0 over the last `decay_share` of the steps)
    warmup_steps:     steps over which the learning rate first rises linearly, for every schedule; auto is 100, or a
                      tenth of the steps of a run of fewer than 1,000
    decay_share:      share of the steps over which wsd decays, 0..1
    gradient_clip:    largest norm of the whole gradient; 0 is no limit
    ema_decay:        of the exponential moving average of the weights, which is evaluated and saved; 0 is none
    precision:        float32; bfloat16 or float16 (autocast: weights stay float32), float16 with a loss that is scaled
                      so that small gradients do not vanish; auto is bfloat16 where the hardware has it, else float32
    compile:          torch.compile of the model; auto where there is a C++ compiler and more than 500 steps repay it
    channels_last:    whether filters are stored with the channels last, which makes most convolutions faster; not those
                      of weights that are spread over processes (fsdp)
    logger:           where figures and pictures are shown beside the tables of the run: csv (nowhere), tensorboard,
                      wandb or mlflow; auto is tensorboard where it is installed
    seed:             of the weights, the order of the images and all noise
    save_every:       steps between checkpoints
    sample_every:     steps between pictures of samples or reconstructions; 0 draws none
    log_every:        steps between lines of the log
    """

    steps: int = 2000
    batch_size: int = 32
    accumulate: int = 1
    checkpointing: bool = False
    learning_rate: float | Literal["auto"] = "auto"
    optimizer: Literal["muon", "adam", "adamw", "adamax", "rmsprop"] = "muon"
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "linear"
    warmup_steps: int | Literal["auto"] = "auto"
    decay_share: float | None = None
    gradient_clip: float = 1.0
    ema_decay: float = 0.99
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    channels_last: bool = False
    logger: Literal["auto", "csv", "tensorboard", "wandb", "mlflow"] = "auto"
    seed: int = 0
    save_every: int = 500
    sample_every: int = 0
    log_every: int = 100

    def __post_init__(self) -> None:
        if self.learning_rate == "auto":
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.optimizer])
        check_at_least(self, 1, "steps", "batch_size", "accumulate", "save_every", "log_every")
        check_at_least(self, 0, "weight_decay", "gradient_clip", "sample_every", "seed")
        check_at_most(self, MAX_BATCH, "batch_size")
        check_at_most(self, MAX_STEPS, "steps")
        check_share(self, "ema_decay")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.warmup_steps != "auto" and not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must lie in 0..steps, which is {self.steps}, got {self.warmup_steps}")
        if self.betas is not None and self.optimizer == "rmsprop":
            raise ValueError("betas would be ignored: rmsprop has none")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0..1, 1 excluded, got {list(self.betas)}")
        if (self.decay_share is not None) != (self.schedule == "wsd"):
            raise ValueError("decay_share belongs to the schedule wsd: give both or neither")
        if self.decay_share is not None and not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in 0..1, 0 excluded, got {self.decay_share}")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up, as a number."""
        return min(WARMUP_STEPS, self.steps // 10) if self.warmup_steps == "auto" else self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When to evaluate, and on which images.

    split:      the images: a split of the data, or a slice of one such as "test[:500]"
    every:      steps between evaluations on `limit` images at equal distances; after the last step all are evaluated
    limit:      see `every`
    batch_size: images evaluated at once
    """

    split: str = "test"
    every: int = 1000
    limit: int = 1000
    batch_size: int = 100

    def __post_init__(self) -> None:
        check_at_least(self, 1, "every", "limit", "batch_size")
        check_at_most(self, MAX_BATCH, "batch_size")
