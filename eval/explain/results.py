"""What the parts of the stage `explain` amount to: maps of the group, checks, files, and the typed result.

Shapes: S subject, W window, K output, V voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, to_nifti, unpacked
from eval.context import Context
from eval.explain.attention import Attention, add_up, attention_matters
from eval.explain.explanation import (
    GROUP,
    IMPORTANCE,
    MAPS,
    Explained,
    Explanation,
    Randomised,
    Z,
    class_file,
    subjects_table,
)
from eval.explain.groups import (
    against_shuffles,
    group_map,
    half_agreement,
    label_weights,
    margins,
    rank_correlation,
)
from eval.explain.smoothing import smoothed
from eval.scoring.metrics import Floats, Kind

OURS = "ours"
Arrays = Mapping[str, npt.NDArray[Any]]


def results(
    context: Context, chosen: Sequence[str], found: Mapping[str, Arrays], twins: Mapping[str, tuple[str, int]]
) -> tuple[dict[str, bytes | str], dict[str, Any]]:
    """Files and facts of the stage.

    Parameters
    ----------
    context : Context
        For the target and the grid.
    chosen : sequence of str
        Subjects, sorted.
    found : mapping
        Arrays of each part, '<model>_<subject>'.
    twins : mapping
        Name of each model with shuffled weights to what is shuffled in it and its number.
    """
    kind, seed = context.target.kind, context.config.seed
    shard_set = context.shard_set
    ours = [found[f"{OURS}_{subject}"] for subject in chosen]
    y_S = np.array([context.values[subject] for subject in chosen])
    maps_SKV = _stacked(ours, "signed_KV")
    margin_SK = margins(y_S, kind, maps_SKV.shape[1])
    smooth_SKV = smoothed(maps_SKV, shard_set.mask, shard_set.grid)
    chance = against_shuffles(smooth_SKV, y_S, kind, seed=seed)
    arrays = {
        "maps_SKV": maps_SKV.astype(np.float32),
        "group_V": group_map(maps_SKV, label_weights(y_S, kind, maps_SKV.shape[1])),
        "z_V": chance.z_V,
        "p_V": chance.p_V,
        "importance_V": _balanced(_stacked(ours, "squared_V"), y_S, kind),
        "background_V": np.mean([each["background_V"] for each in ours], axis=0),
        **_attention_arrays(ours),
    }
    own_SV = np.einsum("sk,skv->sv", margin_SK, maps_SKV)
    for number in range(len(context.target.levels)):
        if (y_S == number).any():
            arrays[f"class_{number}"] = own_SV[y_S == number].mean(0)
    explained = _explained(chosen, y_S, ours, margin_SK, kind)
    facts = {
        "subjects": [asdict(each) for each in explained],
        "threshold": chance.threshold,
        "completeness": completeness(ours),
        "halves": half_agreement(smooth_SKV, y_S, kind, seed=seed).tolist(),
        "randomised": [
            asdict(_compare(context, level, [found[f"{key}_{subject}"] for subject in chosen], y_S, arrays))
            for key, (level, _) in twins.items()
        ],
        "attention_matters": attention_matters(context.model),
        "tr_s": sorted({float(tr_s) for each in ours for tr_s in each["tr_s"]}),
    }
    return _files(context, arrays, explained), facts


def completeness(parts: Sequence[Arrays]) -> list[float]:
    """Median and largest gap of the windows between attributed and actual change, as shares of its mean size."""
    change = np.concatenate([part["change_WK"].ravel() for part in parts])
    gap = np.abs(np.concatenate([part["attributed_WK"].ravel() for part in parts]) - change)
    size = max(float(np.abs(change).mean()), 1e-12)
    return [float(np.median(gap)) / size, float(gap.max()) / size]


def _files(context: Context, arrays: Arrays, explained: Sequence[Explained]) -> dict[str, bytes | str]:
    mask, grid = context.shard_set.mask, context.shard_set.grid
    values = {GROUP: arrays["group_V"], Z: arrays["z_V"], IMPORTANCE: arrays["importance_V"]}
    for number, level in enumerate(context.target.levels):
        if f"class_{number}" in arrays:
            values[class_file(level, number)] = arrays[f"class_{number}"]
    files: dict[str, bytes | str] = {name: to_nifti(each, mask, grid) for name, each in values.items()}
    files[MAPS] = packed(arrays)
    files["subjects.tsv"] = subjects_table(explained, context.target)
    return files


def _balanced(maps_SV: Floats, y_S: Floats, kind: Kind) -> Floats:
    """Mean over classes of means over subjects; over subjects, for a measure."""
    if kind == "regression":
        return np.asarray(maps_SV.mean(0))
    return np.asarray(np.mean([maps_SV[y_S == level].mean(0) for level in np.unique(y_S)], axis=0))


def _compare(context: Context, level: str, theirs: Sequence[Arrays], y_S: Floats, arrays: Arrays) -> Randomised:
    """Rank correlations, after smoothing, of a model's maps with ours."""
    kind, maps_SKV = context.target.kind, _stacked(theirs, "signed_KV")
    maps_V = [
        group_map(maps_SKV, label_weights(y_S, kind, maps_SKV.shape[1])),
        arrays["group_V"],
        _balanced(_stacked(theirs, "squared_V"), y_S, kind),
        arrays["importance_V"],
    ]
    group_V, our_group_V, importance_V, our_importance_V = smoothed(
        np.stack(maps_V), context.shard_set.mask, context.shard_set.grid
    )
    return Randomised(
        level=level,
        group=rank_correlation(group_V, our_group_V),
        importance=rank_correlation(importance_V, our_importance_V),
    )


