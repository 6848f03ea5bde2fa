"""The engine on a toy task: resuming, signals, several processes.

As a script it trains the toy in a child process: python test_training_engine.py FOLDER KILL [key=value ...],
where KILL says when it sends a signal to itself: "none", "step:K" or "replace:K" (SIGKILL), "interrupt:K" (SIGINT).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainrule.files import write_folder
from chainrule.tokenizers._codebook import Codebook
from chainrule.training import Adversary, Hardware, TrainingConfig, train_task
from chainrule.training.engine.checkpoint import list_checkpoints, save_checkpoint
from chainrule.training.engine.hardware import check_fsdp, compiled
from chainrule.training.engine.sharding import shard
from chainrule.training.engine.stopping import graceful_stop
from forks import run_script

CONFIG = TrainingConfig(
    steps=40, batch_size=8, learning_rate=0.02, optimizer="adamw", weight_decay=0.1, schedule="cosine", warmup_steps=5,
    gradient_clip=1.0, ema_decay=0.9, precision="float32", compile=False, seed=3, save_every=6, log_every=4,
    sample_every=10,
)  # fmt: skip


class Toy:
    """Noisy regression with dropout and a running buffer; `on_loss` is called with the number of each loss."""

    num_examples = 21
    adversary: Adversary | None = None

    def __init__(self, on_loss=lambda number: None, dropout: float = 0.1) -> None:
        torch.manual_seed(0)
        self.inputs = torch.randn(self.num_examples, 5)
        self.targets = self.inputs.sin().sum(1, keepdim=True)
        self.model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.model.register_buffer("calls", torch.zeros(()))
        self.on_loss, self.losses = on_loss, 0

    def setup(self, device) -> None:
        self.device = device

    def batch(self, indices, part, generator):
        noise = 0.1 * torch.randn(len(indices), 5, generator=generator)
        return (self.inputs[indices] + noise)[part], self.targets[indices][part]

    def loss(self, model, batch, progress):
        self.losses += 1
        self.on_loss(self.losses)
        inputs, targets = (value.to(self.device) for value in batch)
        self.model.calls += 1
        loss = (model(inputs) - targets).square().mean()
        return loss, {"root": loss.sqrt()}

    def evaluate(self, model, final):
        assert not model.training
        torch.randn(3)  # must not disturb training
        inputs, targets = (self.inputs, self.targets) if final else (self.inputs[:10], self.targets[:10])
        return {"loss": (model(inputs.to(self.device)).cpu() - targets).square().mean().item()}

    def preview(self, model, seed):
        return torch.randint(0, 256, (5, 1, 3, 4), dtype=torch.uint8)

    def save(self, model, folder, card) -> None:
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "card.json").write_text(json.dumps(card))


class Duel(Toy):
    """The toy against an adversary that tells its results from the targets, from a quarter of the steps on."""

    def __init__(self, on_loss=lambda number: None, dropout: float = 0.1) -> None:
        super().__init__(on_loss, dropout)
        module = nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.Linear(6, 1))
        self.adversary = Adversary(module, start=0.25, learning_rate=0.01, betas=(0.5, 0.9))
        self.progress = []

    def loss(self, model, batch, progress):
        loss, metrics = super().loss(model, batch, progress)
        self.progress.append(progress)
        self.result = model(batch[0].to(self.device))
        wrong = -self.adversary.module(self.result).mean()
        return loss + 0.1 * (progress >= 0.25) * wrong, metrics | {"wrong": wrong}

    def adversary_loss(self, module, batch):
        logits = module(torch.cat([batch[1].to(self.device), self.result.detach()]))
        real, fake = logits.chunk(2)
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


TOYS = {"toy": Toy, "duel": Duel}


def run(folder, config=CONFIG, toy=None, quiet=True, strategy="auto"):
    folder.mkdir(exist_ok=True, parents=True)
    fabric = Hardware("cpu", strategy=strategy).fabric()
    fabric.launch()
    return train_task(toy or Toy(), config, folder, 5, fabric, quiet)


def run_in_child(folder, kill="none", *overrides, processes=1):
    """The toy in a child process, or in several."""
    return run_script(__file__, str(folder), kill, *overrides, processes=processes)


def outcome(folder):
    """Everything a run leaves that must not depend on its history."""
    checkpoint = torch.load(list_checkpoints(folder / "checkpoints")[0], weights_only=True)
    del checkpoint["seconds"]
    texts = {name: (folder / name).read_bytes() for name in ("log.csv", "evaluation.csv")}
    samples = {path.name: path.read_bytes() for path in (folder / "samples").glob("*")}
    return checkpoint, torch.load(folder / "model" / "weights.pt", weights_only=True), texts, samples


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return run(folder), folder


def test_a_run_leaves_its_files(unbroken):
    result, folder = unbroken
    assert result.steps == 40 and not result.interrupted and result.folder == folder
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000036.pt", "step-00000040.pt"]
    log = (folder / "log.csv").read_text().splitlines()
    assert log[0] == "step,learning_rate,loss,root,gradient_norm"
    assert [int(line.split(",")[0]) for line in log[1:]] == list(range(4, 41, 4))
    assert float(log[-1].split(",")[2]) < 0.8 * float(log[1].split(",")[2])
    evaluation = (folder / "evaluation.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in evaluation[1:]] == list(range(5, 41, 5))
    assert float(evaluation[-1].split(",")[1]) == result.metrics["loss"]
    assert len(list((folder / "samples").iterdir())) == 4
    card = json.loads((folder / "model" / "card.json").read_text())
    assert card["steps"] == 40 and card["metrics"] == result.metrics
    average = torch.load(folder / "checkpoints" / "step-00000040.pt", weights_only=True)["average"]["module"]
    assert same(dict(average), dict(torch.load(folder / "model" / "weights.pt", weights_only=True)))


def test_a_killed_run_resumes_bit_for_bit(unbroken, tmp_path):
    chance = random.Random()
    kills = [f"step:{chance.randint(2, 20)}", f"replace:{chance.randint(5, 20)}"]
    print(kills)  # shown on failure
    for kill in kills:
        child = run_in_child(tmp_path, kill)
        assert child.returncode == -signal.SIGKILL, child.stderr
    result = run(tmp_path)
    assert result.steps == 40 and result.metrics == unbroken[0].metrics
    assert same(outcome(tmp_path), outcome(unbroken[1]))


@pytest.mark.parametrize("stops", [[1, 16, 39], [17, 18, 23]])
def test_a_stopped_run_resumes_bit_for_bit(unbroken, tmp_path, stops):
    taken = 0
    for stop in stops:

        def on_loss(number, last=stop - taken):
            if number == last:
                signal.raise_signal(signal.SIGTERM)

        result = run(tmp_path, toy=Toy(on_loss))
        assert result.interrupted and result.steps == stop
        assert (tmp_path / "model" / "weights.pt").is_file()
        taken = stop
    assert not run(tmp_path).interrupted
    assert same(outcome(tmp_path), outcome(unbroken[1]))


def test_an_adversary_begins_late_and_resumes_bit_for_bit(tmp_path):
    duel = Duel()
    before = {name: value.clone() for name, value in duel.adversary.module.state_dict().items()}
    seen = []
    duel.on_loss = lambda number: seen.append(same(dict(duel.adversary.module.named_parameters()), dict(before)))
    before = {name: before[name] for name, _ in duel.adversary.module.named_parameters()}
    run(tmp_path / "one", toy=duel)
    assert duel.progress == [step / 40 for step in range(40)]
    assert seen == [True] * 11 + [False] * 29  # it takes its first step after the model's eleventh
    header, *rows = (tmp_path / "one" / "log.csv").read_text().splitlines()
    assert header.endswith(",adversary")
    losses = [float(row.split(",")[-1]) for row in rows]
    assert losses[:2] == [0.0, 0.0] and all(losses[2:])
    for kill in ("step:14", "replace:9"):
        child = run_in_child(tmp_path / "two", kill, "toy=duel")
        assert child.returncode == -signal.SIGKILL, child.stderr
    run(tmp_path / "two", toy=Duel())
    assert same(outcome(tmp_path / "two"), outcome(tmp_path / "one"))


def test_interrupt_tells_how_to_resume(tmp_path):
    child = run_in_child(tmp_path, "interrupt:9")
    assert child.returncode == 130, child.stderr
    assert "stopped after step 9 of 40; the same command goes on from here" in child.stdout
    assert "step 8/40  root" in child.stdout and "images/s" in child.stdout
    assert (tmp_path / "model" / "weights.pt").is_file()


def test_second_interrupt_acts_as_usual():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    try:
        with graceful_stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_finished_run_is_left_alone_and_can_be_prolonged(tmp_path):
    short = replace(CONFIG, steps=8, save_every=100)
    run(tmp_path, short)
    before = outcome(tmp_path)
    toy = Toy()
    assert run(tmp_path, short, toy).steps == 8 and toy.losses == 0
    assert same(outcome(tmp_path), before)
    toy = Toy()
    assert run(tmp_path, replace(short, steps=12), toy).steps == 12 and toy.losses == 4
    with pytest.raises(ValueError, match="has taken 12 steps already, more than 8"):
        run(tmp_path, short)


def test_truncated_checkpoint_falls_back(unbroken, tmp_path, capsys):
    run(tmp_path, replace(CONFIG, steps=40))
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    os.truncate(newest, newest.stat().st_size // 2)
    run(tmp_path, quiet=False)
    said = capsys.readouterr().out
    assert said.startswith(f"{newest} is damaged (") and "trying the one before it\n" in said
    assert same(outcome(tmp_path), outcome(unbroken[1]))
    for path in list_checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        run(tmp_path)


def table(folder, name="log.csv"):
    """The header and the numbers of a table of a run."""
    header, *rows = (folder / name).read_text().splitlines()
    return header, torch.tensor([[float(value) for value in row.split(",")] for row in rows])


def test_a_batch_in_parts_trains_as_the_whole(tmp_path):
    for toy in (Toy, Duel):
        for parts in (1, 4):
            config = replace(CONFIG, accumulate=parts, steps=8, log_every=1)
            duel = toy(dropout=0.0)
            if duel.adversary:  # batch normalisation sees one part at a time
                duel.adversary.module[1] = nn.Identity()
            run(tmp_path / f"{toy.__name__}-{parts}", config, duel)
        (header, whole), (_, cut) = (table(tmp_path / f"{toy.__name__}-{parts}") for parts in (1, 4))
        roots = header.split(",").index("root")  # the mean of roots is not the root of the mean
        whole[:, roots] = cut[:, roots] = 0
        torch.testing.assert_close(whole, cut, rtol=1e-5, atol=1e-5)


def test_float16_scales_the_loss(tmp_path):
    run(tmp_path, replace(CONFIG, precision="float16", steps=12, log_every=1), Duel())
    losses = table(tmp_path)[1][:, 2]
    assert losses.isfinite().all() and losses[-1] < losses[0]
    state = torch.load(list_checkpoints(tmp_path / "checkpoints")[0], weights_only=True)
    assert state["learner"]["scaling"]["scale"] > 1 and state["adversary"]["scaling"]["scale"] > 1
    run(tmp_path, replace(CONFIG, precision="float16", steps=14), Duel())


def run_under_torchrun(folder, *words, processes):
    """As `run_in_child`, by the command itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    return subprocess.run([*command, __file__, str(folder), *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("launch", [run_in_child, pytest.param(run_under_torchrun, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, launch):
    whole = replace(CONFIG, steps=12)
    run(tmp_path / "one", whole, Toy(dropout=0.0))
    child = launch(tmp_path / "two", "none", "steps=12", "dropout=0", processes=2)
    assert child.returncode == 0, child.stderr
    for name in ("log.csv", "evaluation.csv"):
        (header, one), (same_header, two) = (table(tmp_path / n, name) for n in ("one", "two"))
        assert header == same_header
        if name == "log.csv":  # the mean of roots is not the root of the mean
            one, two = one[:, [0, 1, 2, 4]], two[:, [0, 1, 2, 4]]
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert child.stdout.count("step 4/12") == 1


@pytest.mark.skipif(torch.__version__ < "2.7", reason="the strategy fsdp needs PyTorch 2.7")
@pytest.mark.parametrize("spread_first", [True, False])
def test_a_run_with_spread_weights_goes_on_in_one_process_and_the_reverse(tmp_path, spread_first):
    def spread(kill="none"):
        child = run_in_child(tmp_path / "run", kill, "steps=16", "dropout=0", "strategy=fsdp", processes=2)
        assert child.returncode == (1 if kill != "none" else 0), child.stderr

    whole = replace(CONFIG, steps=16)
    run(tmp_path / "one", whole, Toy(dropout=0.0))
    if spread_first:
        spread("interrupt:5")
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000010"
        run(tmp_path / "run", whole, Toy(dropout=0.0))
    else:
        assert (
            run(tmp_path / "run", whole, Toy(lambda n: n == 10 and signal.raise_signal(signal.SIGINT), 0.0)).steps == 10
        )
        spread()
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].is_dir()
    for name in ("log.csv", "evaluation.csv"):
        (_, one), (_, other) = (table(tmp_path / folder, name) for folder in ("one", "run"))
        if name == "log.csv":  # the mean of roots is not the root of the mean
            one[:, 3] = other[:, 3] = 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_with_spread_weights_resume_bit_for_bit(tmp_path):
    for folder, kills in (("whole", ["none"]), ("run", ["interrupt:5", "none"])):
        for kill in kills:
            child = run_in_child(tmp_path / folder, kill, "steps=16", "strategy=fsdp", processes=2)
            assert child.returncode == (1 if kill != "none" else 0), child.stderr  # of torchrun
    for name in ("log.csv", "evaluation.csv", "model/weights.pt"):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "run"))
        assert one == other, name


@pytest.mark.skipif(torch.__version__ < "2.7", reason="the strategy fsdp needs PyTorch 2.7")
def test_what_cannot_be_spread_is_refused(tmp_path):
    codebook = Codebook(4, 2, learning="loss")
    with pytest.raises(ValueError, match="a codebook that is restarted while it learns by loss cannot be sharded"):
        shard(codebook, None)
    with pytest.raises(ValueError, match="the strategy fsdp trains no model against an adversary; use ddp"):
        check_fsdp(CONFIG, True)
    with pytest.raises(ValueError, match="the strategy fsdp scales no loss"):
        check_fsdp(replace(CONFIG, precision="float16"), False)


def test_uneven_batch_is_refused(tmp_path):
    class Three:
        world_size = 3

    with pytest.raises(ValueError, match="batch_size .8. must be a multiple of the number of processes .3."):
        train_task(Toy(), CONFIG, tmp_path, 5, Three())


def test_hardware_is_checked():
    with pytest.raises(ValueError, match="strategy must be auto, ddp or fsdp, got 'deepspeed'"):
        Hardware(strategy="deepspeed")
    with pytest.raises(ValueError, match="accelerator must be auto, cpu, cuda or mps, got 'gpus'"):
        Hardware("gpus")


def test_loss_that_is_not_finite_stops_in_a_sentence(tmp_path):
    toy = Toy()

    def spoil(number):
        if number == 9:
            with torch.no_grad():
                toy.model[0].weight.fill_(float("inf"))

    toy.on_loss = spoil
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step 9, with learning rate 0\.0\d+; "):
        run(tmp_path, toy=toy)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000006.pt"]


def test_a_precision_without_instructions_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("chainrule.training.engine.hardware.has_bfloat16", lambda device: False)
    for precision, count in (("bfloat16", 1), ("auto", 0), ("float32", 0)):
        run(tmp_path / precision, replace(CONFIG, precision=precision, steps=6), quiet=False)
        assert capsys.readouterr().out.count("this CPU has no bfloat16 instructions: training in float32 is") == count


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "rmsprop"])
def test_other_settings_train(tmp_path, optimizer):
    config = replace(
        CONFIG, optimizer=optimizer, ema_decay=0.0, gradient_clip=0.0, precision="bfloat16", channels_last=True,
        schedule="constant", sample_every=0,
    )  # fmt: skip
    run(tmp_path, config)
    losses = [float(line.split(",")[2]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    assert not (tmp_path / "samples").exists()
    weights = outcome(tmp_path)[1]
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_model_that_cannot_be_compiled_is_trained_without(tmp_path, monkeypatch, capsys):
    def fail(module, **_):
        class Broken(nn.Module):
            def forward(self, inputs):
                raise torch._dynamo.exc.Unsupported("no luck")

        return Broken()

    monkeypatch.setattr("torch.compile", fail)
    config = replace(CONFIG, steps=501, compile="auto", save_every=1000, log_every=250, sample_every=0)
    run(tmp_path, config, quiet=False)
    assert "the model cannot be compiled here (no luck); going on without" in capsys.readouterr().out


def test_a_method_can_stay_out_of_the_compiled_model(monkeypatch):
    compile_now, seen = torch.compile, []

    class Part(nn.Module):
        uncompiled = ("far",)

        def far(self, inputs):
            seen.append(torch.compiler.is_compiling())
            return inputs + 1

        def forward(self, inputs):
            return 2 * self.far(inputs)

    monkeypatch.setattr("torch.compile", lambda module, **_: compile_now(module, backend="eager"))
    assert compiled(nn.Sequential(Part()), torch.device("cpu"))(torch.ones(1)) == 4 and seen == [False]


def test_checkpoints_keep_the_one_before(tmp_path):
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, {})
    (tmp_path / "step-00000099.pt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, 8, {})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008.pt", "step-00000006.pt"]


def test_a_folder_survives_a_kill_while_it_is_replaced(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("1"))
    real, calls = os.replace, []

    def replace_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("2"))
    monkeypatch.setattr(os, "replace", real)
    write_folder(tmp_path / "model", lambda folder: (folder / "b").write_text("3"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["b"]


def main(folder: str, kill: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    values = dict(override.split("=") for override in overrides)
    config = replace(CONFIG, steps=int(values.get("steps", CONFIG.steps)))
    what, _, number = kill.partition(":")
    replaced = 0
    real = os.replace

    def on_loss(count: int) -> None:
        if what in ("step", "interrupt") and count == int(number):
            os.kill(os.getpid(), signal.SIGKILL if what == "step" else signal.SIGINT)

    def counted_replace(source, target) -> None:
        nonlocal replaced
        replaced += 1
        if replaced == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    if what == "replace":
        os.replace = counted_replace
    toy = TOYS[values.get("toy", "toy")](on_loss, dropout=float(values.get("dropout", 0.1)))
    result = run(Path(folder), config, toy, quiet=False, strategy=values.get("strategy", "auto"))
    raise SystemExit(130 if result.interrupted else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
