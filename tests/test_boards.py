"""Where runs show their figures: `training.logger`; wandb and mlflow are tested offline where they are installed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chainrule.training.engine import boards
from test_training_engine import CONFIG, run

SHORT = replace(CONFIG, steps=4, warmup_steps=0, log_every=2, sample_every=2)


def test_csv_leaves_only_the_tables(tmp_path):
    run(tmp_path, replace(SHORT, logger="csv"))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"log.csv", "samples"} <= names and not names & {"tensorboard", "wandb", "mlflow.db"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "_is_installed", lambda package: False)
    with pytest.raises(ValueError, match="the logger wandb needs the package wandb, which is not installed"):
        run(tmp_path, replace(SHORT, logger="wandb"))
    run(tmp_path, SHORT)
    assert not (tmp_path / "tensorboard").exists()


LEFT = [
    ("tensorboard", "tensorboard/events*"),
    ("wandb", "wandb/offline-run*"),
    ("mlflow", "mlruns/*/artifacts/images/samples*.png"),
]


@pytest.mark.parametrize(("logger", "left"), LEFT)
def test_a_logger_works_offline_and_goes_on(tmp_path, monkeypatch, logger, left):
    pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(tmp_path / "run", replace(SHORT, logger=logger))
    run(tmp_path / "run", replace(SHORT, logger=logger, steps=6))
    assert list((tmp_path / "run").glob(left))


def test_mlflow_keeps_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.chdir(tmp_path)
    for steps in (2, 6):
        run(tmp_path / 'a "run"', replace(SHORT, logger="mlflow", steps=steps))
    client = mlflow.MlflowClient()
    (only,) = client.search_runs([client.get_experiment_by_name("chainrule").experiment_id])
    assert [point.step for point in client.get_metric_history(only.info.run_id, "training/loss")] == [2, 4, 6]
    assert only.info.status == "FINISHED"
