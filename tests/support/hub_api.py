"""What the hub of `hub_server` answers, address by address, as the source of the Hugging Face hub's client tells."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qs

import yaml

from support.hub_connection import Answer, Connection
from support.hub_store import COMMIT, LARGE_NAMES, Blob, Discussion, Missing, Repository

_NOW = "2026-01-01T00:00:00.000Z"


class Api(Connection):
    """The hub's addresses."""

    # Accounts and repositories

    def whoami(self) -> None:
        if not self.user:
            raise Answer(401, "Invalid username or password.")
        self._json({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": self.role}}})

    def create(self) -> None:
        given = self._given()
        name = f"{given.get('organization') or self.user}/{given['name']}"
        if self.role != "write" or name.partition("/")[0] != self.user:
            raise Answer(403 if self.user else 401, "you have no rights to create a repository in this namespace")
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        folder = self.hub.folder / name.replace("/", "--")
        self.hub.repositories[name] = Repository.new(name, folder, given.get("visibility") == "private")
        self._json({"url": url, "name": name})

    def settings(self, name: str) -> None:
        found, given = self._repository(name, write=True), self._given()
        if "visibility" in given:
            found.private = given["visibility"] == "private"
        self._json({})

    def info(self, name: str, revision: str = "main") -> None:
        found = self._repository(name)
        commit = found.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        told = {"id": name, "modelId": name, "sha": commit.id, "private": found.private, "siblings": siblings}
        self._json(told)

    def tree(self, name: str, revision: str) -> None:
        files = sorted(self._repository(name).resolve(revision).files.items())
        first = int(self.query.get("cursor", ["0"])[0])
        last = first + self.hub.page
        more = f"{self.hub.url}/api/models/{name}/tree/{revision}?recursive=True&cursor={last}"
        links = {"Link": f'<{more}>; rel="next"'} if last < len(files) else {}
        self._json([blob.listed(path) for path, blob in files[first:last]], **links)

    def paths(self, name: str, revision: str) -> None:
        files = self._repository(name).resolve(revision).files
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self._json([files[path].listed(path) for path in wanted if path in files])

    def refs(self, name: str) -> None:
        listed = self._repository(name).refs.items()
        told = {"branches": [], "converts": [], "tags": [], "pullRequests": []}  # type: dict[str, list[Any]]
        for ref, commit in listed:
            kind, full = ("pullRequests", ref) if ref.startswith("refs/pr/") else ("branches", f"refs/heads/{ref}")
            told[kind].append({"name": ref, "ref": full, "targetCommit": commit})
        self._json(told)

    def branch(self, name: str, branch: str) -> None:
        found = self._repository(name, write=True)
        if self.command == "DELETE":
            del found.refs[branch]
        elif branch in found.refs:
            raise Answer(409, "Reference already exists")
        else:
            found.branch(branch, self._given().get("startingPoint", "main"))
        self._json({})

    # Uploads

    def preupload(self, name: str, revision: str) -> None:
        files = self._repository(name, write=True).resolve(revision).files
        told = []
        for given in self._given()["files"]:
            path = given["path"]
            mode = "lfs" if LARGE_NAMES.fullmatch(path) or given["size"] > 10_000_000 else "regular"
            there = {"oid": files[path].etag} if path in files else {}
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        self._json({"files": told})

    def batch(self, name: str) -> None:
        found, objects = self._repository(name, write=True), []
        for given in self._given()["objects"]:
            oid, size = given["oid"], given["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if not found.stored(oid).exists():
                place = f"{self.hub.storage_url}/storage/{name}/{oid}"
                upload: dict[str, Any] = {"href": f"{place}?signature={self.hub.signature}"}
                if size > self.hub.part_bytes:
                    parts = -(-size // self.hub.part_bytes)
                    header = {
                        f"{n:05d}": f"{place}?part={n}&signature={self.hub.signature}" for n in range(1, parts + 1)
                    }
                    header["chunk_size"] = str(self.hub.part_bytes)
                    upload = {"href": f"{self.hub.url}/complete/{name}/{oid}", "header": header}
                verify = {"href": f"{self.hub.url}/verify/{name}/{oid}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self._json({"transfer": "multipart", "objects": objects})

    def put(self, name: str, oid: str) -> None:
        if self.exchange.authorized:  # the storage is not the hub
            raise Answer(400, "only one way of authorization is allowed: the address is signed")
        if self.query.get("signature") != [self.hub.signature]:
            raise Answer(403, "the signature does not match")
        found = self.hub.repository(name)
        if part := self.query.get("part"):
            found.parts.setdefault(oid, {})[int(part[0])] = self.body
        else:
            found.store(oid, self.body)
        self._send(200, b"", {"ETag": f'"{oid[:8]}-{part[0] if part else 0}"'})

    def complete(self, name: str, oid: str) -> None:
        found, parts = self.hub.repository(name), self._given()["parts"]
        taken = found.parts.pop(oid, {})
        if [part["partNumber"] for part in parts] != sorted(taken) or not all(part["etag"] for part in parts):
            raise Answer(400, "parts are missing")
        found.store(oid, b"".join(taken[number] for number in sorted(taken)))
        self._json({})

    def verify(self, name: str, oid: str) -> None:
        there = self._repository(name, write=True).stored(oid)
        if not there.exists() or there.stat().st_size != self._given()["size"]:
            raise Answer(404, "the object is not there")
        self._json({})

    def validate(self) -> None:
        """Front matter, by the rules that the hub documents."""
        errors, content = [], self._given()["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        front = yaml.safe_load(match[1]) if match else {}
        if not isinstance(front, dict):
            errors.append({"message": "the metadata is no mapping"})
        elif front.get("license") == "other" and not front.get("license_name"):
            errors.append({"message": '"license_name" is required when license is "other"'})
        elif front.get("license") == "unknown":
            errors.append({"message": '"license" must be one of those that the hub knows'})
        warnings = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def commit(self, name: str, revision: str) -> None:
        found = self._repository(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, ref = lines[0]["value"], revision
        if COMMIT.fullmatch(revision) or revision not in found.refs:
            raise Missing("RevisionNotFound")
        if (parent := header.get("parentCommit")) and parent != found.refs[revision]:
            raise Answer(412, "A commit has happened since. Please refresh and try again.")
        answer = {}
        if self.query.get("create_pr"):
            made = found.open_pull_request(header["summary"], self.user)
            ref, made.status = f"refs/pr/{made.num}", "open"
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{made.num}"
        files = dict(found.resolve(ref).files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob.small(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if not found.stored(value["oid"]).exists():
                    raise Answer(400, f"the object of {value['path']} was not uploaded")
                files[value["path"]] = Blob.large(value["oid"], found.stored(value["oid"]).stat().st_size)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Missing("EntryNotFound")
            else:
                raise Answer(400, f"unknown operation {line['key']}")
        made_commit = found.write(ref, header["summary"], files)
        url = f"{self.hub.url}/{name}/commit/{made_commit.id}"
        self._json({"success": True, "commitOid": made_commit.id, "commitUrl": url, **answer})

    # Pull requests

    def discussions(self, name: str) -> None:
        found = self._repository(name, write=self.command == "POST")
        if self.command == "POST":
            return self._json({"num": found.open_pull_request(self._given()["title"], self.user).num})
        wanted = self.query.get("status", ["all"])[0]
        shown = [each for each in found.discussions.values() if wanted in ("all", _group(each.status))]
        self._json({"discussions": [_told(found, each) for each in shown], "count": len(shown), "start": 0})

    def discussion(self, name: str, num: str) -> None:
        found = self._repository(name)
        each = found.discussions[int(num)]
        changes = {"base": "refs/heads/main"} | ({"mergeCommitId": each.merge_commit} if each.merge_commit else {})
        self._json(_told(found, each) | {"changes": changes, "filesWithConflicts": [], "events": [], "diff": ""})

    def status(self, name: str, num: str) -> None:
        each = self._repository(name, write=True).discussions[int(num)]
        each.status = self._given()["status"]
        data = {"status": each.status}
        event = {"id": "1", "type": "status-change", "createdAt": _NOW, "author": {"name": self.user}, "data": data}
        self._json({"newStatus": event})

    def merge(self, name: str, num: str) -> None:
        found = self._repository(name, write=True)
        each = found.discussions[int(num)]
        if each.status != "open":
            raise Answer(400, f"this pull request is {each.status}")
        found.merge(each)
        self._json({})

    # Downloads

    def resolve(self, _: str, name: str, revision: str, path: str) -> None:
        found = self._repository(name)
        commit = found.resolve(revision)
        blob = commit.files.get(path)
        told = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if blob is None:
            return self._send(404, b"", told | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        if blob.sha256:
            told |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            place = f"{self.hub.storage_url}/storage/{name}/{blob.sha256}?signature={self.hub.signature}"
            return self._send(302, b"", told | {"Location": place, "ETag": f'"{blob.oid}"'})
        self._content(found.content(blob), told | {"ETag": f'"{blob.etag}"'})

    def get(self, _: str, name: str, oid: str) -> None:
        if self.exchange.authorized or self.query.get("signature") != [self.hub.signature]:
            raise Answer(403, "addresses of the storage are signed; it must not be shown a token")
        self._content(self.hub.repository(name).stored(oid).read_bytes(), {"ETag": f'"{oid}"'})

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            if first > last:
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self._send(
                206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            )
        self._send(200, data, headers)


def _group(status: str) -> str:
    return "open" if status in ("open", "draft") else "closed"


def _told(found: Repository, each: Discussion) -> dict[str, Any]:
    repo = {"name": found.name, "type": "model"}
    told = {"num": each.num, "title": each.title, "status": each.status, "author": {"name": each.author}}
    return told | {"createdAt": _NOW, "isPullRequest": True, "repo": repo}


_NAME = r"([\w.-]+/[\w.-]+)"
_API = f"/api/models/{_NAME}"
Api.routes = [
    (r"GET /api/whoami-v2", Api.whoami),
    (r"POST /api/repos/create", Api.create),
    (r"POST /api/validate-yaml", Api.validate),
    (f"PUT {_API}/settings", Api.settings),
    (f"GET {_API}", Api.info),
    (f"GET {_API}/revision/(.+)", Api.info),
    (f"GET {_API}/tree/(.+)", Api.tree),
    (f"POST {_API}/paths-info/(.+)", Api.paths),
    (f"GET {_API}/refs", Api.refs),
    (f"(?:POST|DELETE) {_API}/branch/(.+)", Api.branch),
    (f"POST {_API}/preupload/(.+)", Api.preupload),
    (f"POST {_API}/commit/(.+)", Api.commit),
    (f"(?:GET|POST) {_API}/discussions", Api.discussions),
    (f"GET {_API}/discussions/(\\d+)", Api.discussion),
    (f"POST {_API}/discussions/(\\d+)/status", Api.status),
    (f"POST {_API}/discussions/(\\d+)/merge", Api.merge),
    (f"POST /{_NAME}\\.git/info/lfs/objects/batch", Api.batch),
    (f"PUT /storage/{_NAME}/([0-9a-f]{{64}})", Api.put),
    (f"POST /complete/{_NAME}/([0-9a-f]{{64}})", Api.complete),
    (f"POST /verify/{_NAME}/([0-9a-f]{{64}})", Api.verify),
    (f"(GET|HEAD) /storage/{_NAME}/([0-9a-f]{{64}})", Api.get),
    (f"(GET|HEAD) /{_NAME}/resolve/(refs/pr/\\d+|[^/]+)/(.+)", Api.resolve),
]
