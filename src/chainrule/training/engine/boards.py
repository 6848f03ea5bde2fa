"""Where a run shows its figures and pictures, beside its tables: `training.logger`."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("tensorboard", "wandb", "mlflow")


class Board:
    """Shows nothing: the tables of a run hold all figures (csv)."""

    def add(self, group: str, row: dict[str, float], step: int) -> None:
        """Adds the numbers of a step."""

    def add_image(self, image: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Stops; nothing is shown or written afterwards."""


class TensorBoard(Board):
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, max_queue=1000)

    def add(self, group: str, row: dict[str, float], step: int) -> None:
        for name, value in row.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def add_image(self, image: np.ndarray, step: int) -> None:
        self.writer.add_image("samples", image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB(Board):
    """A run of Weights & Biases, named after the folder; WANDB_MODE=offline keeps it in the folder `wandb`."""

    def __init__(self, folder: Path, start: int) -> None:
        import wandb

        self.wandb = wandb
        identity = "-".join(folder.resolve().parts[-2:])
        self.run = wandb.init(project="chainrule", name=folder.name, id=identity, dir=str(folder), resume="allow")

    def add(self, group: str, row: dict[str, float], step: int) -> None:
        self.run.log({f"{group}/{name}": value for name, value in row.items()}, step=step)

    def add_image(self, image: np.ndarray, step: int) -> None:
        self.run.log({"samples": self.wandb.Image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow(Board):
    """A run of MLflow, named after the folder: in the file `mlflow.db` there, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, start: int) -> None:
        from mlflow import MlflowClient

        address, place = os.environ.get("MLFLOW_TRACKING_URI"), folder.resolve()
        self.client = MlflowClient(address or f"sqlite:///{place / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name("chainrule")
        pictures = None if address else (place / "mlruns").as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment("chainrule", pictures)
        found = self.client.search_runs([number], f'tags.folder = "{place.as_uri()}"')
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, "RUNNING")
        else:
            run = self.client.create_run(number, tags={"folder": place.as_uri()}, run_name=folder.name)
            self.run = run.info.run_id

    def add(self, group: str, row: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.run, [Metric(f"{group}/{name}", value, now, step) for name, value in row.items()])

    def add_image(self, image: np.ndarray, step: int) -> None:
        self.client.log_image(self.run, image, key="samples", step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def check_logger(name: str) -> None:
    """Raises ValueError where the package of a logger is missing."""
    if name in PACKAGES and not _is_installed(name):
        raise ValueError(f"the logger {name} needs the package {name}, which is not installed")


def open_board(name: str, folder: Path, start: int) -> Board:
    """The board of a logger, for a run in a folder that has taken `start` steps; auto is TensorBoard if installed."""
    if name == "auto":
        name = "tensorboard" if _is_installed("tensorboard") else "csv"
    boards: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return boards[name](folder, start) if name in boards else Board()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
