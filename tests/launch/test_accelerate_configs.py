"""The shipped files for `accelerate launch`, started where this is possible without a GPU."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from launches import ROOT, configured, finish, start
from runs import status_of

FILES = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
SHORT = ["digits", *TINY, "--stream.tasks", "1", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]


def test_every_file_describes_its_use() -> None:
    assert FILES == ["cpu", "cpu_2", "fsdp2", "multi_gpu", "multi_node", "single_gpu"]
    for name in FILES:
        text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
        assert text.startswith("# "), name
        assert f"--config_file accelerate_configs/{name}.yaml" in text
        assert f"`{name}.yaml`" in (ROOT / "accelerate_configs/README.md").read_text()
    assert yaml.safe_load((ROOT / "accelerate_configs/fsdp2.yaml").read_text())["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("single_gpu", 1), ("multi_gpu", 2)])
def test_it_starts_that_many_processes(name: str, processes: int, cache: str, tmp_path: Path) -> None:
    arguments = [*SHORT, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "run")]
    environment = {"ACCELERATE_USE_CPU": "1"} if processes > 1 else {}
    printed = finish(start(configured(name), "train.py", *arguments, **environment))
    assert f"processes           {processes}\n" in printed
    assert status_of(tmp_path / "run")["state"] == "done"


@pytest.mark.slow
def test_two_nodes_meet_at_the_first_ones_address(cache: str, tmp_path: Path, unused_port: int) -> None:
    arguments = [*SHORT, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "run")]
    nodes = []
    for rank in range(2):
        launcher = ["accelerate.commands.launch", "--config_file", "accelerate_configs/multi_node.yaml"]
        launcher += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(unused_port)]
        nodes.append(start(launcher, "train.py", *arguments, ACCELERATE_USE_CPU="1"))
    printed = [finish(node) for node in nodes]
    assert "processes           2\n" in printed[0]
    assert "processes" not in printed[1], "only one process prints"
    assert json.loads((tmp_path / "run" / "results.json").read_text())["world_size"] == 2


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
