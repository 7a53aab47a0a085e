"""Write a simulated cohort: what is missing in the folder, in any number of processes, each file whole or absent."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ingest.simulate.anatomy import Anatomy, load_anatomy
from ingest.simulate.bids import (
    ATLAS,
    ATLAS_TABLE,
    DESCRIPTION,
    MARKER,
    PARTICIPANTS,
    PARTICIPANTS_JSON,
    ROOT_FILES,
    SIMULATION_VERSION,
    UNFINISHED,
    atlas_tsv,
    bold_json,
    bold_json_path,
    bold_path,
    confounds_json_path,
    confounds_path,
    dataset_description,
    mask_path,
    participants_json,
    participants_tsv,
    simulation_json,
    subject_files,
)
from ingest.simulate.cohort import Subject, make_cohort
from ingest.simulate.config import ADDED_LATER, SimulateConfig
from ingest.simulate.confounds import confound_columns, confounds_json, confounds_tsv, draw_motion
from ingest.simulate.regions import Population, make_population, region_series
from ingest.simulate.volumes import FrameSignals, paint, write_bold, write_volume
from shards.errors import BoldstreamError, ConfigDiffersError, OutputError
from shards.writer import TEMPORARY, atomic_file, write_atomic

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def simulate(config: SimulateConfig, progress: Progress | None = None) -> int:
    """Bring `config.out` to the complete simulation.

    Files are written under a temporary name and renamed; `simulation.json` comes last and says that the
    cohort is complete. An interrupted simulation is continued.

    Parameters
    ----------
    config : SimulateConfig
        What to simulate, and where.
    progress : callable, optional
        Called as `progress(done, total)` after each subject.

    Returns
    -------
    int
        Number of subjects written; 0 when the folder was complete.

    Raises
    ------
    OutputError
        The folder holds something else, or cannot be written.
    ConfigDiffersError
        The folder holds a simulation of another configuration.
    UsageError
        The grid is too coarse for the parcels.
    """
    cohort = make_cohort(config)
    found = _examine(config, cohort)
    missing = [subject for subject in cohort if not found.issuperset(subject_files(subject.subject))]
    if not missing and found.issuperset((*ROOT_FILES, MARKER)):
        return 0
    with threadpool_limits(1):
        anatomy = load_anatomy(config)
        population = make_population(anatomy.centres_mm_R3)
        record = simulation_json(config, population)
        _make_folder(config.out)
        (config.out / MARKER).unlink(missing_ok=True)
        write_atomic(config.out / UNFINISHED, record)
        _write_root(config, cohort, anatomy, population)
        _write_subjects(config, missing, anatomy, population, progress)
    write_atomic(config.out / MARKER, record)
    (config.out / UNFINISHED).unlink()
    return len(missing)


def _examine(config: SimulateConfig, cohort: tuple[Subject, ...]) -> set[str]:
    """Return the files of this simulation that are there; clear what a killed process left; refuse all else."""
    out = config.out
    if not out.exists():
        return set()
    if not out.is_dir():
        raise OutputError(f"{out} is a file; --out wants a folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return set()
    record = next((out / name for name in (MARKER, UNFINISHED) if name in found), None)
    leftovers = {name for name in found if Path(name).name.startswith(TEMPORARY)}
    if record is None and found != leftovers:
        raise OutputError(f"{out} holds files that are no simulation (such as {min(found)}); choose another folder")
    if record is not None:
        _compare(record, config)
    ours = {MARKER, UNFINISHED, *ROOT_FILES}
    ours.update(name for subject in cohort for name in subject_files(subject.subject))
    if foreign := found - leftovers - ours:
        raise OutputError(
            f"{out} holds {min(foreign)}, which is no part of the simulation; move it or choose another folder"
        )
    for name in leftovers:
        (out / name).unlink()
    return found - leftovers


def _compare(record: Path, config: SimulateConfig) -> None:
    """Refuse a folder that was made with other flags, field by field."""
    recorded = _read_record(record)
    made_by = recorded["simulation_version"]
    if made_by != SIMULATION_VERSION:
        raise ConfigDiffersError(
            f"{record}: found version {made_by} of the simulation, now {SIMULATION_VERSION}; choose another folder"
        )
    wanted = config.identity()
    was = ADDED_LATER | recorded["config"]
    differences = [
        f"{name}: found {was.get(name)}, now {wanted.get(name)}"
        for name in sorted(wanted.keys() | was.keys())
        if was.get(name) != wanted.get(name)
    ]
    if differences:
        raise ConfigDiffersError(
            f"{record}: {'; '.join(differences)}; choose another folder or the flags it was made with"
        )


def _read_record(record: Path) -> dict[str, Any]:
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"{record} is unreadable ({error}); delete the folder or choose another one") from error
    if not isinstance(content, dict) or not {"config", "simulation_version"} <= content.keys():
        raise OutputError(f"{record} is no record of simulate-fmri; choose another folder")
    return content


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; choose a folder that can be written") from error


def _write_root(config: SimulateConfig, cohort: tuple[Subject, ...], anatomy: Anatomy, population: Population) -> None:
    write_atomic(config.out / DESCRIPTION, dataset_description())
    write_atomic(config.out / PARTICIPANTS, participants_tsv(config, cohort))
    write_atomic(config.out / PARTICIPANTS_JSON, participants_json())
    write_atomic(config.out / ATLAS_TABLE, atlas_tsv(anatomy, population))
    labels = np.zeros(anatomy.mask.shape, dtype="<i2")
    labels[anatomy.mask] = anatomy.labels_V + 1
    with atomic_file(config.out / ATLAS) as file:
        write_volume(file, anatomy, labels)


def _write_subjects(
    config: SimulateConfig,
    subjects: list[Subject],
    anatomy: Anatomy,
    population: Population,
    progress: Progress | None,
) -> None:
    """Write all subjects, here or in `config.workers` processes."""
    report = progress or (lambda done, total: None)
    if min(config.workers, len(subjects)) <= 1:
        for done, subject in enumerate(subjects, start=1):
            write_subject(config, anatomy, population, subject)
            report(done, len(subjects))
        return
    pool = ProcessPoolExecutor(
        min(config.workers, len(subjects)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(config, anatomy, population),
    )
    try:
        futures = [pool.submit(_work, subject) for subject in subjects]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            report(done, len(subjects))
    except BrokenProcessPool as error:
        raise BoldstreamError(
            f"{config.out}: a worker process died, perhaps for want of memory; "
            f"run the same command with fewer --workers (now {config.workers}) to continue"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_shared: tuple[SimulateConfig, Anatomy, Population]


def _start_worker(config: SimulateConfig, anatomy: Anatomy, population: Population) -> None:
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which lets us finish
    threadpool_limits(1)
    _shared = (config, anatomy, population)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when the main process is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(subject: Subject) -> None:
    write_subject(*_shared, subject)


def write_subject(config: SimulateConfig, anatomy: Anatomy, population: Population, subject: Subject) -> None:
    """Write the files of one subject; they depend on nothing but the arguments.

    Raises
    ------
    OutputError
        When the folder cannot be written.
    """
    label = subject.subject
    bold = config.out / bold_path(label)
    _make_folder(bold.parent)
    motion = draw_motion(config, subject)
    series_TR = region_series(config, population, subject)
    signals = FrameSignals(anatomy)
    with atomic_file(bold) as file:
        blocks = signals.watch(paint(config, anatomy, subject, series_TR, motion))
        write_bold(file, anatomy, blocks, config.frames, config.tr_s)
    columns, components = confound_columns(config, motion, signals.columns(), signals.tissue_TV())
    write_atomic(config.out / confounds_path(label), confounds_tsv(columns))
    write_atomic(config.out / confounds_json_path(label), confounds_json(components))
    with atomic_file(config.out / mask_path(label)) as file:
        write_volume(file, anatomy, anatomy.mask.astype(np.uint8))
    write_atomic(config.out / bold_json_path(label), bold_json(config))
    logger.debug("wrote sub-%s", label)
