"""A Hugging Face hub on the loopback interface: the endpoints that its client uses to push and to fetch."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, each with its files, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.downloads: list[str] = []


@contextmanager
def loopback_hub() -> Iterator[tuple[str, Hub]]:
    """Serve an empty hub; yields its address and its contents."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: object = None, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer({"error": "Unauthorized"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(data)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.repositories.setdefault(name, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(name)
                return self.answer({"url": f"{address}/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            user, name, what = self.path.removeprefix("/api/models/").split("/")[:3]
            files = hub.repositories[f"{user}/{name}"]
            if what == "preupload":
                asked = json.loads(data)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                return self.answer({"files": modes})
            assert what == "commit", self.path
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{address}/{user}/{name}/commit/{COMMIT}"
            return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            files = hub.repositories.get(name)
            if files is None:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if parts[0] == "api" and "tree" in parts:
                tree = [
                    {"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files
                ]
                return self.answer(tree)
            if parts[0] == "api":
                siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
                return self.answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
            data = files["/".join(parts[4:])]
            if self.command == "GET":
                hub.downloads.append("/".join(parts[4:]))
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address, hub
    finally:
        server.shutdown()
        server.server_close()
