"""Launches whose processes would train alone are refused, and threads are as many as cores."""

import math
import os
import re
from pathlib import Path

import pytest
from launches import launched_with
from runs import run_of

from kaizen.commands.train import main
from kaizen.errors import ConfigError
from kaizen.parallel.launch import SEVERAL_ON_CPU, _quota, check_launch, threads, usable_cores


def test_processes_that_would_train_alone_are_refused(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(tiny) == 2
    assert "error: launcher: started 2 processes, but Accelerate sees 1" in capsys.readouterr().err
    assert not run_of(tiny).exists()


MULTI_CPU = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 1\n"


@pytest.mark.parametrize(("options", "refused"), [("--cpu", True), ("file", True), ("--cpu --num_processes 1", False)])
def test_one_process_is_refused_if_two_were_asked_for(
    options: str, refused: bool, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.yaml"
    file.write_text(MULTI_CPU + "num_processes: 2\nmixed_precision: 'no'\n")
    words = ["--config_file", str(file)] if options == "file" else ["--num_processes", "2", *options.split()]
    for name, value in launched_with(*words).items():
        monkeypatch.setenv(name, value)
    if not refused:
        check_launch(1, "cpu", "no")
        return
    with pytest.raises(ConfigError, match="--num_processes: is above 1, but accelerate launch started one") as caught:
        check_launch(1, "cpu", "no")
    assert SEVERAL_ON_CPU in str(caught.value)


def test_a_main_address_alone_is_not_taken_for_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node1")
    check_launch(1, "cpu", "no")


@pytest.mark.parametrize(
    ("key", "asked", "found"), [("KAIZEN_PROCESSES", "2", "'1'"), ("KAIZEN_DEVICE", "gpu", "'cpu'|'cuda'")]
)
def test_a_launch_with_a_different_size_or_device_than_requested_is_refused(
    key: str,
    asked: str,
    found: str,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(key, asked)
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert re.search(f"^error: {key}: is '{asked}', but this launch has ({found}); allowed: ", error)
    assert not run_of(tiny).exists()


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="mixed_precision: is fp16, which does not train on a CPU"):
        check_launch(1, "cpu", "fp16")


@pytest.mark.parametrize(
    ("variables", "speaks"),
    [({}, True), ({"WORLD_SIZE": "1"}, True), ({"WORLD_SIZE": ""}, True), ({"WORLD_SIZE": "2"}, False)],
)
def test_a_single_process_prints_whatever_its_rank_in_the_environment(
    variables: dict[str, str], speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"RANK": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    assert main(["digits", "--optim.foo", "1"]) == 2
    assert ("error: optim.foo" in capsys.readouterr().err) == speaks


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, 1.5),
        ("2:cpuacct:/\n1:cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu,cpuacct:/host/path", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_the_quota_is_the_smallest_of_all_control_groups(
    groups: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert _quota(tmp_path / "cgroup", tmp_path / "fs") == cores
    assert _quota(tmp_path / "none", tmp_path / "fs") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 8), (2.5, 2), (0.5, 1), (16, 8)])
def test_threads_are_as_many_as_usable_cores(quota: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("kaizen.parallel.launch._quota", lambda: quota)
    monkeypatch.setenv("KAIZEN_THREADS", "")
    assert usable_cores() == threads() == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads() == max(1, expected // 2)
