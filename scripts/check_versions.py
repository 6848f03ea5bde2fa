"""Runs the tests with other versions of Python and of the dependencies, and prints a table of the outcome.

    python scripts/check_versions.py                              # every row of ROWS: an hour or two on two cores
    python scripts/check_versions.py 3.10:lowest 3.13:newest      # these only
    python scripts/check_versions.py 3.12:pinned:2.9.1            # another torch beside the pinned versions

An environment has a version of Python and a set of versions: "lowest" takes every dependency at the lower bound in
pyproject.toml, "pinned" those of constraints.txt, "newest" whatever pip finds.  Each environment is made in a temporary
folder, of up to 6 GB with a torch for GPUs, and deleted after its tests.  Python interpreters are taken from PATH, as
python3.10 and so on (with pyenv: `pyenv shell 3.10 3.11 3.12 3.13` first).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ["3.10:lowest", "3.11:pinned", "3.12:pinned", "3.13:pinned", "3.13:newest"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="PYTHON:SET[:TORCH]")
    table = [["Python", "dependencies", "torch", "tests"]]
    for row in parser.parse_args().rows:
        python, versions, torch = (*row.split(":"), "")[:3]
        table.append([python, versions, *check(python, constraints(versions, torch))])
        print("| " + " | ".join(table[-1]) + " |", file=sys.stderr, flush=True)
    for row in [table[0], ["---"] * 4, *table[1:]]:
        print("| " + " | ".join(row) + " |")
    return int(any("failed" in row[-1] or "error" in row[-1] for row in table[1:]))


def constraints(versions: str, torch: str) -> list[str]:
    """Lines for pip: the exact versions of a set, with another torch if one is given."""
    if versions == "lowest":
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        lines = [f"{name}=={bound}" for name, bound in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', text)]
    elif versions == "pinned":
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    elif versions == "newest":
        lines = []
    else:
        raise SystemExit(f"{versions!r} is no set of versions; take lowest, pinned or newest")
    return [line for line in lines if not (torch and line.startswith("torch=="))] + [f"torch=={torch}"] * bool(torch)


def check(python: str, lines: list[str]) -> tuple[str, str]:
    """The torch that an environment of these constraints has, and what pytest says of it at the end."""
    with tempfile.TemporaryDirectory(prefix="chainrule-versions-") as folder:
        (Path(folder) / "constraints.txt").write_text("\n".join(lines), encoding="utf-8")
        own = f"{folder}/venv/bin/python"
        if not succeeds(f"python{python}", "-m", "venv", f"{folder}/venv"):
            return "", f"error: python{python} cannot make an environment"
        chosen = ["--constraint", f"{folder}/constraints.txt", "--editable", ".[dev]"]
        if not succeeds(own, "-m", "pip", "install", "--quiet", *chosen):
            return "", "error: these versions cannot be installed together"
        torch = subprocess.check_output([own, "-c", "import torch; print(torch.__version__)"], text=True).strip()
        tests = subprocess.run([own, "-m", "pytest"], cwd=ROOT, check=False, capture_output=True, text=True)
    lines = tests.stdout.splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))), file=sys.stderr)
    return torch, re.sub(r"^=+ | in [\d.]+s.*", "", lines[-1]) if lines else "error: no tests ran"


def succeeds(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
