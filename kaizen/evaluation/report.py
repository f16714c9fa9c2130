"""Comparison of runs: groups of runs that differ only in their seed, with each metric's mean and spread over seeds.

Everything here is plain data: `summarise_groups` computes numbers, `sheets` arranges them as tables, `markdown` and
`csv_text` format them. Fractions are converted to per cent only in tables.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kaizen.config.schema import PLACE_KEYS, is_free, is_unchanged
from kaizen.errors import ConfigError
from kaizen.evaluation.metrics import DEFINITIONS
from kaizen.evaluation.schema import SETTINGS

SEED, SOURCE = "run.seed", "data.source"
MEMORY = "memory_bytes"
MEMORY_DEFINITION = "bytes that are kept of past tasks after the last one: replay images and statistics"
CSV_COLUMNS = (
    *("group", "reader", "metric", "mean", "std", "n"),
    *("baseline", "difference_mean", "difference_std", "difference_n", "definition"),
)


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its directory.

    config: flat, by dotted key; readers: from results.json; provenance: see kaizen.evaluation.schema.
    """

    path: str
    recipe: str
    preset: str | None
    config: Mapping[str, Any]
    readers: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: tuple[int, int] | None = None
    """Bytes of images and of statistics after the last task."""

    @property
    def label(self) -> str:
        """RECIPE or RECIPE-PRESET."""
        return f"{self.recipe}-{self.preset}" if self.preset else self.recipe

    def value(self, reader: str, metric: str) -> float | None:
        """A metric (fraction, or bytes); None if it is undefined or not available yet."""
        if metric == MEMORY:
            return None if self.memory_bytes is None else float(sum(self.memory_bytes))
        found = self.readers.get(reader, {}).get(metric)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


@dataclass(frozen=True)
class Group:
    """Runs of one configuration by seed, and runs left out because they repeat a seed.

    The name is `label` (of equal configurations under several names: all, joined by " = ") and `keys`: those by which
    groups of one label differ, and differences in data and training between groups of any label.
    """

    label: str
    keys: str
    config: Mapping[str, Any]
    """Keys that decide the result, without those that are null, and provenance."""
    runs: Mapping[int, RunRecord]
    repeated: tuple[RunRecord, ...]

    @property
    def name(self) -> str:
        """Name of the group in tables."""
        return f"{self.label} {self.keys}".rstrip()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (ddof 1) of n values; None if n is too small."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """A metric of a reader over a group's seeds, and the paired differences from a baseline, if there is one."""

    group: str
    reader: str
    metric: str
    value: Statistics
    baseline: str | None
    difference: Statistics | None


