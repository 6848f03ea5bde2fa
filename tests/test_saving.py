"""What is written is whole: a process that is killed at any step leaves the old or the new, and nothing else.  The
folder of a saved model is read strictly, and nothing else is taken for one."""

import errno
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import chainrule
from chainrule import files, zoo
from chainrule.files import owned, recover, recover_all, temporary_folder, write_file, write_folder
from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
from chainrule.saving.model import is_saved_model
from chainrule.scorers.classifier import Classifier, ClassifierConfig
from chainrule.scorers.reranker import Reranker, RerankerConfig
from chainrule.text.bpe import train_bpe
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from chainrule.training.engine.checkpoint import save_checkpoint
from chainrule.upscaling.upscaler import Upscaler, UpscalerConfig
from chainrule.zoo import kind_of, read_card

STEPS = ("mkdir", "open", "fsync", "replace", "rmdir", "unlink")
KILLED = """
import os, sys
from pathlib import Path

from chainrule.files import write_file, write_folder

path, step = Path(sys.argv[1]), int(sys.argv[2])
done = 0


def dying(function):
    def call(*arguments, **options):
        global done
        done += 1
        if done == step:
            os._exit(9)
        return function(*arguments, **options)

    return call


def fill(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text("new")
    (folder / "b").write_text("new")


for name in {steps}:
    setattr(os, name, dying(getattr(os, name)))
write_folder(path, fill) if path.suffix == "" else write_file(path, "new")
"""


def kill_at(step: int, path: Path) -> bool:
    """Replaces `path` in a process that ends at its `step`-th change of the disk; whether it came so far."""
    words = [sys.executable, "-c", KILLED.replace("{steps}", repr(STEPS)), str(path), str(step)]
    code = subprocess.run(words, check=False).returncode
    assert code in (0, 9)
    return code == 9


def old_or_new(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    found = {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}
    assert found in ({"a": "old"}, {"b": "new", "inner/a": "new"})
    return next(iter(found.values()))


@pytest.mark.parametrize("name", ["model", "codes.safetensors"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path, name):
    path, seen, step = tmp_path / name, [], 0
    while not seen or seen[-1] is not None:
        step += 1
        write_file(path, "old") if path.suffix else write_folder(path, lambda folder: (folder / "a").write_text("old"))
        killed = kill_at(step, path)
        recover(path)
        assert [child.name for child in tmp_path.iterdir()] == [name], step
        seen.append(old_or_new(path) if killed else None)
    assert old_or_new(path) == "new"
    assert set(seen) == {"old", "new", None} and len(seen) > 8
    assert seen[:-1] == sorted(seen[:-1], reverse=True)  # first the old, from some step on the new


@pytest.mark.parametrize("name", ["model", "codes.safetensors"])
def test_a_kill_before_there_is_anything_leaves_nothing_or_the_new(tmp_path, name):
    for step in (1, 3, 5, 7):
        assert kill_at(step, tmp_path / name)
        recover_all(tmp_path)
        assert [child.name for child in tmp_path.iterdir()] in ([], [name])


def test_an_interrupt_between_two_renames_leaves_the_new(tmp_path, monkeypatch):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "a").write_text("old"))
    real, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 3:  # the first fails, for there is a folder; the second moves this away
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, lambda folder: (folder / "a").write_text("new"))
    assert (path / "a").read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


def test_a_reader_between_two_renames_finds_the_new(tmp_path, monkeypatch):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "a").write_text("old"))
    real, read = os.replace, []

    def read_between(source, target):
        if Path(source) == path:
            real(source, target)
            assert not path.exists()
            recover(path)
            read.append((path / "a").read_text())
        else:
            real(source, target)

    monkeypatch.setattr(os, "replace", read_between)
    write_folder(path, lambda folder: (folder / "a").write_text("new"))
    assert read == ["new"] and (path / "a").read_text() == "new"


def test_two_writers_of_one_folder(tmp_path):
    path = tmp_path / "model"

    def outer(folder):
        write_folder(path, lambda other: (other / "inner").write_text(""))
        (folder / "outer").write_text("")

    write_folder(path, outer, replace=False)
    assert [child.name for child in path.iterdir()] == ["inner"]
    write_folder(path, outer)
    assert [child.name for child in path.iterdir()] == ["outer"]
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


