"""report.html: what it says, that it stands alone, and that nothing in it can run or break out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.failures import Failure
from ingest.report import ReportInput, render_report
from shards.format import RunEntry
from shards.reader import ShardSet

HOSTILE = 'a/<script>alert(1)</script>/"it\'s" & <!-- ]]> </title> ünï 日本 😀 {{ 7*7 }}_bold.nii.gz'
VOID = {"meta", "img", "input", "br"}
MakeReport = Callable[..., ReportInput]


class Page(HTMLParser):
    """The parts of a page that tests look at; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self._open.append((tag, values.get("id", "")))
            if "id" in values:
                assert values["id"] not in self.inside
                self.inside[values["id"]] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not any(tag in ("script", "style") for tag, _ in self._open):
            self.texts.append(data)
        for _, name in self._open:
            if name:
                self.inside[name].append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def unpacked(page: Page) -> dict[str, list[Any]]:
    """The columns of the table, as the page's script reads them."""
    columns = json.loads("".join(page.inside["runs-data"]))
    found: dict[str, list[Any]] = {}
    for column in columns:
        values = column.get("values", [])
        if "levels" in column:
            values = [column["levels"][place] for place in column["index"]]
        if "rest" in column:
            before = ""
            for shared, rest in zip(column["shared"], column["rest"], strict=True):
                before = before[:shared] + rest
                values.append(before)
        found[column["key"]] = values
    pairs = zip(found["source"], found["run"], strict=True)
    found["source"] = [text.replace("\1", run).replace("\2", run.split("_")[0]) for text, run in pairs]
    return found


def failure(number: int, **changes: str) -> Failure:
    values = {
        "stage": "data",
        "kind": "truncated",
        "reason": f"cut short in frame {number} of 20",
        "remedy": "copy the file again",
        "source": f"sub-{number}/x_bold.nii.gz",
    }
    return Failure(run_id=f"sub-{number}", signature=(), **{**values, **changes})


@pytest.fixture
def make_report(make_shard_set: Any, tmp_path: Path) -> MakeReport:
    """A written set of `count` ordinary runs and its report; `rows` changes some, `qc` adds figures."""

    def make(
        count: int = 12,
        rows: Mapping[int, Mapping[str, Any]] | None = None,
        qc: Mapping[int, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> ReportInput:
        rng = np.random.default_rng(3)
        folder = tmp_path / "set"
        make_shard_set(folder, frames=[30] * count)
        shard_set = ShardSet(folder)
        entries = []
        for k, entry in enumerate(shard_set.runs):
            own = {
                "tsnr_median": 50 + float(rng.normal()),
                "mean_fd_mm": 0.1 + 0.02 * float(rng.random()),
                "error_rms_rel": 0.018 + 1e-5 * float(rng.random()),
                "source": f"sub-{k:02d}/func/{entry.run_id}_bold.nii.gz",
            }
            entries.append(replace(entry, **{**own, **(rows or {}).get(k, {})}))
        known = {
            row.run_id: {
                "intensity_median": 1000 + float(rng.normal()),
                "num_constant_voxels": 0,
                "fd_over_half": 0.0,
                **(qc or {}).get(k, {}),
            }
            for k, row in enumerate(entries)
        }
        values: dict[str, Any] = {
            "manifest": shard_set.manifest,
            "rows": entries,
            "qc": known,
            "failures": [],
            "folder": folder,
            "command": "ingest-fmri --src a --out b",
            "methods_cleaning": "",
            "resources": {},
        }
        return ReportInput(**{**values, **changes})

    return make


def test_hostile_names_stay_text(make_report):
    report = make_report(
        rows={1: {"source": HOSTILE, "source_xxh3": "same"}, 2: {"source": HOSTILE + "2", "source_xxh3": "same"}},
        failures=[failure(1, source=HOSTILE, reason="<img src=x onerror=alert(1)>", remedy="'\"</p><b>")],
        command=f"ingest-fmri --src {HOSTILE}",
        methods_cleaning="</blockquote><script>alert(2)</script>",
    )
    page = Page(render_report(report))
    assert page.count("script") == 2
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(" ".join(HOSTILE.split())) >= 4  # command, failure, both twins
    assert unpacked(page)["source"][1] == HOSTILE


def test_names_that_are_not_unicode_do_not_stop_the_page(make_report):
    name = b"sub-\xff\x01.nii.gz".decode("utf-8", "surrogateescape")
    text = render_report(make_report(rows={0: {"source": name}}, failures=[failure(1, source=name)]))
    assert "sub-\\udcff" in text and text.encode("utf-8")


def test_the_page_loads_nothing(make_report):
    text = render_report(make_report(failures=[failure(1)]))
    page = Page(text)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"https?:|url\((?!#)|@import|//cdn", text)


def test_only_the_pages_own_script_may_run(make_report):
    text = render_report(make_report())
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " in text
    assert f"script-src 'sha256-{digest}'" in text


def test_every_figure_has_a_caption_and_a_text_for_those_who_cannot_see_it(make_report):
    text = render_report(make_report(rows={0: {"tsnr_median": 9.0}}))
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 5 + 12 + 1  # distributions (all runs are of one length), runs, mask
    for figure in figures:
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.DOTALL)
        assert caption and len(caption[1].split()) > 4
        drawn = re.findall(r"<svg [^>]*>|<img [^>]*>", figure)
        assert drawn and all(re.search(r'(alt|aria-label)="[^"]{10,}"', one) for one in drawn)


