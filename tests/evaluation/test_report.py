"""Reports: groups of runs, mean and spread over seeds, paired differences, and the written files."""

import csv
import io
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaizen.config.schema import FREE_KEYS
from kaizen.errors import ConfigError
from kaizen.evaluation.metrics import DEFINITIONS, summarize
from kaizen.evaluation.report import (
    CSV_COLUMNS,
    RunRecord,
    csv_text,
    describe_values,
    find_baseline,
    group_runs,
    markdown,
    sheets,
    summarise_groups,
)


def record(
    seed: int,
    accuracy: float | None = 0.5,
    preset: str | None = None,
    recipe: str = "digits",
    readers: dict[str, Any] | None = None,
    path: str = "",
    **keys: Any,
) -> RunRecord:
    """A run whose metrics all have one value, or null for None."""
    config = {"run.seed": seed, "optim.lr": 0.1, **{key.replace("__", "."): value for key, value in keys.items()}}
    found = {"classifier": dict.fromkeys(DEFINITIONS, accuracy)} if readers is None else readers
    return RunRecord(path or f"run{seed}", recipe, preset, config, found)


def placed(seed: int, source: str, digest: str, preset: str | None = None, **more: str) -> RunRecord:
    """A run on data with this digest at this place, trained with the settings `more`."""
    held = record(seed, preset=preset, data__source=source, method__name=str(preset))
    return replace(held, provenance={"data": digest, **more})


def names(*records: RunRecord) -> list[str]:
    return [group.name for group in group_runs(records)]


def test_a_group_holds_runs_that_differ_in_their_seed_and_in_keys_that_decide_nothing() -> None:
    free = {key if key != "log" else "log.name": "x" for key in FREE_KEYS}
    other = {key.replace(".", "__"): value for key, value in free.items()}
    groups = group_runs([record(0), record(2, **other), record(1, preset="cassle", distill__name="a"), record(1)])
    assert [(group.name, list(group.runs)) for group in groups] == [("digits", [0, 1, 2]), ("digits-cassle", [1])]


def test_a_group_is_named_by_the_keys_in_which_groups_of_its_label_differ_alone() -> None:
    found = names(
        record(0, preset="cassle", optim__lr=0.1, distill__name="auto"),
        record(0, preset="cassle", optim__lr=0.2, distill__name="auto", classifier__hidden=[16, 8]),
        record(0, preset="finetune", optim__lr=0.3, distill__name="none"),
    )
    assert found == [
        "digits-cassle optim.lr=0.1 classifier.hidden=null",
        "digits-cassle optim.lr=0.2 classifier.hidden=[16,8]",
        "digits-finetune",
    ]
    assert names(record(0, eval__knn=None), record(1)) == ["digits"], "a key missing in earlier versions counts as null"


def test_runs_on_other_data_are_another_group_and_a_place_decides_nothing() -> None:
    a, b = "parquet:/a", "parquet:/b"
    groups = group_runs([placed(0, a, "1" * 64), placed(1, b, "1" * 64), placed(2, a, "2" * 64)])
    found = {group.name: list(group.runs) for group in groups}
    assert found == {f"digits data={a}@11111111": [0, 1], f"digits data={a}@22222222": [2]}
    assert len(group_runs([placed(0, a, "1" * 64), record(1)])) == 2, "the data of a run without a digest are unknown"


def test_data_and_precision_that_differ_are_named_whatever_the_label_and_never_compared() -> None:
    kaizen = placed(0, "d", "1" * 64, "kaizen")
    assert names(kaizen, placed(0, "d", "1" * 64, "replay")) == ["digits-kaizen", "digits-replay"]
    assert names(kaizen, placed(0, "e", "2" * 64, "replay")) == ["digits-kaizen", "digits-replay"], "other sources"
    other_data = placed(0, "d", "2" * 64, "replay")
    assert names(kaizen, other_data) == ["digits-kaizen data=d@11111111", "digits-replay data=d@22222222"]
    other_precision = placed(0, "d", "1" * 64, "replay", mixed_precision="bf16")
    found = names(kaizen, other_precision)
    assert found == ["digits-kaizen mixed_precision=null", "digits-replay mixed_precision=bf16"]
    for other in (other_data, other_precision):
        rows = summarise_groups(group_runs([kaizen, other]), "replay")
        assert all(row.difference is None for row in rows), "no baseline of a preset on different data or precision"


