"""DeepSpeed's JSON: filled from the flags, and refused where it would train wrongly or be ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import TrainConfig, resolve
from training.engine import deepspeed_rules
from training.engine.deepspeed_config import DEFAULT, check_device, fill, read_deepspeed_config, with_its_batch

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


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from deepspeed.accelerator import get_accelerator

    values = {name: {"enabled": True}, "zero_optimization": {"stage": 1}}
    monkeypatch.setattr(get_accelerator(), f"is_{name}_supported", lambda: True)
    check_device(values, "cuda")
    monkeypatch.setattr(get_accelerator(), f"is_{name}_supported", lambda: False)
    with pytest.raises(UsageError, match=f"{name} is not supported on this cpu; use .*fp32"):
        check_device(values, "cpu")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"zero_optimization": {"stage": 2, "offfload": 1}}, "offfload in Zero: .*not permitted"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            "offload_optimizer.device in Zero",
        ),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True, "x": 1}}, "x in BF16"),
        ({"tensorboard": {"enabled": True, "folder": "x"}}, "tensorboard.folder in Monitor"),
    ],
)
def test_what_deepspeed_refuses_inside_a_section_is_one_line(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        check_device(section, "cpu")
    assert "\n" not in str(refused.value)


AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
BF16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (BF16 | AUTOCAST, "bf16 and torch_autocast are both enabled; keep one"),
        (BF16 | {"fp16": {"enabled": True}}, "bf16 and fp16 are both enabled"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, 'write "bfloat16"'),
        ({"torch_autocast": {"enabled": True, "dtpye": "bfloat16"}}, r"did you mean torch_autocast\.dtype"),
        ({"compile": {"deepcompile": True}}, "use the flag --compile"),
        ({"scheduler": {"type": "StepLR"}}, "WarmupCosineLR"),
        ({"optimizer": {"params": {}}}, 'optimizer has no "type"'),
        ({"optimizer": {"type": "Adafactor"}, "zero_optimization": {"stage": 2}}, "zero_allow_untested_optimizer"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "below ZeRO stage 3, found stage 2"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "below ZeRO stage 1"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "needs an optimizer section"),
        ({"zero_optimization": {"stage": "auto"}}, "write 0, 1, 2 or 3"),
        ({"wandb": {"enabled": True}}, "pip install wandb, or set its enabled to false"),
    ],
)
def test_combinations_that_go_wrong_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(deepspeed_rules, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=told):
        read(tmp_path, values)


def test_what_is_enabled_and_installed_is_taken(tmp_path: Path) -> None:
    values = {"tensorboard": {"enabled": True}, "wandb": {"enabled": False}, "zero_optimization": {"stage": 0}}
    assert read(tmp_path, values | AUTOCAST) == values | AUTOCAST


@pytest.mark.parametrize("given", [{}, {"output_path": "auto", "job_name": "auto"}])
@pytest.mark.parametrize(("section", "folder"), [("tensorboard", "tensorboard"), ("csv_monitor", "csv")])
def test_monitors_write_into_the_run_folder(section: str, folder: str, given: dict[str, str]) -> None:
    filled = fill({section: {"enabled": True} | given}, resolve(config(out=Path("runs/p1"))), 1)
    assert filled[section] == {"enabled": True, "output_path": "runs/p1", "job_name": folder}


def test_what_a_monitor_says_itself_is_kept() -> None:
    filled = fill({"wandb": {"enabled": True, "project": "mine"}}, resolve(config(out=Path("runs/p1"))), 1)
    assert filled["wandb"] == {"enabled": True, "project": "mine", "group": "p1"}


def test_the_shipped_files_follow_one_rule() -> None:
    assert len(SHIPPED) == 10
    for path in SHIPPED:
        stage, *offload, precision = path.stem.split("_")
        expected = json.loads(json.dumps(DEFAULT)) | {"zero_optimization": {"stage": int(stage.removeprefix("zero"))}}
        if offload:
            expected["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if offload and stage == "zero3":
            expected["zero_optimization"]["offload_param"] = {"device": "cpu"}
        values = json.loads(path.read_text())
        if precision != "fp32":
            assert values.pop(precision)["enabled"] is True
        assert values == expected, path.name


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