@dataclass(frozen=True)
class Sheet:
    """A table as text: title, header and rows of equal length; the first column names the group."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def group_runs(records: Sequence[RunRecord]) -> list[Group]:
    """Groups of runs of equal provenance and configuration, except the seed and keys that do not affect the result.

    Of several runs with the same seed, only one counts: the one with the most metrics, then the first.
    """
    held: dict[str, list[RunRecord]] = {}
    for record in records:
        held.setdefault(json.dumps(_deciding(record), sort_keys=True), []).append(record)
    labels = [dict.fromkeys(record.label for record in members) for members in held.values()]
    configs = [_deciding(members[0]) for members in held.values()]
    groups = []
    for mine, config, members in zip(labels, configs, held.values(), strict=True):
        siblings = [other for theirs, other in zip(labels, configs, strict=True) if mine.keys() & theirs.keys()]
        source = members[0].config.get(SOURCE)
        same_source = [
            other
            for other, (first, *_) in zip(configs, held.values(), strict=True)
            if first.config.get(SOURCE) == source
        ]
        # Differences in these keys are shown between all groups, in other keys only between groups of one label.
        compared = {"data": siblings + same_source, **dict.fromkeys(SETTINGS, configs)}
        every = dict.fromkeys([*(key for other in siblings for key in other), *compared])
        differ = [k for k in every if any(other.get(k) != config.get(k) for other in compared.get(k, siblings))]
        shown = {**config, **_shown_data(members[0])}
        keys = " ".join(_told(shown, key) for key in differ)
        groups.append(Group(" = ".join(mine), keys, config, *_by_seed(members)))
    return groups


def _told(config: Mapping[str, Any], key: str) -> str:
    return f"{key}={json.dumps(config.get(key)).replace(' ', '')}".replace('"', "")


def _deciding(record: RunRecord) -> dict[str, Any]:
    # A missing key, as in runs of earlier versions, counts as null.
    held = {key: value for key, value in record.config.items() if value is not None}
    held = {key: value for key, value in held.items() if key != SEED and not is_free(key)}
    if "data" in record.provenance:  # the digest identifies the data at these places
        held = {key: value for key, value in held.items() if key not in PLACE_KEYS and not is_unchanged(key, value)}
    return {**held, **record.provenance}


def _shown_data(record: RunRecord) -> dict[str, str]:
    """The source and the beginning of its digest, as one value."""
    digest = record.provenance.get("data")
    return {} if digest is None else {"data": f"{record.config.get(SOURCE)}@{digest[:8]}"}


def _by_seed(members: Sequence[RunRecord]) -> tuple[dict[int, RunRecord], tuple[RunRecord, ...]]:
    runs: dict[int, RunRecord] = {}
    for record in sorted(members, key=_metrics_there, reverse=True):
        runs.setdefault(record.config[SEED], record)
    used = {id(record) for record in runs.values()}
    return dict(sorted(runs.items())), tuple(record for record in members if id(record) not in used)


def _metrics_there(record: RunRecord) -> int:
    return sum(record.value(reader, metric) is not None for reader in record.readers for metric in DEFINITIONS)


def describe_values(values: Sequence[float | None]) -> Statistics:
    """Mean, standard deviation and number of the values that are not None."""
    there = [value for value in values if value is not None]
    mean = statistics.fmean(there) if there else None
    return Statistics(mean, statistics.stdev(there) if len(there) > 1 else None, len(there))


def paired_difference(group: Group, baseline: Group, reader: str, metric: str) -> Statistics:
    """Statistics of value minus baseline over the seeds that have both."""
    differences: list[float | None] = []
    for seed in group.runs.keys() & baseline.runs.keys():
        mine, theirs = (side.runs[seed].value(reader, metric) for side in (group, baseline))
        differences.append(None if mine is None or theirs is None else mine - theirs)
    return describe_values(differences)


def find_baseline(groups: Sequence[Group], group: Group, name: str) -> Group | None:
    """The group with this name, or the nearest of those that `PRESET [KEY=VALUE ...]` describes.

    These have the given group's recipe, data and training settings; the nearest differs from it in the fewest keys.
    None: there is no such group, or several are equally near.
    """
    exact = [other for other in groups if name in (other.name, *other.label.split(" = "))]
    if len(exact) == 1:
        return exact[0]
    preset, *values = name.split() or [""]
    recipes = {run.recipe for run in group.runs.values()}
    fits = [
        other
        for other in groups
        if any(run.preset == preset and run.recipe in recipes for run in other.runs.values())
        and all(_told(other.config, value.partition("=")[0]) == value for value in values)
        and not _differing(other.config, group.config) & {"data", *SETTINGS}
    ]
    far = [len(_differing(other.config, group.config)) for other in fits]
    return fits[far.index(min(far))] if far and far.count(min(far)) == 1 else None


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def summarise_groups(groups: Sequence[Group], baseline: str | None = None) -> list[Row]:
    """One row per reader, group and metric.

    Raises:
        ConfigError: no group has the baseline's name.
    """
    bases = {g.name: find_baseline(groups, g, baseline) if baseline is not None else None for g in groups}
    if baseline is not None and not any(bases.values()):
        allowed = f"{', '.join(map(repr, bases))}, or a preset of them [KEY=VALUE ...]"
        raise ConfigError("--baseline", f"is {baseline!r}; allowed: {allowed}")
    readers = dict.fromkeys(reader for group in groups for run in group.runs.values() for reader in run.readers)
    known = any(run.memory_bytes is not None for group in groups for run in group.runs.values())
    metrics = (*DEFINITIONS, *((MEMORY,) if known else ()))
    rows = []
    for reader in readers or ("classifier",):
        for group in groups:
            base = None if bases[group.name] is group else bases[group.name]
            for metric in metrics:
                value = describe_values([run.value(reader, metric) for run in group.runs.values()])
                compared = base is not None and metric != MEMORY
                difference = paired_difference(group, base, reader, metric) if base and compared else None
                rows.append(Row(group.name, reader, metric, value, base.name if base else None, difference))
    return rows


def sheets(rows: Sequence[Row]) -> list[Sheet]:
    """Per reader a table of values, and a table of differences if there are any: mean ± std (n), in per cent."""
    found = []
    for reader in dict.fromkeys(row.reader for row in rows):
        mine = [row for row in rows if row.reader == reader]
        metrics = tuple(metric.replace("_", " ") for metric in DEFINITIONS)
        memory = ("memory, kB",) if any(row.metric == MEMORY for row in mine) else ()
        lines: dict[str, list[str]] = {}
        compared: dict[str, list[str]] = {}
        for row in mine:
            if row.metric == MEMORY:
                lines[row.group].append("" if row.value.mean is None else f"{row.value.mean / 1000:.1f}")
                continue
            lines.setdefault(row.group, [row.group]).append(_cell(row.value))
            if row.difference is not None and row.baseline is not None:
                compared.setdefault(row.group, [row.group, row.baseline]).append(_cell(row.difference, sign="+"))
        title = (
            f"{reader}: top-1 accuracy in % on the test images of all classes: mean ± standard deviation over seeds (n)"
        )
        found.append(Sheet(title, ("group", *metrics, *memory), tuple(map(tuple, lines.values()))))
        if compared:
            title = f"{reader}: differences from the baseline, paired by seed, in points: mean ± standard deviation (n)"
            found.append(Sheet(title, ("group", "baseline", *metrics), tuple(map(tuple, compared.values()))))
    return found


def _cell(found: Statistics, sign: str = "") -> str:
    if found.mean is None:
        return ""
    spread = "" if found.std is None else f" ± {100 * found.std:.1f}"
    return f"{100 * found.mean:{sign}.1f}{spread} ({found.n})"


def definitions() -> list[str]:
    """Name and definition of every metric, one line each."""
    told = {**DEFINITIONS, "memory": MEMORY_DEFINITION}
    return [f"{metric.replace('_', ' ')}: {definition}" for metric, definition in told.items()]


def markdown(tables: Sequence[Sheet]) -> str:
    """The tables and the definitions as Markdown."""
    lines = ["# Results", ""]
    for table in tables:
        rows = [table.header, ("---",) + ("---:",) * (len(table.header) - 1), *table.rows]
        lines += [f"**{table.title}**", ""]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {line}" for line in definitions())]) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header: fractions in full precision, empty where undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        value, other = row.value, row.difference
        compared = ("", "", "") if other is None else (other.mean, other.std, other.n)
        numbers = (value.mean, value.std, value.n, row.baseline, *compared)
        writer.writerow((row.group, row.reader, row.metric, *numbers, DEFINITIONS.get(row.metric, MEMORY_DEFINITION)))
    return file.getvalue()