def test_one_configuration_under_two_names_is_one_group_and_counts_a_seed_once() -> None:
    (group,) = group_runs([record(0, None, path="a"), record(0, 0.3, preset="kaizen", path="b"), record(1, path="c")])
    assert group.name == "digits = digits-kaizen"
    assert {seed: run.path for seed, run in group.runs.items()} == {0: "b", 1: "c"}, "the finished one counts"
    assert [run.path for run in group.repeated] == ["a"]


@given(st.lists(st.none() | st.floats(0, 1), max_size=6))
def test_statistics_agree_with_numpy_and_leave_out_what_is_not_there(values: list[float | None]) -> None:
    there = [value for value in values if value is not None]
    found = describe_values(values)
    assert found.n == len(there)
    assert found.mean == (pytest.approx(np.mean(there)) if there else None)
    assert found.std == (pytest.approx(np.std(there, ddof=1), abs=1e-12) if len(there) > 1 else None)


def test_mean_and_deviation_over_seeds_by_reader_and_metric() -> None:
    accuracies = [0.5, 0.75, 0.6]
    runs = [
        record(seed, readers={"classifier": {"final_accuracy": a, "forgetting": None}, "knn": {"forgetting": 2 * a}})
        for seed, a in enumerate(accuracies)
    ]
    rows = {(row.reader, row.metric): row.value for row in summarise_groups(group_runs(runs))}
    assert set(rows) == {(reader, metric) for reader in ("classifier", "knn") for metric in DEFINITIONS}
    found = rows["classifier", "final_accuracy"]
    assert (found.mean, found.std, found.n) == (
        pytest.approx(statistics.mean(accuracies)),
        pytest.approx(statistics.stdev(accuracies)),
        3,
    )
    assert rows["knn", "forgetting"].mean == pytest.approx(2 * statistics.mean(accuracies))
    assert rows["classifier", "forgetting"].mean is None


def test_paired_differences_take_common_seeds_alone() -> None:
    base = {0: 0.5, 1: 0.4, 2: 0.9, 5: None}
    mine = {1: 0.6, 2: 0.95, 3: 0.1, 5: 0.7}
    runs = [record(seed, value, "replay", a__b=1) for seed, value in base.items()]
    runs += [record(seed, value, "kaizen", a__b=2) for seed, value in mine.items()]
    rows = [row for row in summarise_groups(group_runs(runs), "digits-replay") if row.metric == "final_accuracy"]
    assert (rows[0].baseline, rows[0].difference) == (None, None), "the baseline has no difference from itself"
    found = rows[1].difference
    assert found is not None
    expected = [0.6 - 0.4, 0.95 - 0.9]
    assert (rows[1].baseline, found.n) == ("digits-replay", 2)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.std == pytest.approx(np.std(expected, ddof=1))


def test_a_preset_as_baseline_stands_for_the_nearest_group_on_the_same_data() -> None:
    sides = [("kaizen", 0.1, "a"), ("kaizen", 0.2, "a"), ("kaizen", 0.3, "b"), ("pfr", 0.2, "a"), ("pfr", 0.9, "b")]
    runs = [
        replace(record(0, preset=preset, optim__lr=rate, distill__name=preset), provenance={"data": data * 64})
        for preset, rate, data in [*sides, ("pfr", 0.4, "a"), ("pfr", 0.2, "c")]
    ]
    groups = group_runs(runs)
    nearest = [find_baseline(groups, group, "kaizen") for group in groups]
    # A group of the preset is its own; 0.4 is as near to 0.1 as to 0.2, as keys count and not values; c has none.
    assert [found and groups.index(found) for found in nearest] == [0, 1, 2, 1, 2, None, None]
    valued = [find_baseline(groups, group, "kaizen optim.lr=0.1") for group in groups]
    assert [found and groups.index(found) for found in valued] == [0, 0, None, 0, None, 0, None]
    for name in ("kaizen optim.lr=0.4", "kaizen optim.rate=0.1", "kaizen lr", ""):
        with pytest.raises(ConfigError, match="or a preset of them"):
            summarise_groups(groups, name)


