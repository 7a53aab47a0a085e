"""Shard sets in an S3 bucket: moto's server on loopback, read through s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.errors import CorruptShardError, StorageError, UsageError
from shards.loader import WindowLoader
from shards.reader import ShardSet
from shards.storage import urls
from shards.storage.cache import CacheConfig

boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

KEY, SECRET = "AKIAEXAMPLE0000000000", "very-secret-words"
URL = "s3://cohort/derived/set"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def folder(tmp_path, make_shard_set) -> Path:
    make_shard_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def bucket(endpoint, folder, monkeypatch):
    import s3fs

    monkeypatch.setattr(urls, "_PAUSES_S", (0.001, 0.01))
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="cohort")
    for file in folder.iterdir():
        client.upload_file(str(file), "cohort", f"derived/set/{file.name}")
    yield client
    for item in client.list_objects_v2(Bucket="cohort").get("Contents", []):
        client.delete_object(Bucket="cohort", Key=item["Key"])
    client.delete_bucket(Bucket="cohort")


def cache_of(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=tmp_path / "cache", num_bytes=10**8, block_bytes=4096)


@pytest.mark.parametrize("cached", [False, True])
def test_a_set_in_a_bucket_equals_the_folder(bucket, folder, tmp_path, cached):
    with ShardSet(URL, cache_of(tmp_path) if cached else None) as remote, ShardSet(folder) as local:
        assert remote.runs == local.runs
        np.testing.assert_array_equal(remote.mask, local.mask)
        for number in range(len(local.runs)):
            np.testing.assert_array_equal(remote.read_run(number), local.read_run(number))
            np.testing.assert_array_equal(remote.read_window(number, 3, 20), local.read_window(number, 3, 20))


def test_the_loader_gives_the_same_batches_from_a_bucket(bucket, folder, tmp_path):
    def batches(shard_set):
        loader = WindowLoader(shard_set, window=16, batch_size=2, seed=1, threads=3)
        return [(batch.q.numpy().copy(), batch.run.tolist(), batch.start.tolist()) for batch in loader]

    with ShardSet(URL, cache_of(tmp_path)) as remote, ShardSet(folder) as local:
        found, expected = batches(remote), batches(local)
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_a_shard_that_is_missing_or_cut_is_refused(bucket, folder, change):
    with ShardSet(URL) as remote:
        size = remote.manifest.shards[0].num_bytes
        key = f"derived/set/{remote.manifest.shards[0].name}"
        if change == "missing":
            bucket.delete_object(Bucket="cohort", Key=key)
        else:
            bucket.put_object(Bucket="cohort", Key=key, Body=bytes(size - 512))
        message = "not there; the manifest lists it" if change == "missing" else f"{size - 512} bytes, the manifest"
        with pytest.raises(CorruptShardError, match=rf"{URL}/toy-000000\.tar: {message}"):
            remote.read_run(0)


def test_no_set_in_the_bucket_is_told_apart_from_no_access(bucket, monkeypatch):
    with pytest.raises(UsageError, match=r"s3://cohort/other: no manifest\.json there"):
        ShardSet("s3://cohort/other")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="check the URL and the credentials") as caught:
        ShardSet(URL)
    assert SECRET not in str(caught.value)
