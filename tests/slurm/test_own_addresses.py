"""Two hosts as network namespaces, joined by a cable: ranks meet at their addresses, not at a shared loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_training import FLAGS, assert_same_curve
from two_nodes import ROOT

pytestmark = pytest.mark.slow

HOSTS = ("boldstream-a", "boldstream-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture(params=["names lead to addresses", "names lead to loopbacks"])
def variables(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Two hosts with an address and a hosts file each; what ranks need to know, here, to find each other.

    Debian writes a host's own name into its hosts file as 127.0.1.1, where gloo then listens unless it is told.
    """
    if shutil.which("ip") is None or not ip("netns", "add", HOSTS[0]):
        pytest.skip("no network namespaces here (they need root and iproute2)")
    loopback = request.param == "names lead to loopbacks"
    try:
        assert ip("netns", "add", HOSTS[1])
        assert ip("link", "add", "cable", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
        names = "".join(f"{address} {host}\n" for host, address in zip(HOSTS, ADDRESSES, strict=True))
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            assert ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            assert ip("-n", host, "link", "set", "cable", "up") and ip("-n", host, "link", "set", "lo", "up")
            own = Path("/etc/netns") / host  # what `ip netns exec` lays over /etc
            own.mkdir(parents=True)
            (own / "hosts").write_text("127.0.0.1 localhost\n" + (f"127.0.1.1 {host}\n" if loopback else names))
        if loopback:
            yield {"MASTER_ADDR": ADDRESSES[0], "GLOO_SOCKET_IFNAME": "cable"}
        else:
            yield {"MASTER_ADDR": HOSTS[0]}
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)
            shutil.rmtree(f"/etc/netns/{host}", ignore_errors=True)


def start(rank: int, command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    """A rank on a host whose name and address are its own."""
    launcher = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    launcher |= {"MASTER_PORT": "29500", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | variables
    host = HOSTS[rank]
    named = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", sys.executable, *command]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["ip", "netns", "exec", host, *named], env=os.environ | launcher, **pipes)


def test_two_hosts_train_as_one_process(
    variables: dict[str, str], tmp_path: Path, make_shard_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_shard_set(tmp_path / "shards", frames=(40,) * 16, runs_per_shard=16)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    command = f"train.py --phase 1 --shards shards --out two --batch_size 2 {FLAGS}".split()
    ranks = [start(rank, command, variables) for rank in (0, 1)]
    told = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert_same_curve(tmp_path / "two", {})
