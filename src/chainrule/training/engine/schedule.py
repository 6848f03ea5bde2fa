"""The learning rate, as a function of the step alone."""

from __future__ import annotations

import math

from .config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step, counted from 0, of `config.steps`."""
    return config.learning_rate * schedule_factor(config, step)


def schedule_factor(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step as a share of its peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        remaining = (config.steps - step) / (config.decay_share * config.steps)
        return min(1.0, remaining)
    progress = (step - config.warmup) / (config.steps - config.warmup)
    if config.schedule == "linear":
        return 1 - progress
    assert config.schedule == "cosine", config.schedule
    return (1 + math.cos(math.pi * progress)) / 2
