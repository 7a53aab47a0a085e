"""What the flags of the cluster allow, and the refusals in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ingest.cluster.config import ClusterConfig, format_walltime, parse_options, parse_walltime
from shards.errors import UsageError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": -1}, "--workers -1: allowed is 0"),
        ({"cluster_options": ("queue=main",)}, "--cluster-options queue=main: only with --cluster slurm or pbs"),
        ({"cluster": "slurm"}, "--cluster slurm needs --workers N, 1 or more"),
        ({"cluster": "pbs", "workers": 0}, "--cluster pbs needs --workers N, 1 or more"),
        ({"cluster": "slurm", "workers": 2, "scheduler": "tcp://h:1"}, "--scheduler and --cluster slurm: only one"),
        ({"scheduler": "tcp://h:1", "workers": 2}, "--workers 2: the scheduler at tcp://h:1 has its workers"),
        ({"scheduler": "h:8786"}, "--scheduler h:8786: not an address; write it as tcp://host:8786"),
        ({"scheduler": "http://h:8787/status"}, "not an address"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(values, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        ClusterConfig(**values)


@pytest.mark.parametrize("address", ["tcp://login1:8786", "tls://10.0.0.1:8786", "tcp://[fe80::1%eth0]:8786"])
def test_addresses_of_schedulers_are_accepted(address):
    assert ClusterConfig(scheduler=address).scheduler == address


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("qeueu=main", "'qeueu=main': with --cluster slurm allowed are key=value of account, cores, interface"),
        ("resource_spec=select=1", "with --cluster slurm allowed are"),
        ("queue", "'queue': queue needs a value"),
        ("queue= ", "queue needs a value"),
        ("queue=a\nb", "on one line"),
        ("cores=0", "--cluster-options cores '0': allowed is a whole number, 1 to 1024"),
        ("cores=two", "allowed is a whole number"),
        ("memory=lots", "--cluster-options memory 'lots' is not a size"),
        ("walltime=4:00", "--cluster-options walltime '4:00': allowed is a minute or more, written as 4:00:00"),
        ("walltime=0:00:10", "allowed is a minute or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(option, words):
    with pytest.raises(UsageError) as caught:
        ClusterConfig(cluster="slurm", workers=1, cluster_options=(option,))
    assert words in str(caught.value)


def test_an_option_given_twice_is_refused():
    with pytest.raises(UsageError, match="--cluster-options queue is given twice"):
        parse_options(("queue=a", "queue=b"), "slurm")


def test_lists_may_come_several_times_and_values_may_hold_equal_signs():
    values = parse_options(("job_extra_directives=--qos=low", "job_extra_directives=--exclusive"), "slurm")
    assert values["job_extra_directives"] == ["--qos=low", "--exclusive"]


def test_options_have_the_types_of_their_keys():
    values = parse_options(("cores=4", "memory=16GB", "walltime=90m", "resource_spec=select=1:ncpus=4"), "pbs")
    assert values == {"cores": 4, "memory": 16 * 10**9, "walltime": 5400, "resource_spec": "select=1:ncpus=4"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4:00:00", 14400), ("1-12:00:00", 129600), ("36:00:00", 129600), ("90m", 5400), ("2d", 172800)],
)
def test_walltimes_are_read(text, seconds):
    assert parse_walltime(text, "walltime") == seconds


def test_a_walltime_is_written_as_slurm_and_pbs_read_it():
    assert format_walltime(129661) == "36:01:01"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ClusterConfig(workers=0), "this process"),
        (ClusterConfig(workers=8), "3 workers"),
        (ClusterConfig(cluster="slurm", workers=8), "8 workers in slurm jobs"),
        (ClusterConfig(scheduler="tcp://h:1"), "the workers of tcp://h:1"),
    ],
)
def test_who_builds_three_shards_in_words(config, words):
    assert config.describe(3) == words


def test_the_queue_library_leaves_ctrl_c_to_the_command():
    code = (
        "import signal\n"
        "from ingest.cluster.queue_pool import _cluster_class\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "print(_cluster_class('slurm').__name__, signal.getsignal(signal.SIGINT) is before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SLURMCluster True\n"
