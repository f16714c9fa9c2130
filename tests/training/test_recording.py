"""Recorded steps equal ordinary ones; a substitute for CUDA graphs records and checks them on a CPU."""

from pathlib import Path

import numpy as np
import photographs
import pytest
import torch
from runs import COMBINED
from sessions import begin, changed_by_steps, equal, more_of, terms_of
from tape import TapeLanes

from kaizen.bench.session import Session
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.data.replay import Memory
from kaizen.errors import ConfigError
from kaizen.model.methods import REGISTRY
from kaizen.parallel import Parallel
from kaizen.training.recording import Recorder, _cause, check_recording

STEPS = 10
BATCH = ["--optim.batch", "90", "--optim.epochs", "3"]
"""Five steps per epoch: in each phase three ordinary steps, then two replayed ones."""
SHALLOW = ["--encoder.name", f"{Path(__file__).parents[1]}/examples/own_encoder.py:Tiny"]
"""An encoder of two layers, for what depends on the method alone."""
TIMM = ("--encoder.name", "timm:test_resnet", "--encoder.width", "64")
DROPPING = (*TIMM, "--encoder.drop_path", "0.4")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of a GPU, on a CPU: views do not depend on values read, and optimizers are fused."""
    for module in ("views", "colour"):
        monkeypatch.setattr(f"kaizen.data.{module}.on_cpu", lambda tensor: False)
    monkeypatch.setattr(Parallel, "fuses", True)


def record(session: Session) -> TapeLanes:
    """Have a session on a CPU record its steps."""
    lanes = TapeLanes(lambda: changed_by_steps(session))
    session.stepper.recorder = Recorder(session.stepper.device_step, lanes)
    return lanes


def held_on_a_cpu(images: np.ndarray, ids: np.ndarray, memory: Memory, device: torch.device) -> torch.Tensor:
    """A store of the task's and the memory's images as on a GPU."""
    return torch.cat([torch.from_numpy(images[ids]), memory.images])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", [*REGISTRY, *COMBINED])
def test_replayed_steps_equal_ordinary_ones(name: str, tmp_path: Path) -> None:
    """Rates, tau, labels, keys and temperatures differ from step to step; the operations may not."""
    chosen = COMBINED.get(name, ("--method.name", name))
    method = chosen[1]
    arguments = [*chosen, *more_of(method), *BATCH, *([] if name in ("mocov2plus", "swav") else SHALLOW)]
    for task in (1, 0) if name in ("mocov2plus", "osiris") else (1,):
        ordinary = begin(arguments, tmp_path, task=task)
        expected = terms_of(ordinary, STEPS)
        recorded = begin(arguments, tmp_path, task=task)
        lanes = record(recorded)
        assert terms_of(recorded, STEPS) == expected
        assert equal(changed_by_steps(recorded), changed_by_steps(ordinary))
        assert recorded.stepper.recorder is not None
        assert recorded.stepper.recorder.refused is None
        assert recorded.stepper.recorder.recorded
        assert lanes.recorded == (2 if method in ("dino", "swav") else 1), "one recording for each phase"
        for session in (ordinary, recorded):
            session.close()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("keys", "stored"),
    [(("--replay.mix", "lump"), True), (("--classifier.distill", "stored_logits"), False), (DROPPING, False)],
)
def test_steps_with_mixed_images_or_stored_logits_or_dropped_branches_are_replayed_too(
    keys: tuple[str, ...], stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares, partners, rows of the memory and draws differ from step to step, wherever the images are."""
    encoder = [] if keys == DROPPING else SHALLOW
    arguments = ["--method.name", "mocov2plus", *more_of("mocov2plus"), *BATCH, *encoder, *keys]
    ordinary = begin(arguments, tmp_path)
    expected = terms_of(ordinary, STEPS)
    assert all(len({terms[number] for terms in expected}) == STEPS for number in (0, 2, 3))
    if stored:
        monkeypatch.setattr("kaizen.training.step.resident", held_on_a_cpu)
    recorded = begin(arguments, tmp_path)
    lanes = record(recorded)
    assert terms_of(recorded, STEPS) == expected
    assert equal(changed_by_steps(recorded), changed_by_steps(ordinary))
    assert recorded.stepper.recorder is not None
    assert recorded.stepper.recorder.refused is None
    assert lanes.recorded == 1
    for session in (ordinary, recorded):
        session.close()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("method", "more"), [("swav", ["--method.queue_epoch", "99"]), ("dino", SHALLOW)])