def test_what_others_are_writing_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "model"
    beside = tmp_path / ".model.tmp"
    code = (
        "import sys; from chainrule.files import temporary_folder\nwith temporary_folder(sys.argv[1]): print(); input()"
    )
    with (
        temporary_folder(path) as ours,
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
    ):
        other.stdout.readline()
        (theirs,) = set(beside.iterdir()) - {ours}
        left, notes = beside / ("0" * 16), beside / "notes"
        left.mkdir()
        notes.mkdir()
        recover(path)
        assert set(beside.iterdir()) == {ours, theirs, notes}
        other.kill()
        other.wait()
        recover(path)
        assert set(beside.iterdir()) == {ours, notes}


def test_without_locks_only_old_temporary_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    young, old = tmp_path / ".model.tmp" / ("0" * 16), tmp_path / ".model.tmp" / ("1" * 16)
    for folder in (young, old):
        folder.mkdir(parents=True)
    os.utime(old, (old.stat().st_mtime - 8 * 86400,) * 2)
    write_file(tmp_path / "model", "")
    assert list((tmp_path / ".model.tmp").iterdir()) == [young]


def test_one_process_owns_a_folder(tmp_path):
    code = "import sys; from chainrule.files import owned\nwith owned(sys.argv[1]): print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with (
            pytest.raises(ValueError, match=rf"in use by process {other.pid} on .*; wait until it ends, or"),
            owned(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
        assert [child.name for child in tmp_path.iterdir()] == [".lock"]
    with owned(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"), owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_sigterm_removes_temporary_folders(tmp_path):
    code = (
        "import sys, time; from chainrule.files import temporary_folder\n"
        "with temporary_folder(sys.argv[1]):\n"
        "    print(flush=True)\n"
        "    for _ in range(1000): time.sleep(0.1)"  # a signal just before one long wait would be seen after it only
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert list(tmp_path.iterdir()) == [tmp_path / ".model.tmp"]
        other.terminate()
        assert other.wait() == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_where_no_folder_can_be_made(tmp_path, monkeypatch):
    """As in /proc, which says that the new folder does not exist."""

    def gone(folder):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))

    monkeypatch.setattr(files, "_lock", gone)
    for write in (partial(write_file, content=""), partial(write_folder, write=Path.touch)):
        with pytest.raises(OSError, match="cannot be written"):
            write(tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written \(Not a directory\)") as error:
        write_file(tmp_path / "file" / "picture.png", b"")
    assert error.value.filename == str(tmp_path / "file" / "picture.png")

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)") as error:
        write_folder(tmp_path / "model", lambda folder: write_file(folder / "part", full))
    assert error.value.filename == str(tmp_path / "model")
    with pytest.raises(FileNotFoundError) as error:  # of what is read, not of what is written
        write_folder(tmp_path / "model", lambda folder: (tmp_path / "absent").read_text())
    assert error.value.filename == str(tmp_path / "absent")
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="cannot be written") as error:
        write_file(tmp_path / "directory", "")
    assert error.value.filename == str(tmp_path / "directory")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["directory", "file"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """Of checkpoints and of weights, whose libraries say no more than that something failed."""
    model, soft_and_hard = Upscaler(UpscalerConfig(width=16)), resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint, folder = partial(save_checkpoint, tmp_path, 3, {"weight": torch.zeros(9999)}), tmp_path / "model"
    for write, path in ((checkpoint, tmp_path / "step-00000003.pt"), (partial(chainrule.save, model, folder), folder)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, soft_and_hard[1]))
        try:
            with pytest.raises(OSError, match=r"cannot be written \(Input/output error\)") as error:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)
        assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- saved models


def pipeline(seed: int = 0) -> chainrule.Pipeline:
    torch.manual_seed(seed)
    tokenizer = Pixels(PixelsConfig(image_height=4, image_width=4, levels=2))
    return chainrule.Pipeline(tokenizer, PixelCNN(tokenizer.spec, PixelCNNConfig(num_layers=1, width=4, head_width=4)))


def one_of_each() -> dict:
    text = train_bpe(["red", "green"], 257, 4)
    reranker = RerankerConfig(8, 8, 1, text.length, text.text_vocab_size, 8, text_layers=1, num_heads=2)
    return {
        "pipeline": pipeline(),
        "tokenizer": Pixels(PixelsConfig(image_height=4, image_width=4, levels=2)),
        "reranker": Reranker(reranker, text).eval(),
        "classifier": Classifier(ClassifierConfig((1, 8, 8), 2, width=8, num_stages=1)),
        "upscaler": Upscaler(UpscalerConfig(image_channels=1, num_blocks=1, width=4, expansion=1)),
    }


