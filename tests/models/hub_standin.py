"""A stand-in for the Hugging Face hub on loopback: model repositories to push to and pull from."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import urlsplit

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


class Handler(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's interface that a push and a pull use."""

    def do_HEAD(self):
        self.do_GET()

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
            self._send(404)

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            self._with_repository(match[1], "main", getattr(self, f"_{match[2]}"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch()
        else:
            self._send(404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(body).hexdigest()] = body
        self._send(200)

    def _with_repository(self, name, revision, answer):
        repository = self.server.repositories.get(name)
        if repository is None:
            self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", repository.sha):
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            answer(name, repository)

    def _create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.server.repositories else 200
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.server.repositories.setdefault(name, Repository(private))
        self._json({"url": f"{self.server.endpoint}/{name}", "name": name}, status)

    def _preupload(self, _, repository):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self):
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.endpoint}/upload"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name, repository):
        changes = [json.loads(line) for line in self.body.splitlines()]
        for change in changes:
            value = change["value"]
            if change["key"] == "header":
                repository.commits.append(value["summary"])
            elif change["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{repository.sha}"
        self._json({"commitUrl": url, "commitOid": repository.sha})

    def _info(self, name, repository):
        siblings = [{"rfilename": file} for file in repository.files]
        self._json(
            {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings}
        )

    def _tree(self, _, repository):
        self._json(
            [
                {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}
                for file, content in repository.files.items()
            ]
        )

    def _file(self, repository, file):
        content = repository.files.get(file)
        if content is None:
            self._send(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": repository.sha}
        self._send(200, content, headers)

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content=b"", headers=()):
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        for key, value in {**dict(headers), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Keep the test's output quiet."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """The stand-in, serving until :meth:`close`.

    Attributes:
        repositories: What is there, by name.
        blobs: Large files that were uploaded, by SHA-256.
        asked: Method and path of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
