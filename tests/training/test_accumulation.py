"""Gradient accumulation as Accelerate sets it: the same global batch, in parts."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from launches import launched_with
from runs import log_of, settings_of
from sessions import begin, small

from kaizen.commands.train import main
from kaizen.model.methods import method_class
from kaizen.parallel import Batch

# Without BatchNorm and with only the classifier, the loss is a mean over images and does not depend on the parts.
ADDITIVE = ["--encoder.norm", "group", "--classifier.stop_gradient", "false", "--method.weight", "0"]
ADDITIVE += ["--distill.name", "none", "--classifier.distill_weight", "0", "--labels.fraction", "0.4"]


@pytest.mark.usefixtures("accelerate_anew")
def test_parts_add_up_to_the_step_of_the_whole_batch(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sets the number of parts as documented, which works with every file of accelerate_configs."""
    runs = {name: tmp_path / name for name in ("whole", "parts")}
    arguments = [*tiny, *ADDITIVE, "--optim.epochs", "1", "--optim.warmup_epochs", "0", "--stream.tasks", "2"]
    assert main([*arguments, "--run.dir", str(runs["whole"])]) == 0
    assert "accumulation        1 part per step\n" in capfd.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    for name, value in launched_with("--config_file", "accelerate_configs/cpu.yaml").items():
        monkeypatch.setenv(name, value)
    assert main([*arguments, "--run.dir", str(runs["parts"])]) == 0
    assert "accumulation        3 parts per step\n" in capfd.readouterr().out
    whole, parts = (log_of(run) for run in runs.values())
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    for step, (one, other) in enumerate(zip(whole, parts, strict=True)):
        assert other["loss/classifier"] == pytest.approx(one["loss/classifier"], rel=1e-5 if step < 2 else 1e-2)
    # Contrastive negatives come only from the same part: there are fewer, and the loss is lower.
    assert parts[0]["loss/ssl"] < whole[0]["loss/ssl"] - 0.5


@pytest.mark.parametrize("asked", ["0", "-1", "2.5", "auto", ""])
def test_a_number_of_parts_that_is_none_is_refused_by_name(
    asked: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", asked)
    assert main(tiny) == 2
    assert f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS: is '{asked}'; allowed: " in capsys.readouterr().err


def test_parts_weigh_by_the_images_that_the_loss_counts() -> None:
    """A step of 22 new images and 5 of the memory in 4 parts: 6, 6, 5, 5 and 2, 1, 1, 1; labels: 0, 3, 1, 0."""
    parts = [Batch(6, 2, 0), Batch(6, 1, 3), Batch(5, 1, 1), Batch(5, 1, 0)]
    whole = Batch.joined(parts)
    expected = {
        "simclr": [8, 7, 6, 6],
        "deepclusterv2": [6, 6, 5, 5],
        "supervised": [0, 3, 1, 0],
        "osiris": [6, 6, 5, 5],
    }
    for name, counts in expected.items():
        method = method_class(name)(settings_of(name))
        assert [method.counted(part) for part in parts] == counts
        assert method.counted(whole) == sum(counts)


@pytest.mark.usefixtures("accelerate_anew")
@pytest.mark.parametrize("keys", [["--replay.mix", "lump"], ["--classifier.distill", "stored_logits"]])
def test_parts_add_up_with_mixed_images_and_with_stored_logits(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 3 parts, to which the memory gives 2, 1 and 1 images, or one for each new image."""
    arguments = [*small("simclr"), *ADDITIVE, "--classifier.distill_weight", "50", *keys, "--replay.batch", "4"]
    found, updates = [], []
    for parts in ("1", "3"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", parts)
        session = begin([*arguments, "--optim.name", "sgd"], tmp_path)
        before = [parameter.detach().clone() for parameter in session.state.learner.parameters()]
        session.step()
        found.append({name: float(value) for name, value in session.step().items()})
        after = session.state.learner.parameters()
        updates.append(torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).detach())
        assert len(session.stepper.feed.take(0)) == int(parts)
        session.close()
    for term in ("classifier", "classifier_distill"):
        assert found[1][term] == pytest.approx(found[0][term], rel=1e-4)
    assert found[0]["classifier_distill"] > 0
    assert float((updates[1] - updates[0]).norm() / updates[0].norm()) < 1e-3, "gradients"
