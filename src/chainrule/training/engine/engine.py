"""The engine: trains a task, and survives kills, signals and bad luck.

A step is a function of the weights, the optimizer's state and the number of the step: the order of examples
and all noise come from (seed, step), see `order`.  Hence a run that is killed and resumed ends, on the CPU,
bit for bit like one that was not.

Layout of a run::

    recipe.yaml             what is trained, complete, with the whole path of a folder of images
    data.yaml               classes, fingerprints and vocabulary, which a resumed run must find again
    .lock                   the process that trains, meanwhile
    checkpoints/step-N.pt   weights, average, optimizer, adversary; the last two; a folder step-N where the weights
                            are spread over processes
    model/                  what users load, made of the averaged weights
    log.csv, evaluation.csv tables of training and evaluation metrics
    samples/step-N.png      previews
    tensorboard/            the same, for TensorBoard; wandb/, mlflow.db and mlruns/ for the other loggers

Several processes (torchrun, SLURM) train one model on parts of each batch; the first of them writes.  All
must see the folder of the run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...files import naming, recover_all, write_file, write_folder
from ...images import image_grid
from .adversary import AdversaryTraining
from .average import Average, evaluated_copy
from .boards import check_logger, open_board
from .checkpoint import load_checkpoint, save_checkpoint, save_shards
from .config import TrainingConfig
from .hardware import check_fsdp, placed, recompute_layers, slow_precision, spreads_weights, wants_compile
from .learner import Learner, build_optimizer
from .log import Progress, Table, format_metrics
from .order import batch_generator, batch_indices, batch_parts, derive_seed
from .schedule import learning_rate
from .sharding import whole
from .stopping import Stop, graceful_stop
from .task import Task

STOP_EVERY = 10  # steps after which several processes agree whether to stop
Watch = Callable[[int, dict[str, float]], object]
"""Called after each evaluation but the last with the steps taken and the metrics; what it raises ends the run."""


class Diverged(ValueError):
    """A loss, metric or weight that is not finite."""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a run.

    steps:       number of steps taken since its very beginning
    metrics:     the last evaluation, by name
    folder:      the run; `folder / "model"` is what users load
    seconds:     training time since its very beginning
    interrupted: whether a signal stopped it before its last step; the same call resumes it
    """

    steps: int
    metrics: dict[str, float]
    folder: Path
    seconds: float
    interrupted: bool = False


def train_task(
    task: Task,
    config: TrainingConfig,
    folder: Path,
    evaluate_every: int,
    fabric: Any,
    quiet: bool = False,
    watch: Watch | None = None,
) -> TrainResult:
    """Trains a task in a folder, from its newest checkpoint if it has one.

    Args:
        task: what to train.
        config: how to train.
        folder: of the run.
        evaluate_every: steps between evaluations.
        fabric: a launched `lightning_fabric.Fabric`.
        quiet: whether to print nothing.
        watch: see `Watch`.

    Raises:
        ValueError: a batch that the processes cannot share evenly.
        Diverged: a loss that is not finite.
        OSError: the folder cannot be written.
    """
    if config.batch_size % (fabric.world_size * config.accumulate):
        parts = f" times accumulate ({config.accumulate})" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size ({config.batch_size}) must be a multiple of the number of processes ({fabric.world_size})"
            f"{parts}"
        )
    check_logger(config.logger)
    if spreads_weights(fabric):
        check_fsdp(config, task.adversary is not None)
    with graceful_stop() as stop, naming(folder):
        return _Run(task, config, folder, evaluate_every, fabric, quiet).go(stop, watch)


def seconds_per_step(
    task: Task, config: TrainingConfig, folder: Path, fabric: Any, count: int,
    clock: Callable[[], float] = time.monotonic,
) -> float:  # fmt: skip
    """Seconds of a step by a clock: the median of `count` real ones after a first, which changes the model.

    Of a task with an adversary, the steps are the last ones, when the adversary has begun.  Writes nothing.
    """
    run, seconds = _Run(task, config, folder, 1, fabric, quiet=True), []
    run.step = max(0, config.steps - count - 1) if task.adversary else 0
    for step in range(count + 1):
        since = clock()
        run._take_step(run._batch(step))
        run._check()
        seconds.append(clock() - since)
    return statistics.median(seconds[1:])


