"""Progress of a run: seconds over the run, time left, lines without a terminal."""

import pytest

from kaizen.run.progress import LINE_SECONDS, Clock, Progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the first and only item."""
    held = [100.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(f"kaizen.run.progress.time.{name}", lambda: held[0])
    return held


def test_seconds_count_over_the_run_and_over_the_task(now: list[float]) -> None:
    clock = Clock(5.0, 20.0)
    clock.count(64)
    now[0] += 2
    assert (clock.task_seconds(), clock.seconds(), clock.lap()) == (7.0, 27.0, 32.0)


def test_time_left_is_known_from_the_second_step_of_a_start_on(now: list[float]) -> None:
    progress = Progress(110, 10, bar=False, lines=False)
    assert progress.seconds_left() is None
    now[0] += 30  # the first step compiles
    progress.advance(0, 5, 0, 1)
    assert progress.seconds_left() is None
    now[0] += 2
    progress.advance(0, 5, 0, 1)
    assert progress.seconds_left() == 2.0 * 98
    for _ in range(98):
        progress.advance(0, 5, 0, 1)
    assert progress.seconds_left() == 0.0


def test_without_a_terminal_a_line_comes_every_few_minutes(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(1000, 0, bar=True, lines=True)
    for step in range(500):
        now[0] += 1
        if step == 50:
            progress.show(1.23456, 789.6)
        progress.advance(step // 200, 5, 0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 500 // LINE_SECONDS
    assert lines[0] == "task 0 (of 0 to 4), step 120 of 1000, loss 1.235, 790 images/s, 0:14:40 left"
    assert lines[1].startswith("task 1 (of 0 to 4), step 240 of 1000, ")
