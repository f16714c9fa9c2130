"""Real steps with mixed images and with stored logits: what they see, and what the memory's file holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import log_of, run_of
from safetensors.torch import load_file
from sessions import begin, small, terms_of

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.data.load import load_stream
from kaizen.data.mixing import Mixing
from kaizen.data.random import Purpose, fold
from kaizen.evaluation.results import _image_bytes
from kaizen.model.teacher import read_network

LUMP = [*small("simclr"), "--replay.mix", "lump", "--labels.fraction", "0.6"]
STORED = [*small("simclr"), "--classifier.distill", "stored_logits"]


@pytest.mark.parametrize("each", ["image", "step"])
def test_both_views_of_an_image_are_mixed_with_one_partner_and_one_share(each: str, tmp_path: Path) -> None:
    session = begin([*LUMP, "--replay.mix_share", each], tmp_path)
    stepper = session.stepper
    shares = []
    for step in range(3):
        (host,) = stepper.feed.take(step)
        (drawn,) = stepper.feed.sampler.draw(step)
        n = len(drawn.sample_ids)
        assert (host.count, host.batch.size) == (2 * n, n)
        share = Mixing(0.4, each == "image").shares(fold(0, Purpose.MIX, 1, step), n)
        shares += share.tolist()
        inputs = stepper.device_step.inputs_of(host)
        assert torch.equal(inputs.data.weights, torch.cat([share, 1 - share]))
        ids, rows = drawn.sample_ids.numpy(), drawn.memory_rows
        images = np.concatenate([stepper.source.train.images[ids], stepper.memory.images[rows].numpy()])
        unmixed = stepper.device_step.views((torch.from_numpy(images),), drawn.keys)
        for view, plain in zip(inputs.views, unmixed, strict=True):
            part = share.numpy()[:, None, None, None]
            expected = part * plain[:n].numpy() + (1 - part) * plain[n:].numpy()
            np.testing.assert_allclose(view.numpy(), expected, rtol=1e-5, atol=1e-5)
        labels = [*stepper.stream.labels[ids], *stepper.memory.labels[rows].tolist()]
        assert inputs.data.labels.tolist() == labels
        assert host.batch.labelled == sum(label >= 0 for label in labels)
    assert len(set(shares)) == (3 * 64 if each == "image" else 3)
    session.close()


def test_the_first_task_has_nothing_to_mix(tmp_path: Path) -> None:
    plain = begin([*LUMP, "--replay.mix", "none"], tmp_path, task=0)
    mixed = begin(LUMP, tmp_path, task=0)
    assert terms_of(mixed, 4) == terms_of(plain, 4)
    for session in (plain, mixed):
        session.close()


def test_a_step_finds_the_logits_of_its_replay_images(tmp_path: Path) -> None:
    session = begin(STORED, tmp_path)
    stepper = session.stepper
    held = stepper.memory.logits
    assert held is not None
    assert held.shape == (len(stepper.memory), session.num_classes)
    assert len(held.unique(dim=0)) == len(held), "no two images have the same logits"
    for step in range(3):
        (host,), (drawn,) = stepper.feed.take(step), stepper.feed.sampler.draw(step)
        data = stepper.device_step.inputs_of(host).data
        found = stepper.device_step.recall.remembered(data, host.batch.replay)
        assert found is not None
        assert torch.equal(found.logits, held[drawn.memory_rows])
    assert session.state.teacher is not None, "the distiller of the features needs one"
    assert not session.state.teacher([torch.zeros(2, 3, 8, 8)]).logits, "stored logits take the place of its own"
    session.close()


def test_stored_logits_need_no_teacher(tmp_path: Path) -> None:
    session = begin([*STORED, "--distill.name", "none"], tmp_path)
    assert session.state.teacher is None
    assert all(terms[3] > 0 for terms in terms_of(session, 2))
    session.close()


@pytest.mark.parametrize("policy", [["herding"], ["reservoir", "--replay.total", "30"]])
def test_the_memory_keeps_the_logits_of_each_images_own_task(policy: list[str], tiny: list[str]) -> None:
    if "--replay.total" in policy:
        place = tiny.index("--replay.per_class")
        del tiny[place : place + 2]
    arguments = [*tiny, "--preset", "derpp", "--replay.policy", *policy, "--stream.tasks", "2"]
    arguments += ["--run.checkpoint_every", "0", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]
    assert main(arguments) == 0
    config = resolve(*parse_arguments(arguments))[1]
    stream = load_stream(config)
    mean, std = stream.moments
    run = run_of(tiny)
    for task in range(2):
        file = run / f"tasks/task-{task:02d}/replay.safetensors"
        memory = load_file(file)
        assert (memory["logits"].dtype, memory["logits"].shape) == (torch.float32, (len(memory["labels"]), 10))
        assert _image_bytes(file) == len(memory["labels"]) * (3 * 8 * 8 + 4 * 10)
        for of in range(task + 1):
            network = read_network(run / f"tasks/task-{of:02d}/student.safetensors", config).eval()
            rows = memory["task_ids"] == of
            pixels = (memory["images"][rows] / 255 - mean[:, None, None]) / std[:, None, None]
            with torch.no_grad():
                expected = network.classifier(network.encoder(pixels))
            torch.testing.assert_close(memory["logits"][rows], expected, rtol=1e-3, atol=1e-4)
    assert all((line["loss/classifier_distill"] > 0) == (line["task"] > 0) for line in log_of(run))
