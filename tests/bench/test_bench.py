"""The bench: its output, its FLOPs and bytes against hand counts, its plain loop against the stepper."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import finish, start, torchrun
from torch import nn

from kaizen.bench.against import PIPELINES, compare_views
from kaizen.bench.flat import step_seconds
from kaizen.bench.measure import Options, measure
from kaizen.bench.parts import PARTS, REST, Meter, flops_by_part, seconds_by_part
from kaizen.bench.plain import METHODS, PlainLoop, lacking
from kaizen.bench.profile import idle_share, profile
from kaizen.bench.session import Session, begin_run
from kaizen.bench.spread import inverse, ratio, spread
from kaizen.bench.synthetic import choose_stream, make_source
from kaizen.bench.whole import measure_whole, whole_lines
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands import COMMANDS, run
from kaizen.config.schema import Config
from kaizen.data.load import make_stream
from kaizen.errors import ConfigError
from kaizen.model.distillers import build_distiller
from kaizen.model.learner import Learner
from kaizen.parallel import Parallel
from kaizen.training.plan import make_plan

SMALL = ["--encoder.width", "2", "--method.projector_hidden", "12", "--method.projector_out", "6"]
SMALL += ["--distill.hidden", "10", "--classifier.hidden", "[7]", "--replay.batch", "8", "--replay.per_class", "2"]
SMALL += ["--stream.tasks", "3", "--optim.name", "lars", "--optim.warmup_epochs", "0", "--optim.batch", "16"]
MORE = {
    "mocov2plus": ["--method.queue_size", "20"],
    "byol": ["--method.predictor_hidden", "9"],
    "simclr": ["--views.solarize_p", "0.3"],
}


def configured(method: str, *more: str) -> Config:
    return resolve(*parse_arguments(["digits", "--method.name", method, *SMALL, *MORE.get(method, []), *more]))[1]


@contextmanager
def session_of(config: Config, path: Path) -> Iterator[Session]:
    parallel = Parallel()
    stream = choose_stream(config, True)[0]
    plan = make_plan(config, stream.train_sizes, 1)
    task = begin_run(config, stream, plan, path, parallel)
    session = Session(config, stream, plan, task, path, parallel, logs=path / "logs")
    yield session
    session.close()


@pytest.mark.parametrize(("method", "exclude_1d"), [*((name, "true") for name in METHODS), ("simclr", "false")])
def test_a_step_of_the_plain_loop_is_a_step_of_ours(method: str, exclude_1d: str, tmp_path: Path) -> None:
    with session_of(configured(method, "--optim.exclude_1d", exclude_1d), tmp_path) as session:
        assert lacking(session) is None
        plain = PlainLoop(session)
        before = {name: p.detach().clone() for name, p in plain.net.named_parameters()}
        ours, theirs = session.step(), plain.step()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name].detach(), value, rtol=1e-4, atol=1e-5)
        moved = 0.0
        for name, p in session.state.learner.named_parameters():
            torch.testing.assert_close(dict(plain.net.named_parameters())[name], p, rtol=1e-4, atol=1e-5)
            moved += float((p.detach() - before[name]).abs().sum())
        assert moved > 0.01
        if session.state.twin is not None:
            for own, other in zip(session.state.twin.parameters(), plain.twin.parameters(), strict=True):
                torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
        for name, buffer in session.state.learner.method.named_buffers():
            torch.testing.assert_close(dict(plain.net.method.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5)


def test_other_methods_have_no_plain_loop(tmp_path: Path) -> None:
    with session_of(configured("barlow"), tmp_path) as session:
        assert "barlow" in (lacking(session) or "")


def layer_flops(network: nn.Module, side: int, images: int) -> int:
    """Two FLOPs per multiplication of a forward pass, from shapes seen by hooks."""
    counted = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            each = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            counted.append(2 * output.numel() * each)
        elif isinstance(module, nn.Linear):
            counted.append(2 * output.numel() * module.in_features)

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(images, 3, side, side))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def test_flops_are_those_counted_by_hand(tmp_path: Path) -> None:
    with session_of(configured("vicreg"), tmp_path) as session:
        found = flops_by_part(session)
        learner, teacher = session.state.learner, session.state.teacher
        assert teacher is not None
        read = [nn.Sequential(learner.encoder, head) for head in (learner.projector, learner.classifier)]
        body = layer_flops(learner.encoder, 8, 24)
        heads = sum(layer_flops(both, 8, 24) - body for both in read)
        assert found["teacher"] == 2 * (body + heads)
        predictor = 2 * 24 * (6 * 10 + 10 * 6)
        assert found["student"] == 2 * (body + heads + predictor)
        # Each view's covariance of 24 rows in 6 dimensions.
        assert found["losses"] == 2 * (2 * 6 * 24 * 6)
        # Twice the forward pass, but no gradient of the images and none from the classifier to the features.
        stem, features = 2 * (24 * 8 * 8 * 2) * (3 * 9), learner.encoder.feature_dim
        spared = 2 * stem + 2 * (2 * 24 * features * 7)
        assert found["backward"] == 2 * (found["student"] + found["losses"]) - spared
        assert found["views"] > 0


def test_parts_within_parts_count_once() -> None:
    spent = 0.0
    meter = Meter(lambda: spent)
    spent = 1.0
    with meter.part("student"):
        spent = 3.0
        with meter.part("losses"):
            spent = 7.0
        spent = 15.0
    spent = 31.0
    meter.end()
    assert {name: value for name, value in meter.spent.items() if value} == {"student": 10, "losses": 4, REST: 17}


def test_taking_a_step_apart_leaves_nothing_behind(tmp_path: Path) -> None:
    with session_of(configured("byol"), tmp_path) as session:
        owners = [session, session.stepper, session.state, session.state.twin, session.state.learner, torch.distributed]
        before = [dict(vars(owner)) for owner in owners]
        seconds_by_part(session)
        assert session.done == 1
        assert [vars(owner).keys() for owner in owners] == [held.keys() for held in before]
        assert session.state.teacher is before[2]["teacher"]
        assert torch.distributed.all_reduce is before[5]["all_reduce"]


def test_spread_and_ratio() -> None:
    assert spread(range(101)) == {"median": 50, "low": 5, "high": 95, "count": 101}
    assert inverse(spread(range(10, 21)), 10.0)["high"] == pytest.approx(10 / 10.5)
    # A common drift by a factor of ten cancels in the ratio.
    drift = np.geomspace(1, 10, 40)
    noisy = ratio(1.2 * drift, drift * np.tile([0.99, 1.01], 20))
    assert noisy["low"] <= noisy["median"] <= noisy["high"]
    assert noisy["median"] == pytest.approx(1.2, rel=0.02)
    assert noisy["high"] - noisy["low"] < 0.03


@pytest.mark.parametrize("name", PIPELINES)
def test_other_pipelines_make_views_like_ours(name: str) -> None:
    if name == "kornia":
        pytest.importorskip("kornia")
    plain = ["--views.crop_scale", "[1, 1]", "--views.crop_ratio", "[1, 1]", "--views.jitter_p", "0"]
    config = configured("simclr", *plain, "--views.flip_p", "0", "--views.solarize_p", "0")
    source = make_source(config, most_bytes=0)
    images, moments = np.array(source.train.images[:5]), (torch.tensor([0.5] * 3), torch.tensor([0.29] * 3))
    views = PIPELINES[name](images, config.views[:2], 8, moments)()
    for view in views:
        expected = (torch.from_numpy(images) / 255 - 0.5) / 0.29
        torch.testing.assert_close(view, expected, atol=1e-3, rtol=0)
    everything = configured("simclr", "--views.blur_p", "0.5", "--views.gray_p", "0.5")
    found = compare_views(name, everything, make_stream(everything, source), 2)
    assert all(value["low"] > 0 for value in found.values())


def test_random_images_stand_in_for_a_source_that_is_not_here(tmp_path: Path) -> None:
    overrides = ["--data.cache_dir", str(tmp_path), "--optim.batch", "32", "--stream.tasks", "20"]
    config = resolve(*parse_arguments(["cifar100-simclr", *overrides]))[1]
    stream, said = choose_stream(config, False)
    assert "cifar100 is not on this machine" in said
    assert stream.source.num_classes == 100
    assert stream.train_sizes == [2500] * 20
    assert stream.source.train.images.shape[1:] == (3, 32, 32)


def test_domains_are_those_of_the_recipe() -> None:
    config = resolve(*parse_arguments(["domainnet-simclr", "--data.image_size", "8", "--optim.batch", "16"]))[1]
    stream = choose_stream(config, True)[0]
    assert config.stream.domains is not None
    assert [task.name for task in stream.tasks] == list(config.stream.domains)


def test_json_holds_every_number(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaizen.bench.measure.BLOCK_SECONDS", 0.0)
    monkeypatch.setattr("kaizen.bench.against.MOST_IMAGES", 8)
    file = tmp_path / "bench.json"
    tokens = ["bench", "digits", *SMALL, "--data.cache_dir", cache, "--repetitions", "2", "--against", "pil"]
    monkeypatch.setattr("kaizen.bench.saving.STEPS", 2)
    assert run([*tokens, "--checkpoints", "--json", str(file)], COMMANDS) == 0
    found, out = json.loads(file.read_text()), capsys.readouterr().out
    assert found["data"] == "digits"
    assert found["batch"] == {"current": 16, "replay": 8, "image_size": 8}
    assert (found["task"], found["teacher"], found["environment"]["world_size"]) == (1, True, 1)
    assert set(found["parts"]) == {*PARTS, REST}
    spreads = [*found["parts"].values(), found["step"]["seconds"], found["step"]["images_per_second"]]
    spreads += [found["memory"]["peak_bytes"], found["plain"]["seconds"], found["plain"]["ratio"]]
    spreads += [found["flops"][name] for name in ("per_second", "peak_per_second", "share_of_peak")]
    spreads += [found["views"]["pil"][f"{who}_images_per_second"] for who in ("ours", "theirs")]
    assert found["checkpoints"]["bytes"] > 10_000
    for one in (*spreads, found["views"]["pil"]["ratio"], found["checkpoints"]["ratio"]):
        assert 0 <= one["low"] <= one["median"] <= one["high"]
    assert found["parts"]["communication"]["high"] == found["communication"]["total"] == 0
    parts = found["flops"]["parts"]
    assert found["flops"]["step"] == sum(parts.values()) - parts["views"] > 0
    assert all(word in out for word in ("images/s", "ours / plain", "ours / pil", "peak memory", "  backward"))


def test_joint_stream_is_measured_without_teacher() -> None:
    config = configured("supcon", "--stream.kind", "joint", "--stream.tasks", "1")
    found = measure("digits", config, Options(1, synthetic=True), Parallel(), lambda text: None)
    assert (found["task"], found["teacher"], found["batch"]["replay"]) == (0, False, 0)
    assert "supcon" in found["plain"]["missing"]


def test_idle_is_what_no_kernel_covers() -> None:
    assert idle_share([(0, 4), (2, 6), (3, 5), (8, 10)]) == pytest.approx(0.2)
    assert idle_share([(5, 9), (1, 5)]) == 0.0
    assert idle_share([]) == 0.0


def test_a_profile_names_what_takes_most(tmp_path: Path) -> None:
    with session_of(configured("simclr"), tmp_path) as session:
        found = profile(session, 2)
    assert found["idle_share"] is None
    assert found["kernels"] > 100
    shares = [top["share"] for top in found["top"]]
    assert shares == sorted(shares, reverse=True)
    assert "convolution" in " ".join(top["name"] for top in found["top"])


@pytest.mark.slow
def test_a_whole_recipe_tells_the_hours_of_its_own_epochs(tmp_path: Path) -> None:
    config = configured("simclr", "--optim.epochs", "50", "--eval.readers", "[classifier]", "--log.every_steps", "1")
    found = measure_whole("digits", config, 2, True, Parallel())
    assert (found["epochs"], found["trained_epochs"], len(found["tasks"])) == (50, 2, 3)
    for task in found["tasks"]:
        steps = 50 * task["steps_per_epoch"]
        assert task["end"] > 0
        assert task["whole"] == pytest.approx(steps * task["step"] + sum(map(task.get, ("start", "end", "evaluate"))))
    assert found["hours"] == pytest.approx(sum(task["whole"] for task in found["tasks"]) / 3600)
    assert "for 50 epochs per task" in list(whole_lines(found))[-1]
    with pytest.raises(ConfigError, match="--synthetic: has no use here"):
        measure_whole("own", resolve("digits", {"data.source": f"parquet:{tmp_path}"})[1], 2, True, Parallel())


def test_small_tasks_of_random_images(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["bench", "digits", *SMALL, "--eval.readers", "[classifier]", "--data.cache_dir", cache]
    assert run([*tokens, "--tasks", "3", "--repetitions", "3", "--synthetic", "--json", "-"], COMMANDS) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["step_seconds"]) == len(found["peak_bytes"]) == len(found["evaluation_share"]) == 3
    assert all(0 < share < 1 for share in found["evaluation_share"])
    assert found["last_over_first"]["count"] == 3
    assert min(seconds["count"] for seconds in found["step_seconds"]) >= 2
    assert "random images" in found["data"]


def test_step_seconds_are_those_between_log_lines(tmp_path: Path) -> None:
    lines = [{"task": t, "seconds": s} for t, s in ((0, 1.0), (0, 1.5), (1, 0.25), (1, 1.25), (1, 3.25))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step_seconds(tmp_path, 1) == [1.0, 2.0]


@pytest.mark.slow
def test_traffic_of_two_processes_is_that_counted_by_hand(tmp_path: Path, cache: str) -> None:
    file, config = tmp_path / "bench.json", configured("simclr")
    tokens = [*SMALL, *MORE["simclr"], "--data.cache_dir", cache, "--repetitions", "2", "--json", str(file)]
    out = finish(start(torchrun(2), "-m", "kaizen", "bench", "digits", *tokens, ACCELERATE_USE_CPU="1"))
    assert out.count("images/s") == 1
    found, learner = json.loads(file.read_text()), Learner(config, 10, build_distiller(config.distill))
    assert found["plain"]["missing"] == "no plain loop for 2 processes"
    trained = [p for p in learner.parameters() if p.requires_grad]
    assert found["communication"]["bytes"]["gradients"] == 4 * sum(p.numel() for p in trained)
    # Of every BatchNorm and view mean, variance and a count; two sums back, except for the teacher's and its predictor.
    kind = nn.modules.batchnorm._BatchNorm
    widths = [[m.num_features for m in part.modules() if isinstance(m, kind)] for part in (learner, learner.encoder)]
    norms = sum(2 * (2 * width + 1) for part in widths for width in part) + sum(2 * 2 * width for width in widths[0])
    # Two projections for the SSL loss, two predictions, both with gradients back for all 24 rows, and two of the
    # teacher's projections for the distiller.
    rows, back = 6 * 12 * 6, 4 * 24 * 6
    # The log's five terms, rows, sums and squares of two views' projections, and for their rank these themselves.
    log, ranked = 5 + 1 + 2 * 2 * 6, 2 * 12 * 6
    assert found["communication"]["bytes"]["all_gather"] == 4 * (norms + rows + ranked)
    assert found["communication"]["bytes"]["all_reduce"] == 4 * (back + log)
    gathered = 4 * len(widths[0]) + 2 * len(widths[1]) + 6 + 2
    assert found["communication"]["messages"] == {"all_gather": gathered, "all_reduce": 4 + 4}
    assert found["parts"]["communication"]["low"] > 0