def test_small_crops_and_images_that_lie_on_the_device_are_replayed_too(
    method: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*more_of(method), *BATCH, *more]
    file = tmp_path / "crops.yaml"
    views = "views: [{}, {}, {size: 4, crop_scale: [0.1, 0.5]}]"
    file.write_text(f"data: {{source: digits}}\nmethod: {{name: {method}}}\n{views}")
    ordinary = begin(arguments, tmp_path, recipe=str(file))
    expected = terms_of(ordinary, STEPS)
    monkeypatch.setattr("kaizen.training.step.resident", held_on_a_cpu)
    recorded = begin(arguments, tmp_path, recipe=str(file))
    record(recorded)
    assert terms_of(recorded, STEPS) == expected
    assert equal(changed_by_steps(recorded), changed_by_steps(ordinary))
    assert recorded.stepper.feed.take(3)[0].images is None
    for session in (ordinary, recorded):
        session.close()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.usefixtures("as_on_a_gpu")
def test_crops_of_encoded_images_are_replayed_too(tmp_path: Path) -> None:
    """They are sent for each view of each step, as the device has no images of the task."""
    source = photographs.write(tmp_path / "images", 130, least=24, most=60, classes=4)
    arguments = ["--method.name", "mocov2plus", *more_of("mocov2plus"), *SHALLOW, "--optim.epochs", "10"]
    arguments += ["--data.source", source, "--data.image_size", "16", "--data.cache_dir", str(tmp_path / "cache")]
    arguments += ["--stream.tasks", "2", "--optim.batch", "24"]
    ordinary = begin(arguments, tmp_path, synthetic=False)
    expected = terms_of(ordinary, STEPS)
    recorded = begin(arguments, tmp_path, synthetic=False)
    record(recorded)
    assert terms_of(recorded, STEPS) == expected
    assert recorded.stepper.recorder is not None
    assert recorded.stepper.recorder.recorded
    for session in (ordinary, recorded):
        session.close()


@pytest.mark.parametrize("graph", ["auto", "must"])
def test_an_encoder_that_reads_a_value_takes_ordinary_steps_or_is_refused(
    graph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--method.name", "byol", *more_of("byol"), *BATCH]
    ordinary = begin(arguments, tmp_path)
    expected = terms_of(ordinary, 6)
    session = begin([*arguments, "--run.graph", graph], tmp_path)
    session.state.learner.encoder.register_forward_hook(lambda module, args, out: out * float(out.sum() > -1e9))
    record(session)
    if graph == "must":
        with pytest.raises(ConfigError, match=r"run\.graph: is must, but .* reads a value"):
            terms_of(session, 6)
    else:
        assert terms_of(session, 6) == expected
        assert "no longer recorded as a CUDA graph: RuntimeError: aten._local_scalar_dense" in capsys.readouterr().out
        assert equal(changed_by_steps(session), changed_by_steps(ordinary))
    for done in (ordinary, session):
        done.close()


def test_the_first_error_of_a_failed_recording_is_named() -> None:
    cause, last = ValueError("the cause\n itself"), RuntimeError("the recording has ended")
    last.__context__ = cause
    assert _cause(last) == "ValueError: the cause itself"
    assert _cause(cause) == "ValueError: the cause itself"


def test_recording_is_refused_on_a_cpu_where_it_must_be(tmp_path: Path) -> None:
    config = resolve(*parse_arguments(["digits", "--run.graph", "must"]))[1]
    with pytest.raises(ConfigError, match=r"run\.graph: is must, .*the device is a CPU; allowed: auto"):
        check_recording(config, Parallel())
    assert check_recording(resolve(*parse_arguments(["digits"]))[1], Parallel()) is None
