"""Uploads, against a hub on this machine, in a process that has not met the real hub's address yet."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, fake_hub

import kaizen

CODE = """
import sys
from pathlib import Path
from kaizen.errors import ConfigError
from kaizen.takeaway.hub import check_account, push
try:
    check_account("me/model")
    print(push(Path(sys.argv[1]), "me/model", public=sys.argv[2] == "public"))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
assert "torch" not in sys.modules
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an export could be."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "README.md").write_text("---\nlicense: unknown\n---\n")
    (place / "model.safetensors").write_bytes(bytes(range(256)))
    return place


def upload(
    address: str, folder: Path, visibility: str = "private", token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    environment["PYTHONPATH"] = str(Path(kaizen.__file__).parents[1])
    words = [sys.executable, "-c", CODE, str(folder), visibility]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("visibility", ["private", "public"])
def test_all_files_arrive_in_a_private_repository_or_a_public_one(visibility: str, hub: FakeHub, folder: Path) -> None:
    done = upload(hub.address, folder, visibility)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"{hub.address}/me/model"
    assert hub.files == {"me/model": {file.name: file.read_bytes() for file in folder.iterdir()}}
    assert hub.private["me/model"] == (visibility == "private")


def test_what_the_hub_refuses_is_told_in_one_line(hub: FakeHub, folder: Path) -> None:
    hub.refuses_uploads = True
    done = upload(hub.address, folder)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("--push: is 'me/model', and the hub did not accept it (")
    assert "Your storage is full." in last
    assert last.endswith(f"{folder} is complete, and `hf upload me/model {folder}` uploads it later")


def test_who_is_not_logged_in_or_has_a_wrong_token_is_told_so(hub: FakeHub, folder: Path) -> None:
    done = upload(hub.address, folder, token=None)
    assert done.returncode == 2
    assert "but nobody is logged in; allowed after `hf auth login`, or with a token in HF_TOKEN" in done.stderr
    done = upload(hub.address, folder, token="hf_" + "b" * 34)
    assert done.returncode == 2
    assert "--push: is 'me/model', and the hub did not accept it (" in done.stderr
    assert not hub.files


def test_a_hub_that_cannot_be_reached_is_told_so(folder: Path) -> None:
    done = upload("http://127.0.0.1:9", folder)
    assert done.returncode == 2, done.stderr
    assert "--push: is 'me/model', and the hub did not accept it (" in done.stderr