@pytest.mark.parametrize("kind", one_of_each())
def test_every_kind_is_saved_and_loaded(tmp_path, monkeypatch, kind):
    model, folder = one_of_each()[kind], tmp_path / "model"
    chainrule.save(model, folder, {"note": kind})
    loaded = chainrule.load(folder)
    assert type(loaded) is type(model) and kind_of(folder) == kind and read_card(folder) == {"note": kind}
    chainrule.save(loaded, tmp_path / "again", {"note": kind}, torch.bfloat16)
    assert type(chainrule.load(tmp_path / "again")) is type(model)
    monkeypatch.chdir(folder)
    assert type(chainrule.load(".")) is type(model)
    with pytest.raises(ValueError, match="^/ is no saved model"):
        chainrule.load("/")
    first, second = (yaml.safe_load((each / "config.yaml").read_text()) for each in (folder, tmp_path / "again"))
    assert first == second and first["kind"] == kind
    assert {path.stem for path in folder.glob("*.safetensors")} <= {kind, "prior"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"kind": None}, "'kind' must be"),
        ({"kind": "picture"}, "'kind' must be pipeline or tokenizer"),
        ({"prior": None}, "'prior' is missing, which a pipeline needs"),
        ({"upscaler": {"config": {}}}, "'upscaler' is no part of a pipeline"),
        ({"prior": {"name": "pixelcnn", "config": {}}}, "'prior.codes' is missing"),
        ({"tokenizer": {"name": "pixels", "config": {}}}, "'tokenizer.hash' is missing"),
        ({"tokenizer": {"name": "pixels", "config": {}, "wieghts": "a"}}, "did you mean 'weights'"),
        ({"class_names": "cats"}, "'class_names' must be a list, each text or empty"),
        ({"format": 7}, "is not a model of format 1"),
    ],
)
def test_config_yaml_is_read_strictly(tmp_path, change, sentence):
    pipeline().save(tmp_path / "model")
    path = tmp_path / "model" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence) as error:
        chainrule.load(tmp_path / "model")
    assert str(path) in str(error.value) and not is_saved_model(tmp_path / "model")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    for text in ("site_name: mine\n", "format: 1\n", "[", ""):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match="exists and is no saved model; choose another folder"):
            pipeline().save(tmp_path)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            chainrule.load(tmp_path)
        assert (tmp_path / "config.yaml").read_text() == text


@pytest.mark.parametrize("kind", ["pipeline", "reranker"])
def test_a_file_beside_a_saved_model_is_not_lost(tmp_path, kind):
    model = one_of_each()[kind]
    chainrule.save(model, tmp_path / "model")
    chainrule.save(model, tmp_path / "model")
    (tmp_path / "model" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"model holds thesis.txt, which is no part of the saved model and would be"):
        chainrule.save(model, tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("load", [chainrule.load, zoo.load_tokenizer])
def test_a_reader_sees_one_model_whole(tmp_path, monkeypatch, load):
    """Also if the folder is replaced after its config.yaml and before its weights have been read."""
    pipeline(0).save(tmp_path / "model", card={"number": 0})
    real, times = zoo.read_tokenizer, []

    def replaced_before(folder, part):
        times.append(folder)
        if len(times) < 3:
            pipeline(len(times)).save(tmp_path / "model", card={"number": len(times)})
        return real(folder, part)

    monkeypatch.setattr(zoo, "read_tokenizer", replaced_before)
    found = load(tmp_path / "model")
    assert len(times) == 3
    if isinstance(found, chainrule.Pipeline):
        assert found.card["number"] == 2
        found, last = found.prior.state_dict(), pipeline(2).prior.state_dict()
        assert all(torch.equal(found[key], last[key]) for key in last)


def test_a_model_that_was_being_saved_is_found(tmp_path, monkeypatch):
    """After every step at which the disk stops obeying, `load` finds the old model or the new one."""
    folder, seen = tmp_path / "model", []
    old, new = pipeline(0), pipeline(1)
    weights = [model.prior.state_dict() for model in (old, new)]
    for step in range(1, 1000):
        old.save(folder)
        calls = 0

        def dying(function):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls >= step:  # noqa: B023 (of this turn)
                    raise PermissionError
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                new.save(folder)
            except OSError:
                failed = True
            else:
                failed = False
        found = chainrule.load(folder).prior.state_dict()
        seen.append([all(torch.equal(found[key], one[key]) for key in one) for one in weights].index(True))
        if not failed and calls < step:
            break
    assert seen == sorted(seen) and set(seen) == {0, 1} and len(seen) > 10
