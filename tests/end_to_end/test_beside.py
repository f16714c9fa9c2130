"""Work in parallel with the steps or between them: checkpoints, decoding, readers; stops and failures there."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from runs import run_of, short, snapshots, status_of

import kaizen.data.rows
import kaizen.run.checkpoint
import kaizen.training.state
from kaizen.commands.train import main
from kaizen.evaluation.readers import probes
from kaizen.run.writer import Writer
from kaizen.training.step import Stepper


def test_a_stop_while_images_are_decoded(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = run_of(tiny), tmp_path / "cache"
    run.mkdir()
    square, done = kaizen.data.rows.square, 0

    def watched(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == 10:
            (run / "stop").touch()
        return square(*args)

    monkeypatch.setattr(kaizen.data.rows, "square", watched)
    monkeypatch.setattr(kaizen.data.rows, "CHUNK_BYTES", 1000)
    assert main([*short(tiny), "--data.cache_dir", str(cache)]) == 75
    assert "stopped by file" in capsys.readouterr().err
    assert done < 30
    assert not list(cache.iterdir())


def test_a_stop_while_a_probe_is_fitted(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = run_of(tiny), [*short(tiny), "--eval.readers", "[classifier,linear_probe_seen]"]
    fit, fits = probes.fit_probe, 0

    def stopped(*args: Any) -> Any:
        nonlocal fits
        fits += 1
        if fits == 2:
            (run / "stop").touch()
        return fit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(probes, "fit_probe", stopped)
        assert main(arguments) == 75
    assert fits == 2
    assert status_of(run)["state"] == "stopped"
    assert not (run / "stop").exists()
    results = json.loads((run / "results.json").read_text())
    assert results["readers"]["classifier"]["matrix"] == []
    assert main(arguments) == 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    assert snapshots(run) == snapshots(tmp_path / "other")


def test_a_checkpoint_that_is_written_while_steps_go_on_holds_its_own_step(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk is slow; it gets a copy, and the next checkpoint waits for it."""
    run, arguments = run_of(tiny), [*short(tiny), "--run.keep_checkpoints", "100"]
    write, under_way, step, overlapped = kaizen.training.state.write_directory, 0, Stepper.step, 0

    def slow(path: Path, *args: Any) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1, "one at a time"
        time.sleep(0.3)
        write(path, *args)
        under_way -= 1

    def watched(self: Stepper, number: int) -> Any:
        nonlocal overlapped
        terms = step(self, number)
        overlapped += under_way
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(kaizen.training.state, "write_directory", slow)
        patch.setattr(Stepper, "step", watched)
        assert main(arguments) == 0
    assert overlapped > 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    saved = [{f.relative_to(r): f.read_bytes() for f in r.rglob("*.safetensors")} for r in (run, tmp_path / "other")]
    assert saved[0] == saved[1]
    assert any("checkpoints" in str(file) for file in saved[0])


def test_what_goes_wrong_beside_the_training_ends_the_run(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(kaizen.training.state, "write_directory", refused)
    assert main(short(tiny)) == 3
    assert "task-00_step-00000002: Input/output error" in capsys.readouterr().err
    assert status_of(run_of(tiny))["state"] == "failed"


def test_a_save_that_nobody_waits_for_any_more_tells_that_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = Writer()
    writer.submit(refused)
    writer.close()
    assert "note: the checkpoint under way was not written ([Errno 5] Input/output error)" in capsys.readouterr().err
