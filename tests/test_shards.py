"""Arrays in parts, and the code cache that is made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chainrule.data.shards import Part, PartWriter, Rows, cached_parts
from forks import run_script

SHARED = """
import sys, time
from pathlib import Path
from chainrule.data.shards import PartWriter, cached_parts
import numpy as np

def build(number, folder):
    time.sleep(0.05)
    print(number)
    writer = PartWriter(folder, [np.uint8])
    writer.add([np.full((2, 3), number)])
    writer.close()

print(*(folder.name for folder in cached_parts("shared", list(range(8)), build)), file=sys.stderr)
"""


def build(number: int, folder: Path) -> None:
    writer = PartWriter(folder, [np.uint8, np.int16])
    for row in range(number + 1):
        writer.add([np.full((1, 2), row), np.full((1,), 300 + number)], [row], [f"ä{row}", ""][row % 2 : row % 2 + 1])
    writer.close(note=number)


def test_rows_are_those_of_one_array():
    whole = torch.arange(24).view(12, 2)
    rows = Rows([whole[:5], whole[5:6], whole[6:]])
    indices = torch.tensor([11, 0, 5, 4, 6, 5])
    assert len(rows) == 12 and torch.equal(rows[indices], whole[indices])


def test_parts_are_written_row_by_row():
    parts = [Part(folder) for folder in cached_parts("written", list(range(3)), build)]
    assert [part.count for part in parts] == [1, 2, 3] and parts[2].meta["note"] == 2
    first, second = parts[2].arrays()
    assert first.tolist() == [[0, 0], [1, 1], [2, 2]] and first.dtype == torch.uint8
    assert second.tolist() == [302] * 3 and parts[2].labels().tolist() == [0, 1, 2]
    assert [parts[2].text(row) for row in range(3)] == ["ä0", "", "ä2"]


def test_what_was_killed_loses_one_part():
    built = []

    def until(number: int, folder: Path) -> None:
        built.append(number)
        build(number, folder)
        if number == 2 and built.count(2) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_parts("killed", list(range(4)), until)
    folders = cached_parts("killed", list(range(4)), until)
    assert built == [0, 1, 2, 2, 3] and [Part(folder).count for folder in folders] == [1, 2, 3, 4]
    assert sorted(path.name for path in folders[0].parent.iterdir()) == sorted(folder.name for folder in folders)


def test_processes_share_the_parts(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    both = run_script(str(tmp_path / "shared.py"), processes=2)
    one, other = both.stderr.splitlines()
    assert both.returncode == 0 and one == other
    assert sorted(both.stdout.split()) == [str(number) for number in range(8)]
