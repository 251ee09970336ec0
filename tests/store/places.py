"""Places that stores are kept in, for tests: a real S3 server in its own process, and a bad line in front of it."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from store.backends import Backend, Patience, open_backend
from store.remote import RemoteStore, open_store

SOON = Patience(connect=1, read=1, give_up=1, pause=0.02, beat=0.05, stale=0.4)
PLENTY = 10**9


@contextmanager
def s3_server() -> Iterator[int]:
    """The port on which an S3 server listens, as long as the block runs."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not answers(port):
                assert process.poll() is None, "the S3 server does not start"
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def new_bucket(port: int) -> str:
    """The URL of a new place in a new bucket."""
    name = f"bucket-{secrets.token_hex(6)}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    return f"s3://{name}/team/store"


def use_s3(port: int, patch: pytest.MonkeyPatch) -> None:
    """Have what is opened from now on talk to the server at `port`."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("NO_PROXY", "127.0.0.1")


@dataclass
class Place:
    """A place for one shared store; each machine that works in it has its own cache."""

    url: str
    folder: Path
    caches: list[Path] = field(default_factory=list)

    def backend(self) -> Backend:
        return open_backend(self.url, SOON)

    def machine(self, name: str = "one", cache_size: int = PLENTY) -> RemoteStore:
        """The store as another machine has it; the same machine under the same name."""
        store = open_store(self.url, cache_size, self.folder / name, SOON)
        assert isinstance(store, RemoteStore)
        return store

    def names(self, prefix: str) -> list[str]:
        return sorted(self.backend().list(prefix))


class BadLine:
    """A TCP proxy in front of an HTTP server that behaves as badly as it is told.

    drop      so many requests lose their connection before they are read
    busy      so many requests are answered 503
    cut       so many answers are cut off in their body
    lose      so many requests are done, and their answers lost
    delay     seconds before each answer
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.drop = self.busy = self.cut = self.lose = 0
        self.delay = 0.0
        self.requests: list[str] = []
        self._counting = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def well(self) -> None:
        """Behave from now on."""
        self.drop = self.busy = self.cut = self.lose = 0
        self.delay = 0.0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _left(self, what: str) -> bool:
        with self._counting:
            left = int(getattr(self, what))
            setattr(self, what, max(left - 1, 0))
            return left > 0

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(10)
            try:
                if self._left("drop"):
                    return
                request = _read_request(client)
                if not request:
                    return
                self.requests.append(request.split(b"\r\n")[0].decode())
                if self._left("busy"):
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                answer = self._ask(request)
                time.sleep(self.delay)
                if self._left("lose"):
                    return
                body = len(answer.partition(b"\r\n\r\n")[2])
                if body and self._left("cut"):
                    answer = answer[: -body // 2]
                client.sendall(answer)
            except OSError:
                return

    def _ask(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self.target), timeout=10) as server:
            server.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            answer = b""
            while piece := server.recv(1 << 16):
                answer += piece
        return answer


def _read_request(client: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        piece = client.recv(1 << 16)
        if not piece:
            return b""
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        piece = client.recv(1 << 16)
        if not piece:
            return b""
        body += piece
    return head + b"\r\n\r\n" + body
