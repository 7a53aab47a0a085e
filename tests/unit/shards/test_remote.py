"""Shard sets behind URLs: a small web server on loopback that can misbehave, and fsspec's memory and file systems."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from shards.errors import CorruptShardError, StorageError, UsageError
from shards.loader import WindowLoader
from shards.reader import ShardSet
from shards.storage import urls
from shards.storage.cache import CacheConfig
from shards.storage.remote import RemoteStorage
from shards.storage.urls import without_secrets

pytest.importorskip("aiohttp")

PARTICIPANTS = "participant_id\tage\nsub-00\t31\nsub-01\t44\nsub-02\t29\n"
USER = ("reader", "hunter2")


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder; `misbehave(request, body)` may take an answer over by returning True."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[str] = []
        self.misbehave: Callable[[_Handler, bytes], bool] = lambda request, body: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of the server's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        file = self.server.folder / self.path.partition("?")[0].removeprefix("/set/")
        body = file.read_bytes() if file.is_file() else b""
        if self.server.misbehave(self, body):
            return
        if not file.is_file():
            self.answer(404, b"no such file")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, body)
        elif int(asked[1]) >= len(body):
            self.answer(416, b"", f"bytes */{len(body)}")
        else:
            part = body[int(asked[1]) : int(asked[2]) + 1]
            self.answer(206, part, f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(body)}")

    def answer(self, status: int, body: bytes, content_range: str = "", promised: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def folder(tmp_path, make_shard_set) -> Path:
    make_shard_set(tmp_path / "set", participants=PARTICIPANTS)
    return tmp_path / "set"


@pytest.fixture
def server(folder) -> Iterator[WebServer]:
    with serving(folder) as web:
        yield web


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    web = WebServer(folder)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield web
    web.shutdown()
    web.server_close()


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(urls, "_PAUSES_S", (0.001, 0.01))


def cache_of(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=tmp_path / "cache", num_bytes=10**8, block_bytes=4096)


def assert_same(remote: ShardSet, local: ShardSet, seed: int = 0) -> None:
    assert remote.manifest == local.manifest
    assert remote.runs == local.runs
    np.testing.assert_array_equal(remote.mask, local.mask)
    rng = np.random.default_rng(seed)
    for number, entry in enumerate(local.runs):
        np.testing.assert_array_equal(remote.read_run(number), local.read_run(number))
        for _ in range(4):
            length = int(rng.integers(1, entry.num_frames))
            start = int(rng.integers(0, entry.num_frames - length + 1))
            np.testing.assert_array_equal(
                remote.read_window(number, start, length), local.read_window(number, start, length)
            )


def shard_bytes(folder: Path) -> bytes:
    return (folder / "toy-000000.tar").read_bytes()


def opened(location: str, cache: CacheConfig | None = None) -> RemoteStorage:
    """Storage as a `ShardSet` leaves it: shards known, none read."""
    with ShardSet(location, cache) as shard_set:
        storage = shard_set.storage
    assert isinstance(storage, RemoteStorage)
    return storage


def read(storage: RemoteStorage, offset: int, num_bytes: int, name: str = "toy-000000.tar") -> bytes:
    room = bytearray(num_bytes)
    storage.read_into(name, offset, memoryview(room))
    return bytes(room)


@pytest.mark.parametrize("cached", [False, True])
def test_a_set_on_a_web_server_equals_the_folder(server, folder, tmp_path, cached):
    cache = cache_of(tmp_path) if cached else None
    with ShardSet(server.url, cache) as remote, ShardSet(folder) as local:
        assert_same(remote, local)
        assert remote.phenotype("age") == {"00": "31", "01": "44", "02": "29"}


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_set_on_other_file_systems_equals_the_folder(folder, tmp_path, protocol):
    url = f"file://{folder}"
    if protocol == "memory":
        url = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(folder), url, recursive=True)
    with ShardSet(url) as remote, ShardSet(folder) as local:
        assert_same(remote, local)


def test_a_folder_with_a_cache_equals_the_folder_and_is_not_read_again(folder, tmp_path):
    with ShardSet(folder, cache_of(tmp_path)) as cached, ShardSet(folder) as local:
        assert_same(cached, local)
        for shard in local.manifest.shards:
            (folder / shard.name).unlink()
        np.testing.assert_array_equal(cached.read_window(0, 3, 20), cached.read_window(0, 3, 20))


def test_the_loader_gives_the_same_batches_from_a_web_server(server, folder, tmp_path):
    def batches(shard_set):
        loader = WindowLoader(shard_set, window=16, batch_size=2, seed=5, threads=3)
        return [(batch.q.clone(), batch.gain.clone(), batch.run.clone(), batch.start.clone()) for batch in loader]

    with ShardSet(server.url, cache_of(tmp_path)) as remote, ShardSet(folder) as local:
        found, expected = batches(remote), batches(local)
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_what_is_cached_is_not_asked_for_again(server, tmp_path):
    for _ in range(2):
        with ShardSet(server.url, cache_of(tmp_path)) as shard_set:
            shard_set.read_run(0)
            server.requests.clear()
            shard_set.read_run(0)
            assert server.requests == []


def test_a_replaced_set_does_not_meet_old_blocks(server, folder, tmp_path, make_shard_set):
    with ShardSet(server.url, cache_of(tmp_path)) as shard_set:
        shard_set.read_run(0)
    make_shard_set(folder, participants=PARTICIPANTS, seed=1)
    with ShardSet(server.url, cache_of(tmp_path)) as remote, ShardSet(folder) as local:
        assert_same(remote, local)


def test_blocks_of_a_shard_outlive_the_append_of_others(server, folder, tmp_path, make_shard_set):
    with ShardSet(server.url, cache_of(tmp_path)) as shard_set:
        expected = shard_set.read_run(0)
        first = shard_set.manifest.shards[0]
    make_shard_set(folder, frames=(37, 150, 83, 60, 61), participants=PARTICIPANTS)
    with ShardSet(server.url, cache_of(tmp_path)) as shard_set:
        assert shard_set.manifest.shards[0].xxh3 == first.xxh3
        server.requests.clear()
        np.testing.assert_array_equal(shard_set.read_window(0, 0, 37), shard_set.read_window(0, 0, 37))
        assert expected.shape[0] == 37
        assert server.requests == []


def test_threads_read_what_one_reads(server, folder, tmp_path):
    storage, expected = opened(server.url, cache_of(tmp_path)), shard_bytes(folder)
    offsets = np.random.default_rng(0).integers(0, len(expected) - 3000, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda offset: read(storage, offset, 3000), offsets))
    assert parts == [expected[offset : offset + 3000] for offset in offsets]


@pytest.mark.parametrize("every", [2, 3])
def test_a_server_that_fails_now_and_then_is_asked_again(server, folder, every):
    def fail(request: _Handler, body: bytes) -> bool:
        if len(server.requests) % every:
            return False
        request.answer(503, b"busy")
        return True

    server.misbehave = fail
    with ShardSet(server.url) as remote, ShardSet(folder) as local:
        assert_same(remote, local)


def test_a_connection_that_breaks_in_the_middle_is_tried_again(server, folder):
    storage = opened(server.url)
    server.requests.clear()

    def cut(request: _Handler, body: bytes) -> bool:
        if len(server.requests) > 2:
            return False
        request.answer(206, body[:100], f"bytes 0-999/{len(body)}", promised=1000)
        request.close_connection = True
        return True

    server.misbehave = cut
    assert read(storage, 0, 1000) == shard_bytes(folder)[:1000]


def test_an_outage_is_a_storage_error_of_one_line_after_bounded_tries(server):
    storage = opened(server.url)
    server.requests.clear()
    server.misbehave = lambda request, body: request.answer(503, b"down") is None
    with pytest.raises(StorageError, match=r"toy-000000\.tar: HTTP 503 .*8 tries.*check the network") as caught:
        read(storage, 0, 10)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 8


def test_a_busy_server_is_given_the_same_time_at_the_start(server):
    server.misbehave = lambda request, body: request.answer(503, b"busy") is None
    with pytest.raises(StorageError, match=r"manifest\.json: HTTP 503 .*8 tries"):
        ShardSet(server.url)


def test_no_server_at_all_is_a_storage_error(folder):
    with serving(folder) as web:
        url = web.url
    with pytest.raises(StorageError, match=r"manifest\.json: .*connect.*3 tries"):
        ShardSet(url)


def test_refused_access_is_not_tried_again(server):
    storage = opened(server.url)
    server.requests.clear()
    server.misbehave = lambda request, body: request.answer(403, b"no") is None
    with pytest.raises(StorageError, match="HTTP 403 Forbidden; check the URL and the credentials"):
        read(storage, 0, 10)
    assert len(server.requests) == 1


@pytest.mark.parametrize("offset", [0, 700])
def test_a_server_that_ignores_ranges_is_refused_without_its_body(server, offset):
    storage = opened(server.url)
    sent = []

    def whole(request: _Handler, body: bytes) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        request.close_connection = True
        for _ in range(10**6):
            request.wfile.write(bytes(10**6))
            sent.append(1)
        return True

    server.misbehave = whole
    with pytest.raises(StorageError, match="something else than the part"):
        read(storage, offset, 1000)
    assert len(sent) < 100


@pytest.mark.parametrize(("first", "last"), [(5, 9), (0, 14), (1000, 1009)])
def test_a_part_from_elsewhere_is_refused(server, first, last):
    storage = opened(server.url)
    server.misbehave = lambda request, body: (
        request.answer(206, body[first : last + 1], f"bytes {first}-{last}/{len(body)}") is None
    )
    with pytest.raises(StorageError, match="something else than the part"):
        read(storage, 0, 10)


def test_an_answer_that_stays_short_is_a_corrupt_shard(server):
    storage = opened(server.url)
    server.misbehave = lambda request, body: request.answer(206, body[:7], f"bytes 0-6/{len(body)}") is None
    with pytest.raises(CorruptShardError, match="7 of 10 bytes at 0; the file is cut"):
        read(storage, 0, 10)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("change", ["cut", "grown"])
def test_a_shard_of_another_size_is_refused(server, folder, tmp_path, change, cached):
    storage = opened(server.url, cache_of(tmp_path) if cached else None)
    data = shard_bytes(folder)
    (folder / "toy-000000.tar").write_bytes(data[:-512] if change == "cut" else data + bytes(512))
    for offset in (0, len(data) - 600, len(data) - 100):
        with pytest.raises(
            CorruptShardError, match=rf"{len(data) - 512 if change == 'cut' else len(data) + 512} bytes"
        ):
            read(storage, offset, 90)


def test_a_shard_of_another_size_is_refused_on_other_file_systems(folder):
    storage = opened(f"file://{folder}")
    data = shard_bytes(folder)
    (folder / "toy-000000.tar").write_bytes(data[:-512])
    with pytest.raises(CorruptShardError, match=f"{len(data) - 512} bytes, the manifest says {len(data)}"):
        read(storage, 0, 90)


@pytest.mark.parametrize("where", ["http", "file"])
def test_a_missing_shard_is_named(server, folder, where):
    storage = opened(server.url if where == "http" else f"file://{folder}")
    (folder / "toy-000000.tar").unlink()
    with pytest.raises(CorruptShardError, match=r"toy-000000\.tar: not there; the manifest lists it"):
        read(storage, 0, 10)


def test_reading_past_the_end_or_of_no_shard_is_refused(server, folder):
    storage = opened(server.url)
    size = len(shard_bytes(folder))
    with pytest.raises(CorruptShardError, match="11 bytes at"):
        read(storage, size - 10, 11)
    with pytest.raises(UsageError, match="not a shard of this set"):
        read(storage, 0, 1, "runs.tsv")


def test_a_missing_small_file_is_not_found(server, folder):
    for location in (server.url, f"file://{folder}"):
        with pytest.raises(FileNotFoundError, match=r"/set/nothing\.tsv$"):
            RemoteStorage(location).read_file("nothing.tsv")


@pytest.mark.parametrize("url", ["nonsense://host/set", "https://[::1/set"])
def test_a_url_that_means_nothing_is_a_usage_error(url):
    with pytest.raises(UsageError, match="check the URL"):
        ShardSet(url)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("https", "aiohttp"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(monkeypatch, protocol, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    url = f"{protocol}://bucket/set"
    with pytest.raises(UsageError, match=rf"^{url}: {protocol}:// needs a package .* pip install {package}$"):
        ShardSet(url)


def test_no_folder_is_a_usage_error_also_with_a_cache(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        ShardSet(tmp_path / "none", cache_of(tmp_path))


def test_passwords_and_signatures_are_sent_and_never_shown(server, folder, tmp_path, caplog):
    seen = []

    def guard(request: _Handler, body: bytes) -> bool:
        import base64

        seen.append(request.path.partition("?")[2])
        sent = request.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(sent).decode() == ":".join(USER) and len(seen) % 2:
            return False
        request.answer(500, b"")
        return True

    server.misbehave = guard
    caplog.set_level(logging.DEBUG, "shards")
    url = server.url.replace("//", f"//{USER[0]}:{USER[1]}@") + "/?sig=a%2Fb%3D&x=1"
    with ShardSet(url, cache_of(tmp_path)) as remote, ShardSet(folder) as local:
        assert_same(remote, local)
        assert remote.location == server.url
        assert read(pickle.loads(pickle.dumps(remote.storage)), 0, 1000) == shard_bytes(folder)[:1000]
        server.misbehave = lambda request, body: request.answer(403, b"") is None
        with pytest.raises(StorageError) as caught:
            RemoteStorage(url).read_file("manifest.json")
    assert set(seen) == {"sig=a%2Fb%3D&x=1"}
    assert "trying again" in caplog.text
    for secret in (*USER, "sig=", "b%3D"):
        assert secret not in caplog.text + str(caught.value)


def test_secrets_in_the_words_of_an_error_are_cut_out(monkeypatch, caplog):
    def fail(url: str, **_: object) -> None:
        raise OSError(f"cannot reach {url}/manifest.json?sig=abc,\ntry later")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)
    with pytest.raises(StorageError) as caught:
        ShardSet("https://reader:hunter2@host/set?sig=abc")
    assert str(caught.value).startswith("https://host/set/manifest.json: cannot reach https://host/set/manifest.json")
    for text in (str(caught.value), caplog.text):
        assert not any(secret in text for secret in (*USER, "sig"))
    assert "\n" not in str(caught.value)


def test_secrets_are_cut_out_of_any_text():
    text = "x https://u:p@s@h/a?k=v, s3://b/c?d and memory://e#f."
    assert without_secrets(text) == "x https://h/a s3://b/c and memory://e"


@pytest.mark.parametrize("cached", [False, True])
def test_storage_and_sets_travel_by_pickle(server, folder, tmp_path, cached):
    with ShardSet(server.url, cache_of(tmp_path) if cached else None) as remote, ShardSet(folder) as local:
        remote.read_window(0, 0, 5)
        assert_same(pickle.loads(pickle.dumps(remote)), local)
        assert read(pickle.loads(pickle.dumps(remote.storage)), 512, 100) == shard_bytes(folder)[512:612]


def test_a_forked_process_reads_on(server, folder):
    storage = opened(server.url)
    read(storage, 0, 10)
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put(read(storage, 512, 100)))
    child.start()
    assert found.get(timeout=30) == shard_bytes(folder)[512:612]
    child.join(30)
    assert read(storage, 5, 10) == shard_bytes(folder)[5:15]


def test_a_silent_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(urls, "_SILENCE_S", 0.2)
    storage = opened(server.url)
    server.misbehave = lambda request, body: time.sleep(1.5) is None
    with pytest.raises(StorageError, match="check the network"):
        read(storage, 0, 10)
