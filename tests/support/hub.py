"""A model hub on this machine, for huggingface_hub's real client: folders as repositories.

It answers what the client asks for downloads: what a revision is and lists, and files with the
headers that tell their commit and size. Made after what the client sends; nothing is uploaded.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


def commit_of(folder: Path) -> str:
    """A commit's name for what a folder holds."""
    digest = hashlib.sha1()
    for path in files(folder):
        digest.update(path.encode() + (folder / path).read_bytes())
    return digest.hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


class Handler(BaseHTTPRequestHandler):
    """Requests of one client; ``asked`` lists those for files' contents."""

    def __init__(
        self, repositories: Mapping[str, Path], asked: list[str], *args: Any, **kwargs: Any
    ) -> None:
        self.repositories, self.asked = repositories, asked
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        api = words[:2] == ["api", "models"]
        words = words[2:] if api else words
        name, rest = "/".join(words[:2]), words[2:]
        folder = self.repositories.get(name)
        if folder is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest[1:2] not in ([], ["main"], [commit_of(folder)]):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._json(self._listed(folder) if rest[:1] == ["tree"] else self._facts(name, folder))
        else:
            self._file(folder, "/".join(rest[2:]))

    def _facts(self, name: str, folder: Path) -> Any:
        siblings = [{"rfilename": path} for path in files(folder)]
        return {"id": name, "sha": commit_of(folder), "private": False, "siblings": siblings}

    def _listed(self, folder: Path) -> Any:
        return [
            {"type": "file", "path": path, "size": (folder / path).stat().st_size,
             "oid": hashlib.sha1((folder / path).read_bytes()).hexdigest()}
            for path in files(folder)
        ]  # fmt: skip

    def _file(self, folder: Path, path: str) -> None:
        if path not in files(folder):
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (folder / path).read_bytes()
        if self.command == "GET":
            self.asked.append(path)
        etag = hashlib.sha1(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": commit_of(folder), "ETag": f'"{etag}"'})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """A hub that serves folders under names of the form org/name.

    Yields:
        Its address, and the files whose contents were asked for so far.
    """
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, repositories, asked))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
