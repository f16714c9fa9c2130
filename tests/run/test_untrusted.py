"""Untrusted files: no code in them is executed, and a file that does not fit is refused by name."""

import ast
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import run_of
from safetensors.torch import load_file, save_file

from kaizen.commands.train import main
from kaizen.config import yaml as yamlio
from kaizen.errors import ConfigError
from kaizen.run.checkpoint import seal
from kaizen.run.tensors import read_tensors

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "kaizen").rglob("*.py"), ROOT / "train.py"])
EXECUTING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def executed(tree: ast.AST) -> list[str]:
    """Calls and imports that could execute code from a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in EXECUTING]
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save", "torch.hub.load"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle", "trust_remote_code"):
            value = ast.unparse(node.value)
            if (node.arg, value) not in (("allow_pickle", "False"), ("trust_remote_code", "False")):
                found.append(f"{node.arg}={value}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "yaml.load", "yaml.unsafe_load"):
            loaders = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"]
            if loaders != ["_Loader"]:
                found.append(ast.unparse(node.func))
    return found


def test_nothing_that_executes_files_is_used() -> None:
    assert len(SOURCES) > 60
    assert issubclass(yamlio._Loader, yaml.SafeLoader)
    found = {path.name: calls for path in SOURCES if (calls := executed(ast.parse(path.read_text())))}
    # The file of an own part, which the user has named or trusts: tests/examples/test_own_parts.py.
    assert found == {"plugins.py": ["exec"]}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "x = torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "load_dataset(n, trust_remote_code=True)",
        "f(weights_only=False)",
        "yaml.load(t)",
    ],
)
def test_the_search_finds_them(line: str) -> None:
    assert executed(ast.parse(line))


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        struct.pack("<Q", 2**62) + b"{}",
        header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}) + bytes(8),
        header(a={"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}) + bytes(8),
        header(
            a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        )
        + bytes(12),
        header(a={"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}) + bytes(8),
    ],
)
def test_a_false_header_is_refused_before_memory_is_allocated(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"student\.safetensors: cannot be read"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("images", torch.zeros(20, 3, 9, 9, dtype=torch.uint8), r"images is uint8 \[20, 3, 9, 9\]"),
        ("images", torch.zeros(20, 3, 8, 8), r"images is float32 \[20, 3, 8, 8\]"),
        ("labels", torch.full((20,), 10), "labels from 10 to 10"),
        ("labels", torch.zeros(19, dtype=torch.int64), r"images is uint8 \[20, 3, 8, 8\]; allowed: uint8 \[19"),
        ("task_ids", None, "lacks"),
        ("more", torch.zeros(20), "has unknown"),
    ],
)
def test_a_memory_of_another_kind_is_refused(
    name: str, tensor: torch.Tensor | None, said: str, memory: Path, tmp_path: Path
) -> None:
    from kaizen.data.replay import Memory

    tensors = load_file(memory)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, tmp_path / "replay.safetensors")
    with pytest.raises(ConfigError, match=rf"replay\.safetensors.*{said}"):
        Memory.read(tmp_path / "replay.safetensors", (3, 8, 8), 10)


def test_a_memory_without_logits_is_refused_by_a_run_that_needs_them(memory: Path, tmp_path: Path) -> None:
    from kaizen.data.replay import Memory

    with pytest.raises(ConfigError, match=r"has no logits of its images, which .* stored_logits needs"):
        Memory.read(memory, (3, 8, 8), 10, logits=True)
    file = tmp_path / "replay.safetensors"
    save_file(load_file(memory) | {"logits": torch.zeros(20, 10)}, file)
    assert Memory.read(file, (3, 8, 8), 10, logits=True).logits is not None
    with pytest.raises(ConfigError, match=r"has unknown \['logits'\]"):
        Memory.read(file, (3, 8, 8), 10)
    save_file(load_file(memory) | {"logits": torch.zeros(20, 9)}, file)
    with pytest.raises(ConfigError, match=r"logits is float32 \[20, 9\]; allowed: float32 \[20, 10\]"):
        Memory.read(file, (3, 8, 8), 10, logits=True)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of twenty images as a run saves it."""
    from kaizen.data.replay import Memory

    file = tmp_path_factory.mktemp("memory") / "replay.safetensors"
    numbers = torch.arange(20)
    save_file(Memory(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), numbers % 10, numbers, numbers // 10).tensors(), file)
    assert len(Memory.read(file, (3, 8, 8), 10)) == 20
    return file


def test_names_in_a_state_never_leave_the_directory(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    once = [*tiny, "--stream.tasks", "2", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]
    assert main(once) == 0
    file = run_of(tiny) / "tasks" / "task-01" / "state.json"
    state = json.loads(file.read_text())
    state["files"]["../../../../etc/hostname"] = state["files"]["student.safetensors"]
    del state["sha256"]
    file.write_text(json.dumps({**state, "sha256": seal(state)}))
    assert main(once) == 2
    assert "is listed in state.json but missing" in capsys.readouterr().err
