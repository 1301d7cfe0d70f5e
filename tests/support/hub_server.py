"""A model hub on loopback: the Hugging Face hub's protocol, as far as its own client speaks it.

    with HubServer(tmp_path / "hub") as hub:
        subprocess.run([...], env=os.environ | hub.environment(tmp_path / "home"))
        assert hub.count("PUT") == 3

Repositories are created, files preuploaded (small ones in the commit, large ones in parts, each to an address with a
signature), committed to branches and pull requests, merged, listed in pages, and downloaded with ETag and ranges, large
ones from another origin than the hub's, which must not see the token. It fails when it is told to. The client is
huggingface_hub as it is installed; its second protocol, Xet, is not spoken here.
"""

from __future__ import annotations

import secrets
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from support.hub_api import Api
from support.hub_connection import Hub


class HubServer(Hub):
    """The hub, in threads of this process, while it is entered.

    Args:
        folder: where large files lie
        part_bytes: large files are taken in parts of so many bytes
        page: how many files a page of a list has
        api: what it answers
    """

    def __init__(self, folder: Path, part_bytes: int = 1 << 20, page: int = 10, api: type[Api] = Api) -> None:
        super().__init__(folder, part_bytes, page)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (api,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}"  # another origin
        self.signature = secrets.token_hex(8)

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
        """Variables that send the client here, with a cache and a login of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "*",
        }