def test_a_preset_as_baseline_stands_for_the_group_of_the_same_recipe() -> None:
    runs = [
        record(0, accuracy, preset, recipe, number=number)
        for number, (accuracy, preset, recipe) in enumerate(
            [
                (0.1, "replay", "a"),
                (0.4, "kaizen", "a"),
                (0.2, "replay", "b"),
                (0.9, "kaizen", "b"),
                (0.3, "kaizen", "c"),
            ]
        )
    ]
    rows = [row for row in summarise_groups(group_runs(runs), "replay") if row.metric == "forgetting"]
    found = {row.group: (row.baseline, row.difference and row.difference.mean) for row in rows}
    assert found["a-kaizen"] == ("a-replay", pytest.approx(0.3))
    assert found["b-kaizen"] == ("b-replay", pytest.approx(0.7))
    assert found["c-kaizen"] == found["a-replay"] == (None, None)


def test_unfinished_and_single_task_runs_are_empty_and_never_zero() -> None:
    matrix = [[0.7]]
    joint = record(0, readers={"classifier": {"matrix": matrix, **summarize(matrix, [0.1])}}, preset="joint", x=1)
    begun = record(0, readers={"classifier": {"matrix": [], **summarize([], [0.1])}}, preset="cassle", x=2)
    nothing = record(0, readers={}, preset="kaizen", x=3)
    rows = summarise_groups(group_runs([joint, begun, nothing]))
    (sheet,) = sheets(rows)
    cells = {row[0]: dict(zip(sheet.header[1:], row[1:], strict=True)) for row in sheet.rows}
    assert cells["digits-joint"]["final accuracy"] == "70.0 (1)"
    assert cells["digits-joint"]["forgetting"] == ""
    assert set(cells["digits-cassle"].values()) == set(cells["digits-kaizen"].values()) == {""}
    for line in csv.DictReader(io.StringIO(csv_text(rows))):
        if (line["group"], line["metric"]) not in {
            ("digits-joint", metric) for metric in ("final_accuracy", "continual_accuracy", "learning_accuracy")
        }:
            assert (line["mean"], line["std"], line["n"]) == ("", "", "0")
    for text in (markdown([sheet]), csv_text(rows)):
        assert "nan" not in text.lower()
        assert "None" not in text


def test_markdown_and_csv_tell_the_same_and_name_each_metric_with_its_definition() -> None:
    runs = [record(seed, value, "replay", a=1) for seed, value in enumerate([0.1, 0.2])]
    runs += [record(seed, value, "kaizen", a=2) for seed, value in enumerate([0.5, 0.7])]
    rows = summarise_groups(group_runs(runs), "replay")
    text = markdown(sheets(rows))
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table[:4]} == {2 + len(DEFINITIONS)}
    assert "| digits-kaizen | 60.0 ± 14.1 (2) |" in text
    assert "| digits-kaizen | digits-replay | +45.0 ± 7.1 (2) |" in text
    held = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert tuple(held[0]) == CSV_COLUMNS
    found = next(line for line in held if (line["group"], line["metric"]) == ("digits-kaizen", "forgetting"))
    assert float(found["mean"]) == pytest.approx(0.6)
    assert float(found["std"]) == pytest.approx(statistics.stdev([0.5, 0.7]), rel=1e-12)
    assert float(found["difference_std"]) == pytest.approx(statistics.stdev([0.4, 0.5]), rel=1e-9)
    assert (found["n"], found["baseline"], found["difference_n"]) == ("2", "digits-replay", "2")
    for metric, definition in DEFINITIONS.items():
        assert f"- {metric.replace('_', ' ')}: {definition}" in lines
        assert {line["definition"] for line in held if line["metric"] == metric} == {definition}


def test_a_name_with_a_bar_stays_in_its_cell() -> None:
    text = markdown(sheets(summarise_groups(group_runs([record(0, recipe="a|b")]))))
    assert "| a\\|b |" in text
