"""Where runs show their figures: `training.logger`; wandb is tested offline where it is installed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chainrule.training.engine import boards
from test_training_engine import CONFIG, run

SHORT = replace(CONFIG, steps=4, warmup_steps=0, log_every=2, sample_every=2)


def test_csv_leaves_only_the_tables(tmp_path):
    run(tmp_path, replace(SHORT, logger="csv"))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"log.csv", "samples"} <= names and not names & {"tensorboard", "wandb"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "_is_installed", lambda package: False)
    with pytest.raises(ValueError, match="the logger wandb needs the package wandb, which is not installed"):
        run(tmp_path, replace(SHORT, logger="wandb"))
    run(tmp_path, SHORT)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("logger", "left"), [("tensorboard", "tensorboard/events*"), ("wandb", "wandb/offline-run*")])
def test_a_logger_works_offline_and_goes_on(tmp_path, monkeypatch, logger, left):
    pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path / "run", replace(SHORT, logger=logger))
    run(tmp_path / "run", replace(SHORT, logger=logger, steps=6))
    assert list((tmp_path / "run").glob(left))
