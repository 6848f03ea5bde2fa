"""Pushing to the hub and loading from it, against a stand-in of the hub's endpoints."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from huggingface_hub import constants, file_download

import chainrule
from chainrule.data import DataConfig
from chainrule.data import load as load_data
from chainrule.saving.model import read_model
from chainrule.saving.publish import card
from test_cli import refused, run, tiny
from test_reranker import scorer


class Hub:
    """Repositories in memory: by name, commits from old to new, each a dict of files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.tokens: set[str | None] = set()
        self.address = ""

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = {self.sha(repo, index): files for index, files in enumerate(self.commits.get(repo, ()))}
        if revision == "main" and repo in self.commits:
            revision = next(reversed(commits), "0" * 40)  # of a repository without a commit
            return revision, commits.get(revision, {})
        return (revision, commits[revision]) if revision in commits else None

    def sha(self, repo: str, index: int) -> str:
        return hashlib.sha1(f"{repo} {index}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def answer(self, value=None, status=200, headers=(), body=None) -> None:
        data = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, one in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, one)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def token(self) -> str | None:
        found = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.tokens.add(found)
        return found

    def do_POST(self) -> None:
        token = self.token()
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if token != "write":
            return self.answer({"error": "Invalid token"}, 401)
        if self.path == "/api/repos/create":
            value = json.loads(body)
            repo = f"{value['organization']}/{value['name']}" if value.get("organization") else f"me/{value['name']}"
            self.hub.commits.setdefault(repo, [])
            if value.get("private") or value.get("visibility") == "private":
                self.hub.private.add(repo)
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            found = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return self.answer({"files": found})
        assert "/commit/" in self.path
        new = dict(self.hub.commits[repo][-1]) if self.hub.commits[repo] else {}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                new[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.hub.commits[repo].append(new)
        sha = self.hub.sha(repo, len(self.hub.commits[repo]) - 1)
        self.answer({"commitOid": sha, "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{sha}"})

    def do_GET(self) -> None:
        if self.path == "/":
            return self.answer({})
        token, words = self.token(), self.path.split("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"]:
            repo, revision = "/".join(words[2:4]), words[5] if len(words) > 5 else "main"
        else:  # user/name/resolve/revision/file
            repo, revision = "/".join(words[:2]), words[3]
        found = self.hub.files(repo, revision)
        if found is None or (repo in self.hub.private and token not in ("read", "write")):
            return self.answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        sha, files = found
        if words[0] == "api" and words[4:5] == ["tree"]:
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
            return self.answer([
                {"type": "file", "path": name, "size": len(data), "oid": oids[name]} for name, data in files.items()
            ])  # fmt: skip
        if words[0] == "api":
            listed = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            return self.answer({"id": repo, "sha": sha, "siblings": listed, "private": False, "tags": []})
        data = files["/".join(words[4:])]
        self.answer(headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha}, body=data)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    own = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": own}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    own.address = endpoint
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # older versions of the second have a copy
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield own
    server.shutdown()


def test_a_model_is_pushed_and_loaded(hub, tmp_path):
    tiny(3).save(tmp_path / "model")
    (tmp_path / "model" / "notes.md").write_text("private notes")
    assert run("push", tmp_path / "model", "me/digits", "--token", "write").strip().endswith("/me/digits")
    [files] = hub.commits["me/digits"]
    assert set(files) == {"README.md", "config.yaml", "prior.safetensors", "samples.png"}
    readme = files["README.md"].decode()
    facts = yaml.safe_load(readme.split("---")[1])
    assert facts["library_name"] == "chainrule" and "pixelcnn" in facts["tags"]
    assert 'chainrule.load("me/digits")' in readme and "81.234 ± 0.25" in readme and "red fish" in readme
    drawn = chainrule.load("me/digits", token="read").sample(2, "dog", seed=3)
    assert (drawn == tiny(3).sample(2, "dog", seed=3)).all() and hub.tokens >= {"read", "write"}


def test_a_revision_is_loaded(hub):
    first, second = tiny(), tiny()
    with_other_weights = second.prior.parameters()
    next(with_other_weights).data.add_(0.5)
    for model in (first, second):
        assert model.push_to_hub("me/plain", token="write", private=True).endswith("/me/plain")
    assert hub.private == {"me/plain"}
    old = chainrule.load("me/plain", revision=hub.sha("me/plain", 0), token="read")
    new = chainrule.load("me/plain", token="read")
    assert (old.sample(4) == first.sample(4)).all() and (new.sample(4) == second.sample(4)).all()
    with pytest.raises(ValueError, match="neither a folder nor a model on the hub"):
        chainrule.load("me/plain", revision="nothing", token="read")


def test_other_models_are_pushed(hub):
    reranker = scorer()
    chainrule.push(reranker, "me/judge", token="write")
    [files] = hub.commits["me/judge"]
    assert "samples.png" not in files and "for_texts" in files["README.md"].decode()
    assert type(chainrule.load("me/judge", token="read")) is type(reranker)


def test_what_cannot_be_pushed(hub, tmp_path):
    tiny().save(tmp_path / "model")
    assert "must be as user/name" in refused("push", tmp_path / "model", "name")
    assert "the hub refuses me/it" in refused("push", tmp_path / "model", "me/it", "--token", "read")
    with pytest.raises(ValueError, match="leave revision and token out"):
        chainrule.load(tmp_path / "model", revision="main")


class Silent:
    """A hub that takes connections, counts them, and never answers."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.taken: list[socket.socket] = []
        threading.Thread(target=self.take, daemon=True).start()

    def take(self) -> None:
        with suppress(OSError):
            while True:
                self.taken.append(self.socket.accept()[0])


@pytest.fixture
def silent(monkeypatch, tmp_path):
    hub = Silent()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.socket.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("chainrule.network.SECONDS", 0.5)
    monkeypatch.setenv("CHAINRULE_DATA", str(tmp_path))
    yield hub
    for each in (hub.socket, *hub.taken):
        each.close()


def test_a_hub_that_does_not_answer_is_asked_once(silent, tmp_path, capfd):
    tiny().save(tmp_path / "model")
    sentence = refused("info", "me/digits")
    assert "me/digits is no folder, was not fetched before, and http" in sentence and "does not answer" in sentence
    with pytest.raises(ValueError, match="the data set some/data is no folder .* does not answer"):
        load_data(DataConfig("some/data"))
    assert "me/it is not uploaded: http" in refused("push", tmp_path / "model", "me/it")
    assert len(silent.taken) == 1
    assert "Retrying" not in capfd.readouterr().err


def test_a_hub_is_not_asked_where_the_user_forbids_it(silent, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so the hub is not asked" in refused("info", "me/digits")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_data(DataConfig("some/data"))
    assert silent.taken == []


def test_without_the_hub_the_copy_is_read(hub, silent, monkeypatch):
    drawn = tiny().sample(2)
    address = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    tiny().push_to_hub("me/plain", token="write")
    chainrule.load("me/plain")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert (chainrule.load("me/plain").sample(2) == drawn).all()
    assert len(silent.taken) == 1


@pytest.mark.parametrize("name", chainrule.models())
def test_cards_of_bundled_models(name):
    text = card(read_model(chainrule.saving.hub.PRETRAINED / name), f"user/{name}", True)
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["license"] and "licence of the data" in text and "None" not in text
