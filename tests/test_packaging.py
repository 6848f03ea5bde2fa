"""What is beside the code: types, citation, container."""

import json
import re
from pathlib import Path

import yaml

import chainrule

ROOT = Path(__file__).resolve().parents[1]


def test_type_checkers_read_the_package():
    assert Path(chainrule.__file__).with_name("py.typed").exists()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == chainrule.__version__ and citation["type"] == "software"


def test_the_container_runs_the_demo_as_an_unprivileged_user():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith(("ENTRYPOINT", "CMD"))]
    command = " ".join(word for part in words for word in part)
    assert f"$(BIN)/{command}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and users[-1] not in ("root", "0")


def test_the_container_is_given_what_it_copies():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]}
    given = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in given if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
