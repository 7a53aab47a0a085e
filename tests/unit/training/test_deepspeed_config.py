"""DeepSpeed's JSON: filled from the flags, and refused where it would train wrongly or be ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import TrainConfig, resolve
from training.deepspeed_config import check_device, fill, read_deepspeed_config, with_its_batch

SHIPPED = sorted((Path(__file__).parents[3] / "deepspeed_configs").glob("*.json"))


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"phase": 1, "shards": ("s",), "out": Path("o"), "preset": "tiny"} | changes))


def read(tmp_path: Path, values: Any) -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_deepspeed_config(path)


@pytest.mark.parametrize("path", [None, *SHIPPED], ids=lambda path: path.stem if path else "default")
def test_autos_are_filled_from_the_flags(path: Path | None) -> None:
    filled = fill(read_deepspeed_config(path), resolve(config(batch_size=3, accumulation=2, lr=0.125)), 4)
    assert "auto" not in json.dumps(filled)
    assert filled["train_batch_size"] == 24
    assert filled["optimizer"]["params"]["lr"] == 0.125
    assert filled["optimizer"]["params"]["torch_adam"] is True


def test_unknown_keys_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="zero_optimisation"):
        read(tmp_path, {"zero_optimisation": {"stage": 2}})


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"ds\.json"):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json"):
        read_deepspeed_config(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_needs_a_zero_stage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="wrong first Adam step"):
        read(tmp_path, {name: {"enabled": True}})
    assert read(tmp_path, {name: {"enabled": True}, "zero_optimization": {"stage": 1}})


def test_fp16_is_refused_on_cpu(tmp_path: Path) -> None:
    values = read(tmp_path, {"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}})
    check_device(values, "cuda")
    with pytest.raises(UsageError, match="fp16"):
        check_device(values, "cpu")


def test_an_auto_without_a_flag_is_refused() -> None:
    with pytest.raises(UsageError, match=r"zero_optimization\.stage"):
        fill({"zero_optimization": {"stage": "auto"}}, resolve(config()), 1)


def test_a_number_against_a_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="train_micro_batch_size_per_gpu is 8"):
        fill({"train_micro_batch_size_per_gpu": 8}, resolve(config(batch_size=2)), 1)


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_clipping": 0.5},
        {"optimizer": {"type": "AdamW", "params": {"lr": 7.0}}},
        {"optimizer": {"type": "AdamW", "params": {"weight_decay": 7.0}}},
        {"gradient_accumulation_steps": 5},
        {"train_batch_size": 999},
    ],
)
def test_other_numbers_against_their_flags_are_refused(values: dict) -> None:
    with pytest.raises(UsageError, match="the flags give"):
        fill(values, resolve(config()), 1)


def test_numbers_that_have_no_flag_are_taken() -> None:
    values = {"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.8, 0.9]}}}
    assert fill(values, resolve(config()), 1)["optimizer"]["params"]["betas"] == [0.8, 0.9]


@pytest.mark.parametrize(
    "values", [{"bf16": True}, {"fp16": None}, {"zero_optimization": 1}, {"zero_optimization": {"stage": 4}}]
)
def test_sections_of_the_wrong_shape_are_named(tmp_path: Path, values: dict) -> None:
    with pytest.raises(UsageError, match=r"must be a JSON object|ZeRO stage"):
        read(tmp_path, values)


def test_numbers_count_where_the_flag_was_left_out() -> None:
    values = {"train_micro_batch_size_per_gpu": 7, "gradient_accumulation_steps": 3}
    taken = with_its_batch(config(), values)
    assert (taken.batch_size, taken.accumulation) == (7, 3)
    assert fill(values, resolve(taken), 2)["train_batch_size"] == 42
