"""Places that keep bytes by name: object storage through obstore, any other file system through fsspec.

A name is a relative posix path. Every put is whole or absent for those who read. What may pass (a lost connection, a
503, a slow server) is tried again with growing pauses, then told as one StorePlaceError. obstore and fsspec are
imported when such a place is opened.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from store.errors import InputError, SilentPlaceError, StoreError, StorePlaceError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from obstore.store import ObjectStore

T = TypeVar("T")

OBSTORE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "file", "memory")
LONGEST_REQUEST = 900  # seconds for a file whose bytes keep coming
PIECE = 4 << 20  # bytes of a file that is fetched that are in memory at once
LONGEST_PAUSE = 5.0  # seconds between two tries


@dataclass(frozen=True)
class Patience:
    """How long a place that does not answer is waited for, and how leases live; all in seconds.

    connect   for a connection
    read      for an answer, what is sent before it included, and for its next bytes
    give_up   after which nothing is tried again; a dead server is told within about twice that
    pause     before the second try; before each later one it is twice as long, but at most LONGEST_PAUSE
    beat      between signs of life of a lease
    stale     without a sign of life after which a lease is taken over
    """

    connect: float = 5
    read: float = 30
    give_up: float = 25
    pause: float = 0.2
    beat: float = 10
    stale: float = 60


class Backend(Protocol):
    """A place that keeps bytes by name."""

    address: str  # as the user wrote it: what errors name

    def get(self, name: str) -> bytes | None:
        """The bytes, None where there is no such name. Small things only: they are in memory."""

    def get_to(self, name: str, path: Path, most: int) -> bool:
        """Write the bytes to the new file `path`, piece by piece; False where there is no such name.

        raises    OversizeError as soon as more than `most` bytes come
        """

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep the bytes, or those of a local file, in place of what is there."""

    def put_new(self, name: str, content: bytes) -> bool:
        """Keep the bytes if there is no such name; whether what is there now is this content, put by this call."""

    def list(self, prefix: str) -> dict[str, int]:
        """Name → size of everything below the folder `prefix`; "" for all."""

    def first(self, prefix: str) -> str | None:
        """Some name below the folder `prefix`; also how to learn cheaply whether the place is there."""

    def delete(self, name: str) -> None:
        """Remove a name; none there is as good."""


class OversizeError(StoreError):
    """More bytes came than there should be."""


def open_backend(url: str, patience: Patience | None = None) -> Backend:
    """The backend at `url`, whether it answers or not.

    raises    InputError when the URL holds a secret or is of no known kind, or a package that it needs is missing
    """
    check_url(url)
    scheme = urlsplit(url).scheme
    return (ObstoreBackend if scheme in OBSTORE_SCHEMES else FsspecBackend)(url, patience or Patience())


def check_url(url: str) -> None:
    """InputError where a URL holds what must not be written down, or is no place to keep things."""
    parts = urlsplit(url)
    shown = url.split("?")[0].split("#")[0]
    if parts.username or parts.password or "@" in parts.netloc:
        raise InputError(
            f"--store {parts.scheme}://…@{parts.hostname}{parts.path} holds a user or password, which would be written "
            "into runs and logs; leave it out, and give it in the environment or profile that the service usually reads"
        )
    if parts.query or parts.fragment:
        raise InputError(f"--store {shown} is followed by ? or #, where secrets may be; write the address alone")
    if parts.scheme == "file" and parts.netloc:
        raise InputError(f"--store {shown} names a folder of another machine; write file:///folder with three slashes")
    if "::" in url or parts.scheme in ("http", "https", "data", "zip", "tar"):
        raise InputError(f"--store {shown} is no place that can be written; name a folder, s3://, gs:// or az://")


