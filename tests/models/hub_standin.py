"""A stand-in for the Hugging Face hub on loopback: model repositories to push to and pull from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import urlsplit

import servers

TOKEN = "hf_standin"


class Repository:
    """Files of a model repository, by name, and what became of them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((sorted(self.files.items()), self.commits)).encode()).hexdigest()


class Handler(servers.Handler):
    """The parts of the hub's interface that a push and a pull use."""

    def do_GET(self):
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._with_repository(
                match[1], match[3], self._tree if match[2] == "tree" else self._info
            )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._with_repository(
                match[1], match[2], lambda _, repository: self._file(repository, match[3])
            )
        else:
            self.send(404)

    def do_POST(self):
        self.content = self.body()
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_json({"error": "Invalid credentials"}, 401)
        elif self.server.refuses:
            self.send_json({"error": "it does not take that"}, 400)
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            self._with_repository(match[1], "main", getattr(self, f"_{match[2]}"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch()
        else:
            self.send(404)

    def do_PUT(self):
        body = self.body()
        self.server.blobs[hashlib.sha256(body).hexdigest()] = body
        self.send(200)

    def _with_repository(self, name, revision, answer):
        repository = self.server.repositories.get(name)
        if repository is None:
            self.send(404, X_Error_Code="RepoNotFound")
        elif revision not in (None, "main", repository.sha):
            self.send(404, X_Error_Code="RevisionNotFound")
        else:
            answer(name, repository)

    def _create(self):
        wanted = json.loads(self.content)
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.server.repositories else 200
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.server.repositories.setdefault(name, Repository(private))
        self.send_json({"url": f"{self.server.endpoint}/{name}", "name": name}, status)

    def _preupload(self, _, repository):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.content)["files"]
        ]
        self.send_json({"files": files})

    def _batch(self):
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.endpoint}/upload"}}}
            for wanted in json.loads(self.content)["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name, repository):
        changes = [json.loads(line) for line in self.content.splitlines()]
        for change in changes:
            value = change["value"]
            if change["key"] == "header":
                repository.commits.append(value["summary"])
            elif change["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{repository.sha}"
        self.send_json({"commitUrl": url, "commitOid": repository.sha})

    def _info(self, name, repository):
        siblings = [{"rfilename": file} for file in repository.files]
        self.send_json(
            {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings}
        )

    def _tree(self, _, repository):
        self.send_json(
            [
                {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}
                for file, content in repository.files.items()
            ]
        )

    def _file(self, repository, file):
        content = repository.files.get(file)
        if content is None:
            self.send(404, X_Error_Code="EntryNotFound")
            return
        self.send(200, content, ETag=f'"{_oid(content)}"', X_Repo_Commit=repository.sha)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(servers.Server):
    """The stand-in.

    Attributes:
        repositories: What is there, by name.
        blobs: Large files that were uploaded, by SHA-256.
        refuses: Whether it finds fault with what is sent.
    """

    def __init__(self) -> None:
        self.refuses = False
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        super().__init__(Handler)
