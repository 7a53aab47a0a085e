"""`split-fmri`: verbs, tables, exit codes, and that it starts fast."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import (
    EXIT_CONFIG_DIFFERS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_OUTPUT,
    EXIT_USAGE,
    EXIT_VERIFICATION,
)
from shards.split_cli import main
from shards.splits import load_split

NUM_SUBJECTS = 48


@pytest.fixture
def cohort(tmp_path: Path, make_shard_set) -> Path:
    """48 subjects in families of two; diagnosis and site balanced against each other, age all different."""
    lines = ["participant_id\tfamily\tdiagnosis\tsite\tage"]
    for k in range(NUM_SUBJECTS):
        diagnosis, site = ("control", "patient")[k // 2 % 2], ("bath", "york", "leeds/2")[k // 4 % 3]
        lines.append(f"sub-{k:02d}\tF{k // 2}\t{diagnosis}\t{site}\t{20 + k}")
    make_shard_set(tmp_path / "set", frames=[6] * NUM_SUBJECTS, runs_per_shard=99, participants="\n".join(lines) + "\n")
    return tmp_path / "set"


def run(*words: object) -> int:
    """Exit code of `split-fmri` with these words."""
    return main([str(word) for word in words])


def test_make_prints_the_balance_and_writes_what_it_prints(cohort: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "split.json"
    words = ["make", cohort, "--out", out, "--stratify", "diagnosis", "site", "--fractions", 0.5, 0.25, 0.25]
    assert run(*words) == EXIT_OK
    split = load_split(out)
    assert split.rule == {
        "design": "fractions",
        "fractions": [0.5, 0.25, 0.25],
        "group": "family",
        "stratify": "diagnosis, site",
    }
    said = capsys.readouterr().out
    assert f"written, hash {split.hash}" in said
    assert "families: column family; 0 of 48 subjects have none" in said
    assert [line.split() for line in said.splitlines() if line.startswith(("subjects", "control, bath"))] == [
        ["subjects", "24", "(50.0%)", "12", "(25.0%)", "12", "(25.0%)"],
        ["control,", "bath", "4", "2", "2"],
    ]
    assert "largest deviation from even shares: +0.0 subjects" in said


def test_the_same_again_is_fine_and_another_split_is_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "split.json"
    assert run("make", cohort, "--out", out, "--seed", 3) == EXIT_OK
    before = out.read_bytes()
    assert run("make", cohort, "--out", out, "--seed", 3) == EXIT_OK
    assert "already there, unchanged" in capsys.readouterr().out
    assert run("make", cohort, "--out", out, "--seed", 4) == EXIT_CONFIG_DIFFERS
    assert run("make", cohort, "--out", out, "--seed", 3, "--stratify", "site") == EXIT_CONFIG_DIFFERS
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith(f"error: {out}: holds") for line in errors)
    assert out.read_bytes() == before


def test_folds_of_two_seeds(cohort: Path, tmp_path: Path, capsys) -> None:
    words = ["folds", cohort, "--out", tmp_path / "folds", "--k", 3, "--seeds", 0, 8, "--stratify", "age"]
    assert run(*words) == EXIT_OK
    for seed in (0, 8):
        folds = [load_split(tmp_path / "folds" / f"seed-{seed}_fold-{k}-of-3.json") for k in (1, 2, 3)]
        assert sorted(name for fold in folds for name in fold.test) == [f"{k:02d}" for k in range(NUM_SUBJECTS)]
        assert {fold.seed for fold in folds} == {seed}
    assert folds[0].rule["stratify"] == "age in 4 quantile bins" and folds[0].rule["design"] == "fold 1 of 3"
    assert "largest deviation" in capsys.readouterr().out
    assert run(*words) == EXIT_OK


def test_every_site_is_left_out_once(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "sites"
    assert run("leave-site-out", cohort, "--out", out, "--site-column", "site", "--stratify", "diagnosis") == EXIT_OK
    assert sorted(path.name for path in out.iterdir()) == ["leave-bath.json", "leave-leeds%2F2.json", "leave-york.json"]
    assert load_split(out / "leave-bath.json").counts["test"] == {"control": 8, "patient": 8}


def test_named_sites_are_left_out_together(cohort: Path, tmp_path: Path, capsys) -> None:
    words = ["leave-site-out", cohort, "--out", tmp_path / "sites", "--site-column", "site"]
    assert run(*words, "--site", "york", "bath") == EXIT_OK
    split = load_split(tmp_path / "sites" / "leave-bath+york.json")
    assert len(split.test) == 32 and split.rule["site_column"] == "site"
    assert run(*words, "--site", "hull") == EXIT_USAGE
    assert "sites are bath, leeds/2, york" in capsys.readouterr().err


@pytest.fixture
def lists(tmp_path: Path) -> list[object]:
    """Flags of three lists that cover half of the cohort; train has two spellings."""
    names = {"train": ["sub-00", "01", "02", "03"], "val": ["04", "05"], "test": ["06", "07"]}
    flags: list[object] = []
    for part, subjects in names.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(subjects))
        flags += [f"--{part}", tmp_path / f"{part}.txt"]
    return flags


def test_lists_become_a_split(cohort: Path, tmp_path: Path, lists: list[object]) -> None:
    assert run("lists", cohort, "--out", tmp_path / "split.json", *lists, "--stratify", "site") == EXIT_OK
    split = load_split(tmp_path / "split.json")
    assert (split.train, split.val, split.test) == (("00", "01", "02", "03"), ("04", "05"), ("06", "07"))
    assert split.rule["group"] == "family" and split.counts["val"] == {"york": 2}


def test_lists_that_divide_a_family_need_a_word(cohort: Path, tmp_path: Path, lists: list[object], capsys) -> None:
    (tmp_path / "val.txt").write_text("05")
    (tmp_path / "test.txt").write_text("04\n06")
    words = ["lists", cohort, "--out", tmp_path / "split.json", *lists]
    assert run(*words) == EXIT_CONFIG_DIFFERS
    assert "divides F2 of the column family: val has 05; test has 04" in capsys.readouterr().err
    assert not (tmp_path / "split.json").exists()
    assert run(*words, "--group", "none") == EXIT_OK


def test_unknown_subjects_on_lists_need_a_word(cohort: Path, tmp_path: Path, lists: list[object], capsys) -> None:
    (tmp_path / "test.txt").write_text("06\n07\n100307")
    words = ["lists", cohort, "--out", tmp_path / "split.json", *lists]
    assert run(*words) == EXIT_CONFIG_DIFFERS
    assert "1 of 9 listed subjects are not in the shard set: 100307" in capsys.readouterr().err
    assert run(*words, "--allow-unknown") == EXIT_OK
    assert load_split(tmp_path / "split.json").rule["unknown_left_out"] == 1


def test_a_table_of_parts_instead_of_lists(cohort: Path, tmp_path: Path, lists: list[object], capsys) -> None:
    table = tmp_path / "parts.tsv"
    table.write_text("participant_id\tpart\nsub-00\ttrain\nsub-01\ttrain\n02\ttest\n")
    assert run("lists", cohort, "--out", tmp_path / "split.json", "--table", table) == EXIT_OK
    assert load_split(tmp_path / "split.json").test == ("02",)
    for flags in ([], [*lists, "--table", table], ["--table", table, *lists[2:]]):
        assert run("lists", cohort, "--out", tmp_path / "other.json", *flags) == EXIT_USAGE
    assert "give either --table FILE" in capsys.readouterr().err


def test_check_shows_a_split_and_judges_it_against_a_set(cohort: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "split.json"
    run("make", cohort, "--out", path, "--stratify", "diagnosis", "--seed", 6)
    capsys.readouterr()
    assert run("check", path) == EXIT_OK
    said = capsys.readouterr().out
    assert f"hash {load_split(path).hash}, seed 6" in said and "  stratify: diagnosis" in said and "patient" in said
    assert run("check", path, cohort) == EXIT_OK
    assert "no group of family crosses; 0 subjects unused, 0 absent" in capsys.readouterr().out
    assert run("check", path, cohort, "--group", "site") == EXIT_CONFIG_DIFFERS
    assert "of the column site" in capsys.readouterr().err


def test_check_refuses_an_edited_file(cohort: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "split.json"
    run("make", cohort, "--out", path)
    path.write_text(path.read_text().replace('"00"', '"99"'))
    assert run("check", path) == EXIT_CONFIG_DIFFERS
    assert "the list was edited" in capsys.readouterr().err


def test_check_refuses_a_split_of_another_set(cohort: Path, tmp_path: Path, make_shard_set, capsys) -> None:
    path = tmp_path / "split.json"
    (tmp_path / "parts.tsv").write_text("participant_id\tpart\n30\ttrain\n31\ttrain\n")
    run("lists", cohort, "--out", path, "--table", tmp_path / "parts.tsv")
    make_shard_set(tmp_path / "small")
    assert run("check", path, tmp_path / "small") == EXIT_CONFIG_DIFFERS
    assert "none of its 2 subjects" in capsys.readouterr().err


def test_failures_have_their_exit_codes(cohort: Path, tmp_path: Path, capsys) -> None:
    assert run("make", tmp_path / "nowhere", "--out", tmp_path / "a.json") == EXIT_USAGE
    assert run("make", cohort, "--out", tmp_path / "a.json", "--stratify", "sex") == EXIT_USAGE
    assert run("make", cohort, "--out", tmp_path / "a.json", "--fractions", 0.5, 0.5, 0.5) == EXIT_USAGE
    assert run("folds", cohort, "--out", tmp_path / "a", "--k", 30) == EXIT_USAGE
    assert run("check", tmp_path / "a.json", "--group", "family") == EXIT_USAGE
    assert run("make") == EXIT_USAGE
    (tmp_path / "b.json").write_text("notes")
    assert run("make", cohort, "--out", tmp_path / "b.json") == EXIT_OUTPUT
    (cohort / "runs.tsv").write_text("")
    assert run("make", cohort, "--out", tmp_path / "a.json") == EXIT_VERIFICATION
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 8 and all(line.startswith("error: ") for line in errors)


def test_an_interruption_is_said(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shards.splits.publish_splits", interrupt)
    assert run("make", cohort, "--out", tmp_path / "a.json") == EXIT_INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted")


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    heavy = ["torch", "dask", "pandas", "nibabel", "numpy", "scipy", "shards.reader"]
    code = (
        "import sys\nfrom shards.split_cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', [name for name in {heavy} if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: a busy machine makes the clock slower, not the command
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "heavy: []" in said.stdout and "leave-site-out" in said.stdout
    assert min(seconds) < 0.5
