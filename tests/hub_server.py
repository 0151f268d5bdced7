"""A stand-in of a model hub: a small HTTP server that speaks what huggingface_hub asks for when it pushes, lists and downloads.

Users are tokens: "write-token" is `me`'s, "read-token" may only read, any other is refused. `teams` belongs to somebody else.
"""

import base64
import contextlib
import hashlib
import json
import re
import shutil
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from dp2osr.backbones.locate import _list_hub
from dp2osr.cli import parse
from dp2osr.hub.settings import PushSettings
from dp2osr.publishing import push_folder

TOKENS = {"Bearer write-token": "write", "Bearer read-token": "read"}
LARGE = (".safetensors", ".parquet", ".png")


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self):
        state = "".join(f"{name}{hashlib.sha1(content).hexdigest()}" for name, content in sorted(self.files.items()))
        return hashlib.sha1(state.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """`repositories`: {"models/me/x": Repository}; `refused`: parts of paths that are answered with an error; `asked`: all paths."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.blobs, self.asked, self.refused = {}, {}, [], {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer_one()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer_one(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        for part, status in self.server.refused.items():
            if part in path:
                return self.send({"error": "no"}, status)
        routes = {
            "/api/whoami-v2": self.whoami,
            "/api/repos/create": self.create,
            "/api/validate-yaml": self.validate,
            r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/revision/([^/]+))?": self.info,
            r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+": self.tree,
            r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/[^/]+": self.preupload,
            r"/api/(models|datasets)/([^/]+/[^/]+)/commit/[^/]+": self.commit,
            r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"/lfs/(\w+)": self.blob,
            r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
        }
        for route, answer in routes.items():
            found = re.fullmatch(route, path)
            if found:
                return answer(*found.groups())
        return self.send({"error": f"no such route {path}"}, 404)

    def send(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def role(self):
        return TOKENS.get(self.headers.get("Authorization"))

    def writable(self, repo_id):
        return self.role == "write" and repo_id.startswith("me/")

    def repository(self, kind, repo_id):
        """The repository, or None after the answer that a hub gives where there is none that the asker may see."""
        found = self.server.repositories.get(f"{kind}/{repo_id}")
        if found is None or found.private and not self.role:
            self.send({"error": "Repository not found"}, 404 if self.role else 401, X_Error_Code="RepoNotFound")
            return None
        return found

    def whoami(self):
        if not self.role:
            return self.send({"error": "Invalid credentials in Authorization header"}, 401)
        return self.send({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": self.role}}})

    def create(self):
        asked = json.loads(self.body)
        repo_id, kind = f"{asked['organization'] or 'me'}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        if not self.writable(repo_id):
            return self.send({"error": "You don't have the rights to create a model under this namespace"}, 403)
        there = f"{kind}/{repo_id}" in self.server.repositories
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories.setdefault(f"{kind}/{repo_id}", Repository(private))
        prefix = "datasets/" if kind == "datasets" else ""
        return self.send({"url": f"{self.server.address}/{prefix}{repo_id}"}, 409 if there else 200)

    def validate(self):
        """A card's front matter: a mapping whose base models are ids, as a hub wants them."""
        front = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        named = front.get("base_model") or []
        good = all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in ([named] if isinstance(named, str) else named))
        return self.send({"errors": [], "warnings": []} if good else {"errors": [{"message": "base_model is no id"}]}, 200 if good else 400)

    def info(self, kind, repo_id, revision):
        found = self.repository(kind, repo_id)
        if found is None:
            return None
        if revision not in (None, "main", found.commit):
            return self.send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": name} for name in sorted(found.files)]
        return self.send({"id": repo_id, "sha": found.commit, "private": found.private, "siblings": files, "tags": [], "downloads": 0})

    def tree(self, kind, repo_id):
        found = self.repository(kind, repo_id)
        if found is None:
            return None
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(found.files.items())
        ]
        return self.send(files)

    def preupload(self, kind, repo_id):
        if not self.writable(repo_id):
            return self.send({"error": "forbidden"}, 403)
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [
            {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False, "oid": None} for name in names
        ]
        return self.send({"files": modes})

    def batch(self, _prefix, repo_id):
        objects = json.loads(self.body)["objects"]
        actions = [{**one, "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}} for one in objects]
        return self.send({"transfer": "basic", "objects": actions})

    def blob(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        return self.send({})

    def commit(self, kind, repo_id):
        repository = self.server.repositories[f"{kind}/{repo_id}"]
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.address}/{repo_id}/commit/{repository.commit}"
        return self.send({"commitUrl": url, "commitOid": repository.commit, "success": True})

    def resolve(self, prefix, repo_id, revision, name):
        found = self.repository("datasets" if prefix else "models", repo_id)
        if found is None:
            return None
        if found.gated:
            return self.send({"error": "gated"}, 403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if name not in found.files:
            return self.send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=found.commit)
        content = found.files[name]
        return self.send(content, 200, X_Repo_Commit=found.commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')


@contextlib.contextmanager
def running_hub():
    """A hub that listens on this machine."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def environment_of(server, cache, token=None):
    """Variables with which a program of its own talks to the hub."""
    return {
        "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip


def talk_to(server, monkeypatch, cache, token=None):
    """Let huggingface_hub of this process talk to the hub, with its cache in an own folder."""
    from huggingface_hub import constants

    cache.mkdir(exist_ok=True)
    values = {
        "ENDPOINT": server.address, "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache), "HF_TOKEN_PATH": str(cache / "token"),
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that this process talks to, as the user `me`."""
    _list_hub.cache_clear()
    with running_hub() as running:
        talk_to(running, monkeypatch, tmp_path / "cache", "write-token")
        yield running
    _list_hub.cache_clear()


@pytest.fixture
def policy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "policy")


def front_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def push(*given):
    push_folder(parse(PushSettings, list(map(str, given))))
