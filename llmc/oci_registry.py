"""A registry of container images, by oras: what is asked of it, and what its answers mean in words.

HTTPS everywhere but on this machine itself. Credentials are those of `docker login` (`$DOCKER_CONFIG/config.json`,
credential helpers included). Before anything is sent, the registry is asked for what will be needed, so that a missing
login or a registry that is not there is told at once, not after minutes of oras' own tries.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmc.errors import InputError, MachineError
from llmc.files import parse_json
from llmc.modelpack import MANIFEST_TYPE

SCHEME = "oci://"
_REFERENCE = re.compile(
    r"oci://(?P<host>[a-zA-Z0-9.-]+(:[0-9]+)?|\[[0-9a-fA-F:]+\](:[0-9]+)?)/"
    r"(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MANIFEST_BYTES = 1 << 24
_CHUNK = 1 << 22
_PART = 64 << 20  # bytes of a request, of files that are larger
_SECONDS = (10, 300)  # to connect, and without a byte
_TRIES = 5  # at a file whose connection breaks


class Registry:
    """One repository of a registry.

    Args:
        reference: `oci://host/name:tag`, or `…@sha256:…`

    Attributes:
        name: the reference without a tag or digest
        tag: a tag, `latest` where the reference has neither; None: there is a digest
        digest: of a manifest, if the reference has one
    """

    def __init__(self, reference: str) -> None:
        found = _REFERENCE.fullmatch(reference)
        if found is None:
            raise InputError(f"{reference}: is no model in a registry; write oci://HOST/NAME:TAG, in small letters")
        self.reference, self.host, self.repository = reference, found["host"], found["name"]
        self.digest = found["digest"]
        self.tag = found["tag"] or (None if self.digest else "latest")
        self.name = f"{SCHEME}{self.host}/{self.repository}"
        self._scheme = "http" if _is_here(self.host) else "https"
        self._root = f"{self._scheme}://{self.host}/v2"
        self._client, self._container = None, None

    def open(self, to_write: bool) -> None:
        """Connects; InputError where reading, or writing, needs another login."""
        from oras.provider import Registry as Client

        with self.told():
            for kind in ("token", "basic"):
                client = Client(self.host, insecure=self._scheme == "http", auth_backend=kind)
                client.session.mount(f"{self._scheme}://", _patient_adapter())
                self._client, self._container = client, client.get_container(self._container_name())
                client.auth.load_configs(self._container, configs=_docker_configs())
                if to_write:
                    method, url = "POST", f"{self._root}/{self.repository}/blobs/uploads/"
                else:
                    method, url = "HEAD", self._manifest_url()
                response, basic = self._enter(method, url)
                if not (basic and kind == "token"):
                    break
        if response.status_code in (401, 403):
            raise InputError(f"{self.name}: needs a login that may do this; call `docker login {self.host}`, or `oras`")
        if to_write and response.status_code == 202 and (session := response.headers.get("Location")):
            with self.told():  # asked for its permission only
                client.session.delete(session if "://" in session else f"{self._scheme}://{self.host}{session}")

    def has(self, digest: str) -> bool:
        """Whether a blob is there already."""
        with self.told():
            return bool(self._client.blob_exists({"digest": digest}, self._container))  # type: ignore[attr-defined]

    def send(self, path: Path, digest: str, size: int) -> None:
        """Sends a file, in parts where it is large."""
        layer = {"digest": digest, "size": size}
        with self.told():
            client: Any = self._client
            if size > _PART:
                response = client.chunked_upload(str(path), self._container, layer, chunk_size=_PART)
            else:
                response = client.put_upload(str(path), self._container, layer)
            self._require(response, f"{path.name} was not taken")

    def send_manifest(self, manifest: dict[str, Any]) -> str:
        """Sends the manifest, under the tag; its digest."""
        with self.told():
            response = self._client.upload_manifest(manifest, self._container)  # type: ignore[attr-defined]
            self._require(response, "the manifest was not taken")
        return f"sha256:{hashlib.sha256(response.request.body).hexdigest()}"

    def manifest(self) -> tuple[dict[str, Any], str]:
        """The manifest and its digest; InputError when there is none, or not the one that the reference asks for."""
        with self.told():
            client: Any = self._client
            response = client.do_request(self._manifest_url(), headers={"Accept": MANIFEST_TYPE}, stream=True)
            if response.status_code == 404:
                raise InputError(f"{self.reference}: there is no such model")
            self._require(response, "the manifest was not given")
            data = response.raw.read(_MANIFEST_BYTES + 1, decode_content=True)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.digest and digest != self.digest:
            raise InputError(f"{self.reference}: the registry gave another manifest ({digest}); do not use it")
        try:
            found = parse_json(data) if len(data) <= _MANIFEST_BYTES else None
        except ValueError as error:
            raise InputError(f"{self.reference}: broken manifest ({error})") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.reference}: broken manifest, no JSON object of at most {_MANIFEST_BYTES:,} bytes")
        return found, digest

    def receive(self, digest: str, size: int, path: Path, more: Callable[[int], None]) -> None:
        """Gets a blob; what `path` holds of it already is not sent again. InputError when it is not what it is called.

        Args:
            more: is told how many bytes came, or were there
        """
        client: Any = self._client
        url = f"{self._root}/{self.repository}/blobs/{digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.stat().st_size if path.exists() else 0
        if path.exists() and there >= size:
            if _digest(path) == digest:
                more(size)
                return
            path.unlink()
            there = 0
        more(there)
        for attempt in range(_TRIES):
            there = path.stat().st_size if path.exists() else 0
            if there >= size and path.exists():
                break
            try:
                headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
                with client.do_request(url, headers=headers, stream=True) as response:
                    if response.status_code not in (200, 206):
                        self._require(response, f"{path.name} was not given")
                    if there and response.status_code == 200:  # it does not know ranges: from the beginning
                        more(-there)
                    with path.open("ab" if response.status_code == 206 else "wb") as file:
                        for chunk in response.iter_content(_CHUNK):
                            if file.tell() + len(chunk) > size:  # or it would fill the disk first
                                path.unlink()
                                raise InputError(f"{self.reference}: {path.name} is longer than the registry said")
                            file.write(chunk)
                            more(len(chunk))
            except OSError as error:  # of requests, too: the connection broke
                if attempt + 1 == _TRIES or not _is_of_network(error):
                    with self.told():
                        raise
                time.sleep(attempt)
        if (found := _digest(path)) != digest:
            path.unlink()
            raise InputError(f"{self.reference}: {path.name} is not what its digest says ({found}); pull it again")

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong between here and there, in words."""
        try:
            yield
        except OSError as error:
            if not _is_of_network(error):
                raise
            reason = getattr(error.args[0] if error.args else None, "reason", error)
            raise MachineError(f"{self.name}: {self.host} cannot be reached ({_short(reason)}); try again") from error
        except (InputError, MachineError, ImportError):
            raise
        except ValueError as error:  # oras', of answers that it does not like
            raise MachineError(f"{self.name}: the registry refused ({_short(error)})") from error

    def _enter(self, method: str, url: str) -> tuple[Any, bool]:
        """The answer to a first request, and whether it asks for a password instead of a token."""
        client: Any = self._client
        headers = {"Accept": MANIFEST_TYPE}
        response = client.session.request(method, url, headers=headers)
        if response.status_code != 401:
            return response, False
        challenge = response.headers.get("Www-Authenticate", "")
        basic = challenge.lower().startswith("basic")
        if basic and (not hasattr(client.auth, "get_auth_header") or not getattr(client.auth, "_basic_auth", None)):
            return response, False
        if basic and hasattr(client.auth, "token"):
            return response, True
        more, changed = client.auth.authenticate_request(response, dict(headers))
        return (client.session.request(method, url, headers=more) if changed else response), basic

    def _require(self, response: Any, otherwise: str) -> None:
        if response.status_code in (401, 403):
            raise InputError(f"{self.name}: {otherwise}: needs another login; call `docker login {self.host}`")
        if response.status_code not in (200, 201, 202):
            said = _short(response.text[:500] if response.text else response.reason)
            raise MachineError(f"{self.name}: {otherwise} (HTTP {response.status_code}: {said})")

    def _manifest_url(self) -> str:
        return f"{self._root}/{self.repository}/manifests/{self.digest or self.tag}"

    def _container_name(self) -> str:
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def _patient_adapter() -> Any:
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        """oras sets no limit, and would wait forever."""

        def send(self, *args: Any, **options: Any) -> Any:
            return super().send(*args, **options | {"timeout": options.get("timeout") or _SECONDS})

    return Patient()


def _is_of_network(error: OSError) -> bool:
    from requests.exceptions import RequestException

    return isinstance(error, RequestException)


def _is_here(host: str) -> bool:
    """Whether a host is this machine: what is said to it in the clear, nobody else hears."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) and not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _docker_configs() -> list[str] | None:
    folder = os.environ.get("DOCKER_CONFIG")
    file = Path(folder) / "config.json" if folder else None
    return [str(file)] if file is not None and file.is_file() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _short(said: object) -> str:
    return " ".join(str(said).split())[:300]