class _Run:
    """One process's part in a run: its state, and what happens to it."""

    def __init__(self, task, config, folder, evaluate_every, fabric, quiet) -> None:
        self.task: Task = task
        self.config: TrainingConfig = config
        self.folder: Path = folder
        self.evaluate_every: int = evaluate_every
        self.fabric = fabric
        self.writes: bool = fabric.is_global_zero
        self.quiet: bool = quiet or not self.writes

        task.setup(fabric.device)
        module = placed(task.model, config, fabric)
        copied = evaluated_copy(module, fabric) if config.ema_decay or spreads_weights(fabric) else module
        if config.checkpointing:
            recompute_layers(module)
        self.compiled = wants_compile(module, config, fabric)
        self.learner = Learner(
            module,
            lambda module: build_optimizer(module, config, fabric.device),
            config,
            fabric,
            config.gradient_clip,
            self.compiled,
        )
        self.average = Average(module, copied, config.ema_decay)
        self.adversary = AdversaryTraining(task.adversary, config, fabric) if task.adversary else None

        self.parts = batch_parts(config.batch_size, fabric.world_size, fabric.global_rank, config.accumulate)
        self.tables = {"log": Table(folder / "log.csv"), "evaluation": Table(folder / "evaluation.csv")}
        self.step, self.finished = 0, False
        self.since = time.monotonic()  # the beginning, less the time of earlier processes
        self.metrics: dict[str, float] = {}
        self.pending: list[dict[str, float]] = []  # rows of steps that are checked, not yet logged
        self.recent: list[dict[str, torch.Tensor]] = []  # rows of the steps since, still on the device

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    # ------------------------------------------------------------ the loop

    def go(self, stop: Stop, watch: Watch | None) -> TrainResult:
        config = self.config
        resumed = self._resume()
        self.progress = Progress(config.steps, self.step, config.batch_size, not self.quiet)
        self.board = open_board(config.logger, self.folder, self.step) if self.writes else None
        if slow := slow_precision(config.precision, self.fabric.device):
            self.progress.say(slow)
        if resumed:
            self.progress.say(f"going on with {self.folder} after step {self.step} of {config.steps}")
        try:
            self._train(stop, watch or (lambda step, metrics: None))
            interrupted = self.step < config.steps
            if interrupted:
                self._save()
                where = f"stopped after step {self.step} of {config.steps}"
                self.progress.say(f"{where}; the same command goes on from here")
            elif not self.finished:
                self._save()  # a long evaluation follows
                self._evaluate(final=True)
                self.finished = True
                self._save()
        finally:
            self.progress.close()
            if self.board is not None:
                self.board.close()
        return TrainResult(self.step, self.metrics, self.folder, self.seconds, interrupted)

    def _train(self, stop: Stop, watch: Watch) -> None:
        config = self.config
        with ThreadPoolExecutor(1) as loader:  # reads the next batch during a step
            following = loader.submit(self._batch, self.step)
            while self.step < config.steps and not self._agree(stop):
                batch = following.result()
                following = loader.submit(self._batch, self.step + 1)
                self._take_step(batch)
                self.progress.advance(self.step)
                last = self.step == config.steps
                if last or self.step % config.log_every == 0:
                    self._log()
                if not last and self.step % self.evaluate_every == 0:
                    self._evaluate(final=False)
                    watch(self.step, self.metrics)
                if config.sample_every and self.step % config.sample_every == 0:
                    self._preview()
                if not last and self.step % config.save_every == 0:
                    self._save()

    def _batch(self, step: int) -> list[Any]:
        """What this process gets of a step's batch, in as many parts as the recipe says."""
        config, size = self.config, self.task.num_examples
        indices = batch_indices(config.seed, step, config.batch_size, size)
        return [self.task.batch(indices, part, batch_generator(config.seed, step)) for part in self.parts]

    def _take_step(self, batches: list[Any]) -> None:
        """One step of the optimizer, number `self.step` from 0."""
        learners = [self.learner, self.adversary.learner] if self.adversary else [self.learner]
        torch.manual_seed(derive_seed(self.config.seed, "step", self.step, self.fabric.global_rank))  # dropout
        self.learner.module.train()
        for learner in learners:
            learner.optimizer.zero_grad()
        rows = [self._add_gradients(batch, batch is batches[-1]) for batch in batches]
        row = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        norm = self.learner.take_step(learning_rate(self.config, self.step))
        if norm is not None:
            row["gradient_norm"] = norm
        self.average.update()
        if self.adversary:
            self.adversary.take_step(self.step)
            row["adversary"] = row.pop("adversary")  # the last column
        self.recent.append(row)
        self.step += 1

    def _add_gradients(self, batch: Any, last: bool) -> dict[str, torch.Tensor]:
        """Adds the gradients of a part of the batch; returns what is to be logged."""
        share, progress = 1 / len(self.parts), self.step / self.config.steps
        with self.adversary.frozen() if self.adversary else nullcontext():
            try:
                row = self.learner.add_gradient(lambda m: self.task.loss(m, batch, progress), share, last)
            except Exception as error:
                if not self._may_do_without_compiling(error):
                    raise
                reason = str(error).strip().splitlines()[0]
                self.progress.say(f"the model cannot be compiled here ({reason}); going on without")
                self.compiled = False
                self.learner.wrap(self.learner.module)
                row = self.learner.add_gradient(lambda m: self.task.loss(m, batch, progress), share, last)
        if self.adversary:
            row["adversary"] = self.adversary.add_gradient(
                self.step, lambda m: self.task.adversary_loss(m, batch), share, last
            )
        return row

    def _may_do_without_compiling(self, error: Exception) -> bool:
        if not self.compiled or self.config.compile is True:
            return False
        return isinstance(error, torch._dynamo.exc.TorchDynamoException)

    def _agree(self, stop: Stop) -> bool:
        """Whether to stop: all processes answer alike."""
        if self.fabric.world_size == 1:
            return stop.requested
        if self.step % STOP_EVERY:
            return False
        votes = torch.tensor(float(stop.requested), device=self.fabric.device)
        return bool(self.fabric.all_reduce(votes, reduce_op="sum").item())

    # ------------------------------------------------------------ news of a run

    def _check(self) -> None:
        """Brings the rows of the last steps to the CPU, as means over processes; stops at one not finite."""
        if not self.recent:
            return
        names = list(self.recent[0])
        values = torch.stack([torch.stack([row[name].float() for name in names]) for row in self.recent])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")
        first = self.step - len(self.recent)
        self.recent = []
        for offset, numbers in enumerate(values.tolist()):
            row = dict(zip(names, numbers, strict=True))
            if not math.isfinite(row["loss"]):
                raise Diverged(self._diverged(f"the loss is {row['loss']}", first + offset))
            self.pending.append(row)

    def _diverged(self, what: str, step: int) -> str:
        """A sentence about what was found at the step number `step` from 0."""
        return (
            f"{what} at step {step + 1}, with learning rate {learning_rate(self.config, step):.3g}; start a new run "
            "with a lower learning rate or with gradient_clip (the checkpoint before that step is kept)"
        )

    def _log(self) -> None:
        """Logs the mean over the steps since the last time."""
        self._check()
        means = {name: sum(row[name] for row in self.pending) / len(self.pending) for name in self.pending[0]}
        self.pending = []
        if self.writes:
            rate = self.progress.images_per_second()
            row = {"learning_rate": learning_rate(self.config, self.step - 1)} | means
            self.tables["log"].add({"step": self.step} | row)
            self.board.add("training", row | {"images_per_second": rate}, self.step)
            shown = {name: value for name, value in means.items() if name not in ("loss", "gradient_norm")}
            self.progress.news(shown or means, rate)

    def _evaluate(self, final: bool) -> None:
        """Evaluates the average, in float32; all processes share the work and have the figures."""
        self._check()
        self.metrics = self._judge(lambda model: self.task.evaluate(model, final))
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise Diverged(self._diverged(f"the evaluation gives {name} {value}", self.step - 1))
        if self.metrics and self.writes:
            self.tables["evaluation"].add({"step": self.step} | self.metrics)
            self.board.add("evaluation", self.metrics, self.step)
            self.progress.say(f"evaluation after step {self.step}: {format_metrics(self.metrics)}")

    def _preview(self) -> None:
        images = self._judge(lambda model: self.task.preview(model, self.config.seed))
        if self.writes and images is not None and len(images):
            from PIL import Image

            picture = image_grid(images)
            path = self.folder / "samples" / f"step-{self.step:08d}.png"
            write_file(path, lambda target: Image.fromarray(picture).save(target, format="PNG"))
            self.board.add_image(picture, self.step)

    def _judge(self, function: Callable[[nn.Module], Any]) -> Any:
        """`function` of the averaged model in evaluation mode, without gradients; the clock of images/s stands."""
        module = self.average.whole()
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), self.progress.pause():
                return function(module.to(self.fabric.device))
        finally:
            module.train(training)
            if self.average.is_sharded:
                module.cpu()

    # ------------------------------------------------------------ files of a run

    def _save(self) -> None:
        """Writes a checkpoint and the model that users load; raises ValueError where weights are not finite."""
        self._check()
        for name, value in self.learner.module.state_dict().items():
            if value.is_floating_point() and not whole(value.sum(dtype=torch.float64)).isfinite():
                raise Diverged(self._diverged(f"the weights {name} are not all finite numbers", self.step - 1))
        if self.average.is_sharded:
            save_shards(self.folder / "checkpoints", self.step, self._state(), self.fabric)
        elif self.writes:
            save_checkpoint(self.folder / "checkpoints", self.step, self._state())
        card = {"steps": self.step, "minutes": round(self.seconds / 60, 2), "metrics": self.metrics}

        def write(model: nn.Module) -> None:
            if self.writes:
                write_folder(self.folder / "model", lambda target: self.task.save(model, target, card))

        self._judge(write)
        self.fabric.barrier()

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "finished": self.finished,
            "metrics": self.metrics,
            "pending": self.pending,
            "tables": {name: table.size() for name, table in self.tables.items()},
            "average": self.average.state_dict(),
            "learner": self.learner.state_dict(),
        }
        if self.adversary:
            state["adversary"] = self.adversary.learner.state_dict()
        return state

    def _spread(self) -> dict[str, torch.Tensor]:
        """Where the state has tensors that are spread over processes, and what is spread as they are."""
        if not self.average.is_sharded:
            return {}
        groups = self.learner.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        weights = self.learner.module.state_dict()
        return (
            {f"learner/module/{name}": value for name, value in weights.items()}
            | {f"average/module/{name}": value for name, value in weights.items()}
            | {f"learner/optimizer/state/{index}": parameter for index, parameter in enumerate(parameters)}
        )

    def _resume(self) -> bool:
        """Takes up the newest checkpoint, and cuts the tables back to it; whether there was one."""
        report = print if not self.quiet else lambda sentence: None
        state = load_checkpoint(self.folder / "checkpoints", report, self._spread())
        self.fabric.barrier()
        if self.writes:
            for folder in (self.folder, self.folder / "checkpoints", self.folder / "samples"):
                recover_all(folder)
            for name, table in self.tables.items():
                table.cut(state["tables"][name] if state else 0)
        if state is None:
            return False
        if state["step"] > self.config.steps:
            raise ValueError(f"{self.folder} has taken {state['step']} steps already, more than {self.config.steps}")
        self.learner.load_state_dict(state["learner"])
        self.average.load_state_dict(state["average"])
        if self.adversary:
            self.adversary.learner.load_state_dict(state["adversary"])
        self.step, self.metrics, self.pending = state["step"], state["metrics"], state["pending"]
        self.since -= state["seconds"]
        self.finished = state["finished"] and self.step == self.config.steps
        return True