def test_every_link_within_the_page_leads_somewhere(make_report):
    page = Page(render_report(make_report(rows={0: {"tsnr_median": 9.0}})))
    targets = {values["id"] for _, values in page.tags if "id" in values}
    links = {values["href"][1:] for tag, values in page.tags if tag == "a"}
    assert links <= targets and "run-sub-00_task-rest" in links


def test_the_table_has_the_rows_numbers(make_report):
    report = make_report(rows={3: {"mean_fd_mm": float("nan")}}, qc={2: {"num_constant_voxels": 7}})
    table = unpacked(Page(render_report(report)))
    assert table["run"] == [row.run_id for row in report.rows]
    assert table["source"] == [row.source for row in report.rows]
    np.testing.assert_allclose(table["tsnr"], [row.tsnr_median for row in report.rows], atol=0.05)
    np.testing.assert_allclose(table["error"], [100 * row.error_rms_rel for row in report.rows], atol=0.005)
    assert table["fd"][3] is None and table["fd"][4] == pytest.approx(report.rows[4].mean_fd_mm, abs=5e-4)
    assert table["constant"][2] == 7 and table["frames"] == [30] * 12


def test_without_a_script_the_first_rows_are_there(make_report):
    report = make_report(count=30)
    text = render_report(report)
    body = re.search(r'<table id="runs">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert body and body[1].count("<tr>") == 25
    assert f">{report.rows[0].tsnr_median:.1f}</td>" in body[1] and report.rows[0].source in body[1]
    assert "first 25 of 30 runs" in Page(text).text


def test_headline_and_totals_are_sums_of_the_rows(make_report):
    report = make_report(failures=[failure(1), failure(2)])
    page = Page(render_report(report))
    assert "12 runs of 12 subjects stored, 2 failed" in page.text
    assert "12.0 minutes of signal" in page.text and "360 frames, TR 2 s" in page.text
    assert f"{report.manifest.num_voxels:,} voxels" in page.text


def test_a_run_that_stands_out_is_named_first_with_its_numbers(make_report):
    report = make_report(
        rows={4: {"tsnr_median": 8.21}, 7: {"mean_fd_mm": 0.913}},
        qc={7: {"fd_over_half": 0.61}, 9: {"num_constant_voxels": 40}, 10: {"intensity_median": 12000.0}},
    )
    text = render_report(report)
    first = re.search(r'<ol class="far">(.*?)</ol>', text, re.DOTALL)
    assert first and first[1].count("<li>") == 4
    said = Page(first[1]).text
    median = np.median([row.tsnr_median for row in report.rows])
    assert re.search(rf"sub-04_task-rest tSNR 8\.2, the set's median is {median:.1f} \(robust z −\d+\.\d\)", said)
    assert "mean FD 0.913 mm with 61 % of the frames above 0.5 mm" in said
    assert (
        f"40 of {report.manifest.num_voxels} voxels" in said and "median intensity 12,000, 12 times the set's" in said
    )


def test_an_even_set_has_no_run_that_stands_out(make_report):
    text = render_report(make_report())
    assert "No run lies farther than 3.5 robust SDs" in text and '<ol class="far">' not in text


def test_without_confounds_the_page_says_so_and_draws_no_motion(make_report):
    nothing = {k: {"mean_fd_mm": float("nan")} for k in range(12)}
    report = make_report(rows=nothing, qc={k: {"fd_over_half": None} for k in range(12)})
    page = Page(render_report(report))
    assert page.text.count("Motion is not known: no run came with a confounds table") == 3
    assert "mean FD (mm)" not in page.text and "fd" not in unpacked(page)


def test_old_records_without_quality_figures(make_report):
    page = Page(render_report(replace(make_report(), qc={})))
    assert "Intensity. Not recorded when these runs were ingested." in page.text
    assert not {"intensity", "constant", "moved"} & unpacked(page).keys()


def test_a_single_run(make_report):
    page = Page(render_report(make_report(count=1)))
    assert "1 run of 1 subject stored, none failed" in page.text
    assert "With fewer than 8 runs none can be told to stand out" in page.text
    assert page.count("figure") == 2  # the run and the mask: no distribution of one value


def test_when_all_failed_the_page_shows_the_failures(tmp_path):
    report = ReportInput(
        manifest=None,
        rows=[],
        qc={},
        failures=[failure(k) for k in range(3)],
        folder=tmp_path,
        command="ingest-fmri",
        methods_cleaning="",
        resources={},
    )
    page = Page(render_report(report))
    assert "No run was ingested: all 3 that were found failed" in page.text
    assert "3 at stage data (truncated) : cut short in frame 0 of 20" in page.text
    assert "What to do: copy the file again." in page.text
    assert page.count("figure") == 0 and page.count("script") == 0


def test_many_failures_alike_are_one_group_with_some_of_their_files(make_report):
    failures = [failure(k) for k in range(500)] + [failure(1000, stage="header", kind="not-4d", reason="3D")]
    page = Page(render_report(make_report(failures=failures)))
    assert "500 at stage data (truncated)" in page.text and "1 at stage header (not-4d)" in page.text
    assert "and 400 more in failures.tsv" in page.text


def test_the_same_content_under_two_subjects_is_said_first(make_report):
    page = Page(render_report(make_report(rows={1: {"source_xxh3": "same"}, 5: {"source_xxh3": "same"}})))
    assert "1 file content occurs under more than one subject" in page.text
    assert "different subjects : sub-01/func/sub-01_task-rest_bold.nii.gz , sub-05/func/" in page.text


def test_mixed_repetition_times_are_said(make_report):
    page = Page(render_report(make_report(rows={0: {"tr_s": 0.72}})))
    assert "The repetition time differs: 2 s (11 runs), 0.72 s (1 run)." in page.text


def test_methods_name_what_was_done_and_cite_what_was_used(make_report):
    report = make_report(methods_cleaning="Linear trends were removed.")
    software = {"boldstream": "0.1.0", "nilearn": "0.14.1", "nibabel": "5.4.2", "zarr": "3.1.6", "numpy": "2.4.6"}
    manifest = replace(report.manifest, software=software)
    plain = "".join(Page(render_report(replace(report, manifest=manifest))).inside["methods-text"])
    assert "12 runs of 12 subjects, 360 frames" in plain and manifest.set_hash in plain
    assert "7 × 8 × 6 voxels of 4 × 4 × 4 mm" in plain and "Linear trends were removed." in plain
    assert "8-bit integers about its temporal mean, in steps of 1/16 of its temporal SD" in plain
    assert f"was {100 * np.median([row.error_rms_rel for row in report.rows]):.2f} % of the temporal SD" in plain
    assert "NiBabel 5.4.2" in plain and "Miles et al., 2020" in plain and "nilearn" not in plain
    cleaned = replace(manifest, cleaning={"clean": "simple"})
    text = render_report(replace(report, manifest=cleaned))
    assert "nilearn 0.14.1 (Abraham et al., 2014" in text and "The rms difference to the cleaned signal was" in text
    assert "The runs were cleaned: tSNR, quantisation error and pictures" in text


@pytest.mark.parametrize(
    ("dtype", "words"), [("int16", "1/1024"), ("float16", "half-precision"), ("float32", "32-bit")]
)
def test_methods_follow_the_stored_type(make_shard_set, tmp_path, dtype, words):
    folder = tmp_path / "typed"
    make_shard_set(folder, dtype=dtype)
    shard_set = ShardSet(folder)
    report = ReportInput(
        manifest=shard_set.manifest,
        rows=shard_set.runs,
        qc={},
        failures=[],
        folder=folder,
        command="",
        methods_cleaning="",
        resources={},
    )
    text = render_report(report)
    assert words in text and ("every run is stored without loss" in text) == (dtype == "float32")


def test_memory_and_rate_of_the_workers_are_told(make_report):
    resources = {
        "peak_rss_bytes": 1_230_000_000,
        "seconds": 10.0,
        "num_bytes_in": 5_000_000_000,
        "workers": "4 workers in slurm jobs",
    }
    text = render_report(make_report(resources=resources))
    assert "held 1.23 GB at its peak; 5 GB read in 10 s by 4 workers in slurm jobs (500 MB/s)" in text


def test_a_damaged_shard_costs_its_pictures_only(make_report):
    report = make_report()
    shard = report.folder / report.rows[0].shard
    data = bytearray(shard.read_bytes())
    data[report.rows[0].bold_offset + 10] ^= 1
    shard.write_bytes(data)
    page = Page(render_report(report))
    assert f"Not drawn: {shard} (sub-00_task-rest)" in page.text
    assert sum(values.get("id", "").startswith("run-") for _, values in page.tags) == 11


def test_shards_that_are_gone_are_said(make_report, tmp_path):
    page = Page(render_report(make_report(folder=tmp_path / "elsewhere")))
    assert "elsewhere: no such folder" in page.text and len(unpacked(page)["run"]) == 12


def test_the_page_is_the_same_whatever_the_order_of_the_rows(make_report):
    report = make_report(failures=[failure(2), failure(1)], rows={3: {"tsnr_median": 5.0}})
    other = replace(report, rows=report.rows[::-1], failures=report.failures[::-1])
    assert render_report(report) == render_report(other)


def test_importing_the_report_draws_in_nothing_heavy():
    heavy = ("matplotlib", "scipy.ndimage", "jinja2", "PIL", "torch")
    code = f"import sys, ingest.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def many(rows: list[RunEntry], count: int) -> list[RunEntry]:
    """As many runs of a large study, with names as long as theirs."""
    rng = np.random.default_rng(5)
    found = []
    for k in range(count):
        subject, session = f"NDARINV{k:08d}", ("baselineYear1Arm1", "2YearFollowUpYArm1")[k % 2]
        run = f"sub-{subject}_ses-{session}_task-rest_run-0{1 + k % 4}"
        found.append(
            replace(
                rows[k % len(rows)],
                run_id=run,
                subject=subject,
                session=session,
                source=f"derivatives/fmriprep/sub-{subject}/ses-{session}/func/{run}_desc-preproc_bold.nii.gz",
                source_xxh3=f"{k:032x}",
                tsnr_median=float(rng.lognormal(4, 0.3)),
                mean_fd_mm=float(rng.lognormal(-1.8, 0.6)),
                error_rms_rel=float(0.018 + rng.exponential(0.0004)),
            )
        )
    return found


def test_a_run_costs_few_bytes_of_the_page(make_report):
    report = make_report()
    small, large = (len(render_report(replace(report, rows=many(report.rows, n)))) for n in (1000, 3000))
    assert (large - small) / 2000 < 300  # 40,000 runs in 12 MB


@pytest.mark.slow
def test_forty_thousand_runs(make_report):
    report = make_report(failures=[failure(k) for k in range(2000)])
    rows = many(report.rows, 40_000)
    qc = {row.run_id: {"intensity_median": 1000.0 + k % 97, "num_constant_voxels": k % 5} for k, row in enumerate(rows)}
    started = time.perf_counter()
    text = render_report(replace(report, rows=rows, qc=qc))
    assert time.perf_counter() - started < 60
    assert len(text.encode()) < 15e6
    assert unpacked(Page(text))["source"] == [row.source for row in sorted(rows, key=lambda row: row.run_id)]
