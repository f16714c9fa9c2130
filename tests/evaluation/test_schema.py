"""Files that evaluation reads: results.json in both schemas, and environment.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from kaizen.evaluation.metrics import PROTOCOLS, summarize
from kaizen.evaluation.schema import DAMAGED, provenance, read_results

UNTRAINED = [0.1, 0.2, 0.3]
MATRIX = [[0.8, 0.0, 0.0], [0.5, 0.9, 0.0], [0.6, 0.4, 0.7]]


def schema_1(*classes: list[int]) -> dict[str, Any]:
    reader = {"untrained": UNTRAINED, "matrix": MATRIX, **summarize(MATRIX, UNTRAINED)}
    return {
        "schema": 1,
        "recipe": "digits",
        "stream": {"kind": "class", "tasks": [{"name": f"classes {c}", "classes": c} for c in classes]},
        "readers": dict.fromkeys(PROTOCOLS, reader),
        "images_per_second": [1.0, 2.0, 3.0],
    }


def read(tmp_path: Path, content: Any) -> dict[str, Any]:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return read_results(file)


def test_schema_1_is_read_as_schema_2(tmp_path: Path) -> None:
    found = read(tmp_path, schema_1([1, 0], [2], [3]))
    nulls = [[0.8, None, None], [0.5, 0.9, None], MATRIX[2]]
    for name, reader in found["readers"].items():
        matrix = MATRIX if name == "linear_probe_all" else nulls
        expected = {"protocol": PROTOCOLS[name], "untrained": UNTRAINED, "matrix": matrix}
        assert reader == expected | summarize(matrix, UNTRAINED)
    assert (found["schema"], found["rankme"]) == (2, [None] * 3)


def test_schema_1_keeps_all_cells_where_the_first_task_has_every_class(tmp_path: Path) -> None:
    for classes in ([0, 1], []):  # none: no training image has a label
        found = read(tmp_path, schema_1([0, 1], classes, [1]))["readers"]["knn"]
        assert found == {"protocol": PROTOCOLS["knn"], "untrained": UNTRAINED, "matrix": MATRIX} | summarize(
            MATRIX, UNTRAINED
        )


def test_schema_2_is_read_as_it_is(tmp_path: Path) -> None:
    content = {**schema_1([0], [1], [2]), "schema": 2}
    assert read(tmp_path, content) == content


def test_a_metric_that_a_file_lacks_is_computed_from_its_rows(tmp_path: Path) -> None:
    whole = {**schema_1([0], [1], [2]), "schema": 2}
    old = json.loads(json.dumps(whole))
    for reader in old["readers"].values():
        del reader["forgetting_all_rows"]
        reader["forgetting"] = 0.25
    found = read(tmp_path, old)["readers"]["knn"]
    assert found == {**whole["readers"]["knn"], "forgetting": 0.25}, "those that it has are kept"
    old["readers"]["knn"]["matrix"] = [[0.5, 0.5], [1]]
    with pytest.raises(DAMAGED):
        read(tmp_path, old)


@pytest.mark.parametrize("content", [[], {"schema": 3}, {"schema": 1}, {"recipe": "digits", "readers": {}}])
def test_what_is_no_results_json_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(DAMAGED):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"data": "ab12", "mixed_precision": "no", "gradient_accumulation_steps": 1}, {"data": "ab12"}),
        (
            {"mixed_precision": "bf16", "gradient_accumulation_steps": 2},
            {"mixed_precision": "bf16", "gradient_accumulation_steps": "2"},
        ),
        (
            {"data": "c", "mixed_precision": "bf16", "starts": [{}, {"mixed_precision": "bf16"}]},
            {"data": "c", "mixed_precision": "no+bf16"},
        ),
        ([1], {}),
    ],
    ids=["usual", "unusual", "two starts", "damaged"],
)
def test_environment_json_tells_the_data_and_what_changes_results(
    environment: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    assert provenance(tmp_path) == {}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert provenance(tmp_path) == expected
