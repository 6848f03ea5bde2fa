"""Test scripts in processes of their own, forked from one that has imported the package already.

Tests of kills, signals and several processes need many of them, and the imports take longer than what they do.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
IMPORTED = ("lightning_fabric", "chainrule.training", "chainrule.evaluation", "conftest")
TIMEOUT = 250
"""Seconds after which a process is killed."""


def run_script(script: str, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a file as `python SCRIPT ARGUMENTS` does, or in several processes as torchrun does.

    Of several processes, the return code is 1 where one fails; the others are killed then.
    """
    job = {"script": script, "arguments": arguments, "processes": processes, "folder": os.getcwd()}
    job["environment"] = os.environ | ENVIRONMENT
    with tempfile.TemporaryDirectory() as folder:
        job |= {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            job["port"] = free.getsockname()[1]
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        outputs = [Path(job[name]).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([script, *arguments], code, *outputs)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], env=environment, **pipes)


def serve() -> None:
    """Runs the jobs that come in lines of standard input, and prints their return codes."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        running = {_fork(job, rank) for rank in range(job["processes"])}
        code = 0
        while running:
            process, status = os.wait()
            running.remove(process)
            if status:
                code = os.waitstatus_to_exitcode(status) if job["processes"] == 1 else 1
                for other in running:
                    os.kill(other, signal.SIGKILL)
        print(code, flush=True)


def _fork(job: dict, rank: int) -> int:
    """Starts a process of a job; returns its number."""
    if process := os.fork():
        return process
    code = 1
    try:
        signal.alarm(TIMEOUT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ |= job["environment"]
        if job["processes"] > 1:
            number, world = str(rank), str(job["processes"])
            os.environ |= {
                "RANK": number, "LOCAL_RANK": number, "GROUP_RANK": "0", "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"]), "TORCHELASTIC_RUN_ID": "tests",
            }  # fmt: skip
        sys.argv = [job["script"], *job["arguments"]]
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