class _Trying:
    """Tries again what may pass, until patience ends; says what was done where when it does."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.address = url.rstrip("/")
        self.patience = patience

    def tried(self, doing: str, name: str, work: Callable[[], T], passing: type[BaseException]) -> T:
        """What `work` returns; `passing` errors are tried again."""
        pause = self.patience.pause
        until = time.monotonic() + self.patience.give_up
        while True:
            try:
                return work()
            except TimeoutError as error:
                last: BaseException = error
            except passing as error:
                if doing == "reading" and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the disk here, where it was read to
                last = error
                if not may_pass(error):
                    break
            if time.monotonic() + pause > until:
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise self.stopped(doing, name, last) from last

    def stopped(self, doing: str, name: str, error: BaseException) -> StorePlaceError:
        """One sentence: where, what was being done, why it stopped, and the way out."""
        reason, way_out = diagnosis(error)
        what = f"{doing} {name}".strip()
        kind = SilentPlaceError if way_out == AGAIN else StorePlaceError
        return kind(f"the store {self.address} failed while {what} ({reason}); {way_out}")


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help: not where the place itself says no."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    status = re.search(r"status code: (\d+)", str(error))
    return not (status and status[1].startswith("4") and status[1] not in ("408", "429"))


AGAIN = "what was finished is kept here: run again when it answers, or choose another place with --store"


def diagnosis(error: BaseException) -> tuple[str, str]:
    """Why a place failed in a few words, and the way out; libraries say it on fifty lines."""
    text = str(error)
    keys = "check the credentials in the environment or the profile (for s3: AWS_ACCESS_KEY_ID, AWS_PROFILE)"
    if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
        return "there is no such bucket", "make the bucket, or correct the address"
    status = re.search(r"status code: (\d+ ?[A-Za-z ]*)", text)
    if status:
        answer = f"it answers {status[1].strip()}"
        return answer, keys if status[1].startswith(("400", "401", "403")) else AGAIN
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError", "PermissionError"):
        return "permission denied", keys
    if "169.254.169.254" in text or "CredentialsError" in text or "credential" in text.lower():
        return "no credentials are found", keys
    for sign, said in (
        ("kind: Connect", "it cannot be reached"), ("error sending request", "the connection was lost"),
        ("kind: Timeout", "no answer in time"), ("TimedOut", "no answer in time"),
        ("error decoding response body", "the connection was lost"),
    ):  # fmt: skip
        if sign in text:
            return said, AGAIN
    first = " ".join(text.split("\n\nDebug source")[0].split())
    return (first if len(first) <= 200 else f"{first[:199]}…") or type(error).__name__, AGAIN


_memories: dict[str, ObjectStore] = {}  # memory:// places of this process


class ObstoreBackend(_Trying):
    """Object storage (S3, Google, Azure), a folder, or memory, through obstore; put_new is exact where the place is."""

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__(url, patience)
        try:
            import obstore
        except ImportError:
            raise InputError(f"--store {url} needs the package obstore; pip install 'tokenflow[remote]'") from None
        self._obstore: Any = obstore
        self.objects = open_objects(url, patience)

    def get(self, name: str) -> bytes | None:
        return self._tried("reading", name, lambda: bytes(self._obstore.get(self.objects, name).bytes()))

    def get_to(self, name: str, path: Path, most: int) -> bool:
        def fetch() -> bool:
            answer = self._obstore.get(self.objects, name)
            with fetching(path) as file:
                copy_pieces(answer.stream(min_chunk_size=PIECE), file, name, most)
            return True

        return self._tried("reading", name, fetch) or False

    def put(self, name: str, content: bytes | Path) -> None:
        self._written("writing", name, lambda: self._obstore.put(self.objects, name, content, max_concurrency=2))

    def put_new(self, name: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        def put() -> bool:
            try:
                self._obstore.put(self.objects, name, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # An earlier try may have arrived though its answer was lost; contents are unique to who puts them.
                return self.get(name) == content
            return True

        return self._written("writing", name, put)

    def list(self, prefix: str) -> dict[str, int]:
        def listed() -> dict[str, int]:
            pages = self._obstore.list(self.objects, prefix=prefix or None, chunk_size=1000)
            return {str(each["path"]): int(each["size"]) for page in pages for each in page}

        return self._tried("listing", prefix, listed) or {}

    def first(self, prefix: str) -> str | None:
        def found() -> str | None:
            pages = self._obstore.list(self.objects, prefix=prefix or None, chunk_size=1)
            return next((str(each["path"]) for page in pages for each in page), None)

        return self._tried("listing", prefix, found)

    def delete(self, name: str) -> None:
        self._tried("deleting", name, lambda: self._obstore.delete(self.objects, name))

    def _tried(self, doing: str, name: str, work: Callable[[], T | None]) -> T | None:
        """None for what is not there."""
        from obstore.exceptions import BaseError

        def without() -> T | None:
            with suppress(FileNotFoundError):
                return work()
            return None

        return self.tried(doing, name, without, BaseError)

    def _written(self, doing: str, name: str, work: Callable[[], T]) -> T:
        """A write finds nothing missing, unless the bucket is."""
        from obstore.exceptions import BaseError

        def within() -> T:
            try:
                return work()
            except FileNotFoundError as error:
                raise self.stopped(doing, name, error) from error

        return self.tried(doing, name, within, BaseError)


def open_objects(url: str, patience: Patience) -> ObjectStore:
    """obstore's own store for a URL, with credentials from where the service's tools look for them."""
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, MemoryStore, from_url

    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _memories.setdefault(url.rstrip("/"), MemoryStore())
    if parts.scheme == "file":
        try:
            return LocalStore(Path(unquote(parts.path)), mkdir=True)
        except (OSError, BaseError) as error:
            raise StorePlaceError(
                f"cannot write a store in {url} ({diagnosis(error)[0]}); choose another place with --store"
            ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    more = profile_of_aws() if parts.scheme in ("s3", "s3a") else {}
    endpoint = more.get("endpoint", endpoint)
    try:
        return from_url(
            url,
            client_options={
                "connect_timeout": timedelta(seconds=patience.connect),
                "read_timeout": timedelta(seconds=patience.read),
                "timeout": timedelta(seconds=LONGEST_REQUEST),
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={
                "max_retries": 20,
                "retry_timeout": timedelta(seconds=patience.give_up),
                "backoff": {
                    "init_backoff": timedelta(seconds=patience.pause),
                    "max_backoff": timedelta(seconds=LONGEST_PAUSE),
                },
            },
            **more,
        )
    except (BaseError, ValueError) as error:
        raise InputError(f"--store {url} cannot be opened ({diagnosis(error)[0]}); correct the address") from error


def profile_of_aws() -> dict[str, Any]:
    """What ~/.aws says where the environment holds no keys: obstore reads the environment alone.

    raises    InputError when the profile that was named is not there, or takes boto3 to be read
    """
    import configparser

    named = os.environ.get("AWS_PROFILE")
    if "AWS_ACCESS_KEY_ID" in os.environ and not named:
        return {}
    home = Path.home() / ".aws"
    credentials, config = configparser.RawConfigParser(), configparser.RawConfigParser()
    with suppress(configparser.Error, OSError):
        credentials.read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials"))
        config.read(os.environ.get("AWS_CONFIG_FILE", home / "config"))
    name = named or "default"
    section = name if name == "default" else f"profile {name}"
    found = {
        **(dict(config[section]) if config.has_section(section) else {}),
        **(dict(credentials[name]) if credentials.has_section(name) else {}),
    }
    if not found:
        if named:
            raise InputError(f"AWS_PROFILE is {named!r}, and ~/.aws has no such profile; correct it, or unset it")
        return {}
    fields = {
        "access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key",
        "session_token": "aws_session_token", "region": "region", "endpoint": "endpoint_url",
    }  # fmt: skip
    given = {field: found[theirs] for field, theirs in fields.items() if theirs in found}
    if "AWS_ENDPOINT_URL" in os.environ or "AWS_ENDPOINT_URL_S3" in os.environ:
        given.pop("endpoint", None)
    if "access_key_id" in given or not named:
        return given
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise InputError(
            f"the profile {named!r} in ~/.aws has no keys of its own, and it takes boto3 to ask for some; "
            "pip install boto3"
        ) from None
    return {**given, "credential_provider": Boto3CredentialProvider()}


class FsspecBackend(_Trying):
    """Any other place that fsspec opens. Its put_new looks, then puts: of two at the same moment both may win."""

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__(url, patience)
        try:
            import fsspec
        except ImportError:
            raise InputError(f"--store {url} needs the package fsspec; pip install 'tokenflow[remote]'") from None
        try:
            self.files: AbstractFileSystem
            self.files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise InputError(f"--store {url} needs another package ({error})") from None
        except ValueError as error:
            raise InputError(
                f"--store {url} is of no known kind ({error}); name a folder, s3://, gs:// or az://"
            ) from None
        except OSError as error:
            raise self.stopped("opening it", "", error) from error

    def get(self, name: str) -> bytes | None:
        def read() -> bytes | None:
            with suppress(FileNotFoundError):
                return bytes(self.files.cat_file(self._at(name)))
            return None

        return self.tried("reading", name, read, OSError)

    def get_to(self, name: str, path: Path, most: int) -> bool:
        def fetch() -> bool:
            try:
                source = self.files.open(self._at(name), "rb")
            except FileNotFoundError:
                return False
            with source, fetching(path) as file:
                copy_pieces(iter(lambda: source.read(PIECE), b""), file, name, most)
            return True

        return self.tried("reading", name, fetch, OSError)

    def put(self, name: str, content: bytes | Path) -> None:
        def put() -> None:
            at = PurePosixPath(self._at(name))
            part = str(at.with_name(f".{uuid.uuid4().hex}.part"))
            self.files.makedirs(str(at.parent), exist_ok=True)
            try:
                if isinstance(content, Path):
                    self.files.put_file(str(content), part)
                else:
                    self.files.pipe_file(part, content)
                self.files.mv(part, str(at))
            except BaseException:
                with suppress(Exception):
                    self.files.rm_file(part)
                raise

        self.tried("writing", name, put, OSError)

    def put_new(self, name: str, content: bytes) -> bool:
        there = self.get(name)
        if there is None:
            self.put(name, content)
            there = self.get(name)  # the last of two that put at the same moment
        return there == content

    def list(self, prefix: str) -> dict[str, int]:
        def listed() -> dict[str, int]:
            self.files.invalidate_cache()
            try:
                found = self.files.find(self._at(prefix), detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._root.rstrip("/")) + 1
            sizes = {path[start:]: int(each["size"]) for path, each in found.items()}
            return {name: size for name, size in sizes.items() if not PurePosixPath(name).name.endswith(".part")}

        return self.tried("listing", prefix, listed, OSError)

    def first(self, prefix: str) -> str | None:
        def found() -> str | None:
            self.files.invalidate_cache()
            try:
                for folder, _, names in self.files.walk(self._at(prefix)):
                    for name in names:
                        return str(PurePosixPath(folder) / name)[len(self._root.rstrip("/")) + 1 :]
            except FileNotFoundError:
                pass
            return None

        return self.tried("listing", prefix, found, OSError)

    def delete(self, name: str) -> None:
        def delete() -> None:
            with suppress(FileNotFoundError):
                self.files.rm_file(self._at(name))

        self.tried("deleting", name, delete, OSError)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")


@contextmanager
def fetching(path: Path) -> Iterator[Any]:
    """A new file to write to; it is removed when what is written does not come to its end."""
    try:
        with path.open("wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copy_pieces(pieces: Iterator[Any], file: Any, name: str, most: int) -> None:
    """Write the pieces to a file; OversizeError as soon as they are more than `most` bytes."""
    came = 0
    for piece in pieces:
        came += len(piece)
        if came > most:
            raise OversizeError(f"{name} is larger than the {most} bytes that its record says")
        file.write(piece)
