"""Many images: written batch by batch, resumed after a kill, shared by processes, and the same as in one call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chainrule import bulk
from chainrule.drawing import read_origin
from chainrule.images import to_pil
from chainrule.pipeline import Pipeline
from test_cli import pixels_of, refused, run, tiny

N = 11


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bulk, "BATCH", 4)
    tiny(3).save("classes")
    tiny(channels=3).save("colour")
    return tmp_path


def expected() -> torch.Tensor:
    """What `words` draw."""
    return tiny(3).sample(N, [0, 1] * 5 + [0], seed=7)


def words(out: str, *more: str) -> list[str]:
    return ["sample", "classes", "-n", str(N), "--label", "cat,dog", "--seed", "7", "--out", out, *more]


def stop_after(monkeypatch, count: int):
    """The process is stopped when it has drawn `count` batches."""
    draw, left = Pipeline.sample, [count]

    def stopping(*args, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return draw(*args, **options)

    monkeypatch.setattr(Pipeline, "sample", stopping)
    return lambda: monkeypatch.setattr(Pipeline, "sample", draw)


def drawn(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


def test_a_npz_file_holds_images_and_labels(here):
    assert run(*words("x.npz")).startswith("x.npz: 11 images in ")
    with np.load("x.npz") as file:
        assert sorted(file) == ["arr_0", "arr_1"] and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], drawn(expected())) and file["arr_1"].tolist() == [0, 1] * 5 + [0]
    assert sorted(path.name for path in here.iterdir()) == ["classes", "colour", "x.npz"]
    run("sample", "colour", "-n", "2", "--out", "c.npz")
    with np.load("c.npz") as file:
        assert list(file) == ["arr_0"]
        assert np.array_equal(file["arr_0"], tiny(channels=3).sample(2).permute(0, 2, 3, 1).numpy())
    assert "x.npz exists; add --force" in refused(*words("x.npz"))


def test_a_stopped_run_goes_on(here, monkeypatch):
    go_on = stop_after(monkeypatch, 2)
    run(*words("x.npz"), code=130)
    run(*words("folder", "--separate"), code=130)
    assert not Path("x.npz").exists() and len(list(Path("x.npz.parts").glob("*.npy"))) == 2
    assert "holds the beginning of other images" in refused(*words("x.npz", "--temperature", "0.5"))
    go_on()
    assert "3 images in" not in run(*words("x.npz")) and not Path("x.npz.parts").exists()
    with np.load("x.npz") as file:
        assert np.array_equal(file["arr_0"], drawn(expected()))


def test_a_folder_goes_on_and_knows_its_files(here, monkeypatch):
    go_on = stop_after(monkeypatch, 2)
    run(*words("folder", "--separate"), code=130)
    assert len(list(Path("folder").glob("*.png"))) == 8
    Path("folder/03.png").unlink()
    go_on()
    assert "7 of them drawn before" in run(*words("folder", "--separate"))
    assert sorted(path.name for path in Path("folder").iterdir()) == [f"{index:02d}.png" for index in range(N)]
    for index, picture in enumerate(to_pil(expected())):
        assert np.array_equal(pixels_of(f"folder/{index:02d}.png").flatten().numpy(), np.asarray(picture).flatten())
    assert len(read_origin("folder/10.png").seeds) == 1
    assert "is not empty" in refused(*words("folder", "--separate"))
    run(*words("folder", "--separate", "--force", "--temperature", "0.5"))
    assert read_origin("folder/10.png").sampling.temperature == 0.5


def test_nothing_is_written_where_the_wish_is_wrong(here):
    assert "give a label" in refused("sample", "classes", "-n", "3", "--out", "x.npz")
    assert "--scale does not go with a .npz file" in refused(*words("x.npz", "--scale", "2"))
    assert "--separate does not go with" in refused(*words("x.npz", "--separate"))
    assert "--best does not go with" in refused(*words("x.npz", "--best", "1"))
    assert "at most 128 images" in refused("sample", "colour", "-n", "129", "--watch", "a.gif")
    assert sorted(path.name for path in here.iterdir()) == ["classes", "colour"]


def test_the_best_of_each_batch(here):
    run(*words("x.npz", "--best-of", "2"))
    images = tiny(3).sample(N, [0, 1] * 5 + [0], seed=7, best_of=2)
    with np.load("x.npz") as file:
        assert np.array_equal(file["arr_0"], drawn(images))


def test_pipeline_draws_in_batches_with_a_callback(here, monkeypatch):
    monkeypatch.setattr("chainrule.pipeline.BATCH", 4)
    seen = []
    images = tiny(3).sample(N, [0, 1] * 5 + [0], seed=7, on_image=lambda t, so_far: seen.append((t, len(so_far()))))
    assert torch.equal(images, expected())
    length = tiny(3).prior.spec.length
    assert [count for t, count in seen if t == length] == [4, 4, 3] and len(seen) == 3 * length


def test_processes_share_the_work(here):
    """As torchrun starts them: two processes, one folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "chainrule"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(
        [*command, *words("x.npz")], capture_output=True, text=True, env=environment, check=False, timeout=240
    )
    assert child.returncode == 0, child.stderr
    with np.load("x.npz") as file:
        assert np.array_equal(file["arr_0"], drawn(expected()))
    assert child.stdout.count("x.npz: 11 images") == 1
