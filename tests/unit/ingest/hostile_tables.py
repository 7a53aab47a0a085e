"""Tables of runs, participants and confounds, and JSON sidecars, that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hostile_case import BAD, STORED, ZIPPED, Case, Write, beside, fails, link_to, link_to_pipe, refuses, takes

HEADER = "subject\tbold\n"
GOOD_ROWS = "a\ta-good.nii.gz\nz\tz-good.nii\n"
NO_TR = ("tr", "no-repetition-time")
BAD_SIDECAR = ("tr", "bad-sidecar")


def table(data: bytes | str) -> Write:
    """A table of runs, --src; the bad run lies in the folder too."""
    return beside("runs.tsv", data)


def rows(*lines: str) -> str:
    """A table of the good runs and of these lines."""
    return HEADER + GOOD_ROWS + "".join(line + "\n" for line in lines)


def participants(data: bytes | str) -> Write:
    return beside("participants.tsv", data)


def confounds(data: bytes | str | Write) -> Write:
    return beside("bad_confounds.tsv", data)


def sidecar(data: bytes | str | Write) -> Write:
    return beside("bad.json", data)


def column(cells: list[str]) -> str:
    return "framewise_displacement\n" + "".join(cell + "\n" for cell in cells)


SUBJECTS = "participant_id\tage\nsub-agood\t20\nsub-bad\t21\nsub-zgood\t22\n"
TWENTY = ["n/a", *["0.1"] * 19]
MOTION = "trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z\n" + 10 * (6 * "inf\t" + "\n" + 6 * "-1e308\t" + "\n").replace(
    "\t\n", "\n"
)
WIDE = "\t".join(f"c{k}" for k in range(10_000)) + 20 * ("\n0" + 9_999 * "\t0")
DEEP = 100_000


def of_table(name: str, data: bytes | str, says: str, exit_code: int = 2) -> Case:
    return refuses(f"table: {name}", table(data), exit_code, says, src="runs.tsv")


def in_table(name: str, line: str, stage: str, kind: str, words: str, *, source: str) -> Case:
    return fails(f"table: {name}", table(rows(line)), stage, kind, words, source=source, src="runs.tsv")


def good_table(name: str, data: bytes | str) -> Case:
    return takes(f"table: {name}", table(data), STORED, src="runs.tsv")


def write_absolute(folder: Path) -> None:
    table(rows(f"bad\t{folder / BAD}"))(folder)


def write_backwards(folder: Path) -> None:
    table(rows(f"bad\t../{folder.name}/./{BAD}"))(folder)


def write_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    table(rows("bad\tpipe"))(folder)


TABLES = [
    good_table("byte order mark", "\ufeff" + rows(f"bad\t{BAD}")),
    good_table("line ends of Windows", rows(f"bad\t{BAD}").replace("\n", "\r\n")),
    good_table("line ends of the first Macintosh", rows(f"bad\t{BAD}").replace("\n", "\r")),
    good_table("no last line end, blank lines", f"{HEADER}\n{GOOD_ROWS}\t\n\nbad\t{BAD}"),
    of_table("UTF-16", rows(f"bad\t{BAD}").encode("utf-16"), "save it as tab-separated UTF-8"),
    of_table("Latin-1", "subject\tbold\nJos\xe9\tx.nii\n".encode("latin-1"), "save it as tab-separated UTF-8"),
    of_table("empty", "", "columns are none"),
    of_table("header only", HEADER, "no rows below the header", 3),
    of_table("no column bold", "subject\tfile\na\tb.nii\n", "required are subject, bold"),
    of_table("a column twice", "subject\tbold\tbold\na\tb.nii\tc.nii\n", "each once"),
    of_table("an unknown column", "subject\tbold\tcolour\na\tb.nii\tred\n", "allowed"),
    of_table("commas for tabs", rows(f"bad\t{BAD}").replace("\t", ","), "separated by tabs"),
    of_table("blanks for tabs", rows(f"bad\t{BAD}").replace("\t", "    "), "separated by tabs"),
    of_table("a cell too many", rows(f"bad\t{BAD}\tx"), "line 4: 3 cells"),
    of_table("a cell too few", rows("bad"), "line 4: 1 cells"),
    of_table("a run twice", rows(f"a\t{BAD}"), "would both be run sub-a"),
    of_table("no file", rows("bad\tn/a"), "no bold file"),
    of_table("no subject", rows(f"\t{BAD}"), "subject is ''"),
    of_table("a path as subject", rows(f"../../etc\t{BAD}"), "allowed are letters"),
    of_table("subject of 300 letters", rows(f"{300 * 'x'}\t{BAD}"), "at most 90"),
    good_table("quotes around cells", rows(f'"bad"\t"{BAD}"')),
    of_table("a quote that is never closed", rows(f'bad\t"{BAD}', "next\tnext.nii"), "runs.tsv, line"),
    of_table("a cell of 1 MB", rows(f"bad\t{10**6 * 'x'}"), "line 4"),
    of_table("a nul byte in a path", rows("bad\tbad\0.nii.gz"), "line 4"),
    of_table("tr_s in words", f"subject\tbold\ttr_s\nbad\t{BAD}\t2 s\n", "tr_s is '2 s'"),
    of_table("tr_s nan", f"subject\tbold\ttr_s\nbad\t{BAD}\tnan\n", "tr_s is 'nan'"),
    of_table("tr_s negative", f"subject\tbold\ttr_s\nbad\t{BAD}\t-2\n", "tr_s is '-2'"),
    fails(
        "table: tr_s in ms",
        table(f"subject\tbold\ttr_s\na\ta-good.nii.gz\t\nz\tz-good.nii\t2\nbad\t{BAD}\t2000\n"),
        *NO_TR,
        "2000 s",
        src="runs.tsv",
    ),
    in_table("no such file", "bad\tnowhere.nii", "open", "missing", "No such file", source="nowhere.nii"),
    in_table(
        "an address of the web", "bad\thttps://a.org/b.nii", "open", "missing", "No such", source="https:/a.org/b.nii"
    ),
    in_table("the folder itself", "bad\t.", "open", "unreadable", "", source="."),
    in_table("a path below a file", "bad\tz-good.nii/x", "open", "unreadable", "", source="z-good.nii/x"),
    in_table("the table itself", "bad\truns.tsv", "header", "not-nifti", "", source="runs.tsv"),
    in_table("a name of 300 bytes", f"bad\t{300 * 'x'}", "open", "unreadable", "too long", source=300 * "x"),
    fails("table: a named pipe", write_pipe, "open", "unreadable", "", source="pipe", src="runs.tsv"),
    takes("table: an absolute path", write_absolute, STORED, src="runs.tsv"),
    takes("table: a path that goes up and down", write_backwards, STORED, src="runs.tsv"),
]

PARTICIPANTS = [
    takes("participants: sound", participants(SUBJECTS), STORED, says="participants from"),
    takes("participants: byte order mark", participants("\ufeff" + SUBJECTS), STORED),
    takes("participants: line ends of Windows", participants(SUBJECTS.replace("\n", "\r\n")), STORED),
    takes(
        "participants: header only", participants("participant_id\tage\n"), STORED, says="3 subjects have no row in it"
    ),
    takes("participants: quotes", participants(SUBJECTS.replace("20", '"20')), STORED),
    takes("participants: a subject is missing", participants(SUBJECTS[:-13]), STORED, says="no row in it: zgood"),
    takes(
        "participants: a link that leads nowhere",
        beside("participants.tsv", link_to("gone")),
        STORED,
        says="participants.tsv",
    ),
    refuses("participants: empty", participants(""), 2, "no participant_id column"),
    refuses(
        "participants: no participant_id",
        participants(SUBJECTS.replace("participant_id", "id")),
        2,
        "no participant_id",
    ),
    refuses("participants: commas", participants(SUBJECTS.replace("\t", ",")), 2, "no participant_id column"),
    refuses("participants: UTF-16", participants(SUBJECTS.encode("utf-16")), 2, "not UTF-8"),
    refuses("participants: Latin-1", participants(SUBJECTS.encode() + b"sub-Jos\xe9\t3\n"), 2, "not UTF-8"),
    refuses("participants: a subject twice", participants(SUBJECTS + "sub-bad\t66\n"), 2, "sub-bad"),
    refuses("participants: a column twice", participants(SUBJECTS.replace("age", "participant_id")), 2, "twice"),
    refuses("participants: a cell too many", participants(SUBJECTS + "sub-04\t1\t2\n"), 2, "line 5"),
    refuses("participants: a cell too few", participants(SUBJECTS + "sub-04\n"), 2, "line 5"),
]

CONFOUNDS = [
    takes("confounds: sound", confounds(column(TWENTY)), STORED),
    takes("confounds: words for numbers", confounds(column(["words"] * 20)), STORED),
    takes("confounds: infinite", confounds(column(["inf", "-inf"] * 10)), STORED),
    takes("confounds: 1e308", confounds(column(["1e308"] * 20)), STORED),
    takes("confounds: byte order mark, Windows", confounds("\ufeff" + column(TWENTY).replace("\n", "\r\n")), STORED),
    takes("confounds: motion beyond all", confounds(MOTION), STORED),
    takes("confounds: 10,000 columns", confounds(WIDE), STORED),
    *(
        fails(f"confounds: {name}", confounds(data), "confounds", kind, words)
        for name, data, kind, words in [
            ("a row too few", column(TWENTY[1:]), "other-length", "19 rows, the run 20 frames"),
            ("a row too many", column([*TWENTY, "0"]), "other-length", "21 rows, the run 20 frames"),
            ("no header", "".join(f"{k}\t{k + 0.5}\n" for k in range(20)), "other-length", "19 rows"),
            ("empty", "", "other-length", "0 rows"),
            ("header only", column([]), "other-length", "0 rows"),
            ("a column twice", "a\ta\n" + 20 * "0\t0\n", "malformed", "twice"),
            ("ragged", "a\tb\n" + 19 * "0\t0\n" + "0\n", "malformed", "row 21 has 1 cells"),
            ("UTF-16", column(TWENTY).encode("utf-16"), "unreadable", "cannot be read"),
            ("Latin-1", column(["\xe9"] * 20).encode("latin-1"), "unreadable", "cannot be read"),
            ("an image", ZIPPED, "unreadable", "cannot be read"),
            ("a link that leads nowhere", link_to("gone"), "unreadable", "cannot be read"),
            ("a link to itself", link_to("bad_confounds.tsv"), "unreadable", "cannot be read"),
            ("a link to a folder", link_to("."), "unreadable", "cannot be read"),
            ("a link to endless zeros", link_to("/dev/zero"), "unreadable", "bad_confounds.tsv"),
            ("a link to a named pipe", link_to_pipe, "unreadable", "bad_confounds.tsv"),
        ]
    ),
    fails(
        "confounds: words in a motion file",
        beside("bad.par", "a b c d e f\n" * 20),
        "confounds",
        "malformed",
        "bad.par",
    ),
    fails(
        "confounds: five numbers in a motion file",
        beside("bad.par", "0 0 0 0 0\n" * 20),
        "confounds",
        "malformed",
        "bad.par",
    ),
]

SIDECARS = [
    takes("sidecar: sound", sidecar('{"RepetitionTime": 1.5}'), STORED),
    takes("sidecar: no repetition time", sidecar("{}"), STORED),
    takes("sidecar: null", sidecar('{"RepetitionTime": null}'), STORED),
    takes("sidecar: a number in quotes", sidecar('{"RepetitionTime": "2.0"}'), STORED),
    takes("sidecar: byte order mark", sidecar('\ufeff{"RepetitionTime": 2}'), STORED),
    takes("sidecar: 2 MB of other keys", sidecar(json.dumps({f"k{k}": 40 * "x" for k in range(40_000)})), STORED),
    *(
        fails(f"sidecar: {name}", sidecar(data), *BAD_SIDECAR, "bad.json")
        for name, data in {
            "not JSON": "RepetitionTime = 2",
            "cut": '{"RepetitionTime": 2',
            "empty": "",
            "a list": "[2]",
            "a number": "2",
            "a list for a number": '{"RepetitionTime": [2, 2]}',
            "words": '{"RepetitionTime": "2 seconds"}',
            "yes": '{"RepetitionTime": true}',
            "a number of 400 digits": '{"RepetitionTime": 1' + 400 * "0" + "}",
            "a number of 10,000 digits": '{"RepetitionTime": 1' + 10_000 * "0" + "}",
            "lists in lists": DEEP * "[" + DEEP * "]",
            "objects in objects": DEEP * '{"a":' + "1" + DEEP * "}",
            "UTF-16": '{"RepetitionTime": 2}'.encode("utf-16"),
            "Latin-1": '{"Institution": "\xe9"}'.encode("latin-1"),
            "an image": ZIPPED,
            "a link that leads nowhere": link_to("gone"),
            "a link to a folder": link_to("."),
            "a link to endless zeros": link_to("/dev/zero"),
            "a link to a named pipe": link_to_pipe,
        }.items()
    ),
    *(
        fails(f"sidecar: repetition time {value}", sidecar(f'{{"RepetitionTime": {value}}}'), *NO_TR, "repetition time")
        for value in ("0", "-2", "NaN", "Infinity", "2000", "1e999", "0.002")
    ),
]

CASES: list[Case] = [*TABLES, *PARTICIPANTS, *CONFOUNDS, *SIDECARS]
