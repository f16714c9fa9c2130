"""Steps on a GPU: none makes the host wait, recorded ones are ordinary ones, and half precision is near the whole."""

from pathlib import Path

import photographs
import pytest
import torch
from accelerate.state import AcceleratorState
from sessions import begin, changed_by_steps, equal, more_of, small, terms_of

from kaizen.bench.session import Session
from kaizen.model.methods import REGISTRY
from kaizen.parallel import Parallel
from kaizen.training.recording import WARM_UP

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("accelerate_anew")]

STEPS = 20


@pytest.mark.parametrize("method", REGISTRY)
def test_no_step_makes_the_host_wait(method: str, tmp_path: Path) -> None:
    session = begin(["--method.name", method, *more_of(method)], tmp_path, recording=False)
    session.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            session.stepper.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        session.close()


def compared(
    arguments: list[str],
    place: Path,
    task: int,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    *,
    synthetic: bool = True,
) -> Session:
    """Twenty recorded steps beside twenty ordinary ones, equal to the last bit; returns the recorded ones' task."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state(reset_partial_state=True)
    parallel = Parallel(deterministic=True)
    ordinary = begin(arguments, place, task=task, recording=False, parallel=parallel, synthetic=synthetic)
    expected = terms_of(ordinary, STEPS)
    recorded = begin(["--run.graph", "must", *arguments], place, task=task, parallel=parallel, synthetic=synthetic)
    found = terms_of(recorded, STEPS)
    assert recorded.stepper.recorder is not None
    assert recorded.stepper.recorder.recorded
    assert found == expected
    assert equal(changed_by_steps(recorded), changed_by_steps(ordinary))
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorded.stepper.step(STEPS)  # a replayed step does not make the host wait either
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for session in (ordinary, recorded):
        session.close()
    return recorded


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", REGISTRY)
def test_recorded_steps_are_ordinary_ones_to_the_bit(
    method: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(["--method.name", method, *more_of(method)], tmp_path, 1, monkeypatch, precision)


@pytest.mark.parametrize("more", [["--encoder.norm", "group"], ["--encoder.name", "vit_tiny"], ["--stream.tasks", "1"]])
def test_recorded_steps_of_other_encoders_and_without_a_teacher(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--method.name", "mocov2plus", *small("mocov2plus")]
    if "vit_tiny" in more:
        arguments = [
            word
            for pair in zip(arguments[::2], arguments[1::2], strict=True)
            if "width" not in pair[0]
            for word in pair
        ]
    compared([*arguments, *more], tmp_path, 0 if "1" in more else 1, monkeypatch, "bf16")


def test_images_that_do_not_lie_on_the_device_are_sent_beside_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaizen.training.step.resident", lambda *args: None)
    session = compared(["--method.name", "byol", *more_of("byol")], tmp_path, 1, monkeypatch, "no")
    assert session.stepper.device_step.store is None


def test_crops_of_encoded_images_are_sent_beside_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photographs.write(tmp_path / "images", 260, least=40, most=200, classes=4)
    arguments = ["--method.name", "mocov2plus", *more_of("mocov2plus"), "--data.source", source]
    arguments += ["--data.image_size", "32", "--data.cache_dir", str(tmp_path / "cache"), "--stream.tasks", "2"]
    arguments += ["--optim.batch", "32", "--optim.epochs", "20"]
    session = compared(arguments, tmp_path, 1, monkeypatch, "bf16", synthetic=False)
    assert session.stepper.cropper is not None


def test_an_encoder_that_reads_a_value_takes_ordinary_steps_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, parallel = ["--method.name", "simclr", *small("simclr")], Parallel(deterministic=True)
    session = begin(arguments, tmp_path, parallel=parallel)
    session.state.learner.encoder.register_forward_hook(lambda module, args, out: out * float(out.sum() > -1e9))
    found = terms_of(session, WARM_UP + 3)
    assert "no longer recorded as a CUDA graph" in capsys.readouterr().out
    session.close()
    ordinary = begin(arguments, tmp_path, recording=False, parallel=parallel)
    assert terms_of(ordinary, WARM_UP + 3) == found
    ordinary.close()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_ends_near_float32(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for mode in ("no", precision):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mode)
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = ["--method.name", "simclr", *small("simclr"), "--encoder.width", "16", "--optim.name", "adamw"]
        session = begin([*arguments, "--optim.lr", "0.004"], tmp_path / mode)
        terms = terms_of(session, 40)
        assert (session.stepper.recorder is None) == (mode == "fp16")
        ends.append([sum(line[i] for line in terms[-10:]) / 10 for i in range(4)])
        session.close()
    assert ends[1] == pytest.approx(ends[0], rel=0.2, abs=0.02)