def _stacked(parts: Sequence[Arrays], name: str) -> Floats:
    return np.stack([part[name] for part in parts]).astype(np.float64)


def _explained(
    chosen: Sequence[str], y_S: Floats, parts: Sequence[Arrays], margin_SK: Floats, kind: str
) -> list[Explained]:
    rows = []
    for subject, y_true, part, margin_K in zip(chosen, y_S.tolist(), parts, margin_SK, strict=True):
        output_K = part["output_WK"].mean(0)
        right = None if kind == "regression" else bool(output_K @ margin_K > 0)
        if kind == "multiclass":
            right = bool(output_K.argmax() == int(y_true))
        rows.append(
            Explained(
                subject=subject,
                y_true=y_true,
                margin=float(output_K @ margin_K),
                change=float(part["change_WK"].mean(0) @ margin_K),
                attributed=float(part["attributed_WK"].mean(0) @ margin_K),
                correct=right,
            )
        )
    return rows


def _attention_arrays(parts: Sequence[Arrays]) -> Arrays:
    total = add_up([_attention(part) for part in parts])
    return {f"attention_{name}": np.asarray(value) for name, value in asdict(total).items()}


def _attention(arrays: Arrays) -> Attention:
    return Attention(
        weight_NHG=arrays["attention_weight_NHG"],
        count_G=arrays["attention_count_G"],
        cls_NH=arrays["attention_cls_NH"],
        num_queries=float(arrays["attention_num_queries"]),
    )


def read_explanation(
    context: Context, facts: Mapping[str, Any], *, folder: Path, files: tuple[str, ...], options: Mapping[str, int]
) -> Explanation:
    """The result of a stage that is done, from its facts and its files."""
    target, tr_s = context.target, facts["tr_s"]
    arrays = unpacked(folder / MAPS)
    classes = {level: arrays.get(f"class_{k}") for k, level in enumerate(target.levels)}
    return Explanation(
        target=target,
        subset=context.config.subset,
        subjects=tuple(Explained(**each) for each in facts["subjects"]),
        group_V=arrays["group_V"],
        z_V=arrays["z_V"],
        p_V=arrays["p_V"],
        threshold=facts["threshold"],
        importance_V=arrays["importance_V"],
        class_CV={level: values for level, values in classes.items() if values is not None},
        background_V=arrays["background_V"],
        completeness=(facts["completeness"][0], facts["completeness"][1]),
        halves=np.array(facts["halves"]),
        randomised=tuple(Randomised(**each) for each in facts["randomised"]),
        attention=_attention(arrays),
        attention_matters=facts["attention_matters"],
        tr_s=tr_s[0] if len(tr_s) == 1 else None,
        mask=context.shard_set.mask,
        affine=np.asarray(context.shard_set.grid.affine),
        folder=folder,
        files=files,
        options=options,
    )
