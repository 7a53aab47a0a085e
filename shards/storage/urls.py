"""Shard sets behind a URL, through fsspec: ranges of files, patience with the network, secrets kept out of messages."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

from shards.errors import BoldstreamError, CorruptShardError, StorageError, UsageError
from shards.format import check_file_size

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 8
_FIRST_TRIES = 3
"""While storage has never answered: then an error is more likely in the URL than in the network."""
_PAUSES_S = (0.5, 16.0)
"""First pause between two tries, doubled each time, and the longest."""
_SILENCE_S = 60.0
"""How long a web server may say nothing."""
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
"""Of the answers from 400 to 499, which say that the request is at fault."""
_BUGS = (TypeError, AttributeError, NameError, AssertionError, LookupError)
_PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}


class _ShortAnswerError(OSError):
    """Fewer bytes came than were asked for."""


class _RangeIgnoredError(Exception):
    """A web server sends something else than the part that was asked for."""


@dataclass(frozen=True, slots=True)
class _Handle:
    """An opened file system, and what stands before and behind a name in its paths."""

    filesystem: Any
    root: str
    query: str
    is_http: bool

    def path(self, name: str) -> str:
        return f"{self.root}/{name}{self.query}"


class UrlStorage:
    """Files of a shard set at a URL that fsspec knows (see `shards.storage.Storage`).

    Parameters
    ----------
    url
        `https://host/set`, `s3://bucket/set`, ...; a query string (a signature) is sent with every name.

    Connections are made on first use, anew in a forked process.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.location = without_secrets(url).rstrip("/")
        self._sizes: dict[str, int] = {}
        self._checked: set[str] = set()
        self._answered = False
        self._pid = -1

    def read_file(self, name: str) -> bytes:
        """Read a small file whole."""
        where = f"{self.location}/{name}"
        try:
            return self._insist(where, partial(self._read_whole, name))
        except FileNotFoundError:
            raise FileNotFoundError(where) from None

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Say which shards there are, name to bytes."""
        self._sizes = dict(sizes)
        self._checked = set()

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` of a shard with one request."""
        where = f"{self.location}/{name}"
        if name not in self._sizes:
            raise UsageError(f"{where}: not a shard of this set")
        try:
            room[:] = self._insist(where, partial(self._read_part, name, offset, len(room)))
        except FileNotFoundError:
            raise CorruptShardError(f"{where}: not there; the manifest lists it, restore the file") from None

    def close(self) -> None:
        """Forget the connections; reading again makes new ones."""
        self._pid = -1

    def _read_whole(self, name: str) -> bytes:
        handle = self._open()
        size = handle.filesystem.size(handle.path(name)) if not handle.is_http else None
        check_file_size(size or 0, name, f"{self.location}/{name}")
        data: bytes = handle.filesystem.cat_file(handle.path(name))
        return data

    def _read_part(self, name: str, offset: int, num_bytes: int) -> bytes:
        handle, size = self._open(), self._sizes[name]
        path, end = handle.path(name), min(offset + num_bytes, size)
        found: int | None = size
        if handle.is_http:
            data, found = _http_part(handle.filesystem, path, offset, end)
        else:
            if name not in self._checked:
                found = handle.filesystem.size(path)
            data = handle.filesystem.cat_file(path, start=offset, end=end) if found in (size, None) else b""
        if found not in (size, None):
            raise CorruptShardError(
                f"{self.location}/{name}: {found} bytes, the manifest says {size}; restore the file"
            )
        self._checked.add(name)
        if len(data) != num_bytes:
            raise _ShortAnswerError(f"{len(data)} of {num_bytes} bytes at {offset}")
        return data

    def _insist(self, where: str, call: Callable[[], T]) -> T:
        """Call, and again after a pause where that may help; an error that stays becomes one of ours."""
        pause, longest = _PAUSES_S
        for tries in count(1):
            try:
                result = call()
            except (BoldstreamError, FileNotFoundError, *_BUGS):
                raise
            except Exception as error:
                self._answered = self._answered or _status(error) is not None
                if tries >= (_TRIES if self._answered else _FIRST_TRIES) or _is_final(error):
                    raise _as_ours(where, error, tries) from None
                logger.warning("%s: %s; trying again in %.1f s at most", where, _reason(error), pause)
            else:
                self._answered = True
                return result
            time.sleep(pause * random.uniform(0.5, 1.0))  # so that ranks do not come back all at once
            pause = min(2 * pause, longest)
        raise AssertionError("counting never ends")

    def _open(self) -> _Handle:
        """The file system: one for all threads where fsspec runs it in a loop of its own, else one a thread."""
        if self._pid != os.getpid():
            self._shared: _Handle | None = None
            self._own = threading.local()
            self._pid = os.getpid()
        handle: _Handle | None = self._shared or getattr(self._own, "handle", None)
        if handle is None:
            handle = self._own.handle = _connect(self._url)
            if handle.filesystem.async_impl:
                self._shared = handle
        return handle


def without_secrets(text: str) -> str:
    """A text without the passwords (`user:password@`) and query strings of the URLs in it."""
    text = re.sub(r"(\w://)[^/\s'\"]*@", r"\1", text)
    return re.sub(r"(\w://[^\s'\"?#]*)[?#][^\s'\")>]*", r"\1", text)


def _status(error: Exception) -> int | None:
    """What a web server answered, if it did."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status else None


def _reason(error: Exception) -> str:
    status = _status(error)
    text = str(error) if status is None else f"HTTP {status} {getattr(error, 'message', '')}"
    return without_secrets(" ".join(text.split()))[:200] or type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether the answer would be the same a moment later."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY
    denied = isinstance(error, (PermissionError, ValueError, IsADirectoryError, NotADirectoryError, _RangeIgnoredError))
    return denied or "Credential" in type(error).__name__  # botocore's have no class in common


def _as_ours(where: str, error: Exception, tries: int) -> BoldstreamError:
    if isinstance(error, _ShortAnswerError):
        return CorruptShardError(f"{where}: {error}; the file is cut, restore it")
    if isinstance(error, _RangeIgnoredError):
        return StorageError(f"{where}: {error}; use another server, or copy the set to a disk")
    if isinstance(error, ValueError):
        return UsageError(f"{where}: {_reason(error)}; check the URL")
    if _is_final(error):
        return StorageError(f"{where}: {_reason(error)}; check the URL and the credentials")
    return StorageError(f"{where}: {_reason(error)} ({tries} tries); check the network, then start again")


def _connect(url: str) -> _Handle:
    import fsspec

    is_http = url.startswith(("http://", "https://"))
    base, mark, query = url.partition("?") if is_http else (url, "", "")
    try:
        options = _http_options() if is_http else {}
        if query:
            options["encoded"] = True  # a signature holds for the very bytes that were signed
        filesystem, root = fsspec.url_to_fs(base.rstrip("/"), **options)
    except ImportError as error:
        protocol = base.partition("://")[0].rpartition("::")[2]
        package = _PACKAGES.get(protocol)
        advice = f"pip install {package}" if package else without_secrets(str(error))
        raise UsageError(
            f"{without_secrets(url)}: {protocol}:// needs a package that is not installed: {advice}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{without_secrets(url)}: {without_secrets(str(error))}; check the URL") from None
    return _Handle(filesystem, root.rstrip("/"), mark + query, is_http)


def _http_options() -> dict[str, Any]:
    """Options of fsspec's HTTP; what the user's fsspec configuration says goes first."""
    from fsspec.config import conf

    own: dict[str, Any] = {**conf.get("http", {}), **conf.get("https", {})}
    client = {"trust_env": True, "auto_decompress": False, **own.get("client_kwargs", {})}
    if "timeout" not in client:
        import aiohttp

        client["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S / 2, sock_read=_SILENCE_S)
    headers = {"Accept-Encoding": "identity", **own.get("headers", {})}
    return {**own, "client_kwargs": client, "headers": headers}


def _http_part(filesystem: Any, url: str, start: int, end: int) -> tuple[bytes, int | None]:
    from fsspec.asyn import sync

    part: tuple[bytes, int | None] = sync(filesystem.loop, _http_range, filesystem, url, start, end)
    return part


async def _http_range(filesystem: Any, url: str, start: int, end: int) -> tuple[bytes, int | None]:
    """Bytes of a file on a web server and the file's size; nothing but these bytes is ever taken in.

    (fsspec's own `cat_file` returns whatever comes, and its `info` takes an overloaded server for a missing file.)
    """
    from asyncio import IncompleteReadError

    session = await filesystem.set_session()
    options = {**filesystem.kwargs, "headers": {**filesystem.kwargs["headers"], "Range": f"bytes={start}-{end - 1}"}}
    async with session.get(filesystem.encode_url(url), **options) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(url)
        stated = answer.headers.get("Content-Range", "")
        if answer.status == 416 and stated.startswith("bytes */"):
            return b"", int(stated.removeprefix("bytes */"))
        answer.raise_for_status()
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", stated)
        if found is None or int(found[1]) != start or int(found[2]) >= end:
            raise _RangeIgnoredError("the server sends something else than the part of the file that was asked for")
        size = None if found[3] == "*" else int(found[3])
        try:
            return await answer.content.readexactly(end - start), size
        except IncompleteReadError as error:
            return error.partial, size
