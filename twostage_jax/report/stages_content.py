"""The tree of stages, transfer reports, tuning choices, settings and versions."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from twostage_jax.report.artefacts import StageRecord
from twostage_jax.report.figures import file_name
from twostage_jax.report.formats import NOTHING, Column, Table, show
from twostage_jax.report.joining import Study, flat
from twostage_jax.report.parts import Details, Node, Part, Text, Tree

Stages = Mapping[str, StageRecord]


def tree(study: Study, stages: Stages) -> Tree:
    """Returns the tree of stages: each path once, whatever the number of its runs."""
    by_path: dict[str, list[StageRecord]] = {}
    for record in stages.values():
        by_path.setdefault(record.path, []).append(record)
    arms = {" > ".join(chain): arm for arm, chain in study.arms.items()}

    def below(path: str) -> list[Node]:
        depth = path.count(" > ") + 1 if path else 0
        start = f"{path} > " if path else ""
        paths = [p for p in by_path if p.startswith(start) and p.count(" > ") == depth]
        return [_node(p, by_path[p], arms.get(p), below(p)) for p in paths]

    return Tree(below(""))


def _node(
    path: str, records: Sequence[StageRecord], arm: str | None, children: list[Node]
) -> Node:
    lineage = records[0].lineage
    data, train = lineage["data"], lineage["settings"].get("train", {})
    whole = [r for r in records if r.lineage["fraction"] == 1] or records
    scores = [r.lineage["scores"].get("balanced_accuracy") for r in whole]
    score = (
        f", balanced accuracy {100 * statistics.fmean(scores):.1f} % on its own test set"
        if None not in scores
        else ""
    )
    count = len(records)
    text = (
        f"{data.get('name', '?')}, data {str(data.get('fingerprint', '?'))[:12]}, "
        f"{len(data.get('class_names', ()))} classes, {train.get('steps', '?')} steps, "
        f"{count} run{'s' if count > 1 else ''}{score}"
    )
    title = lineage["stage"]
    if arm:
        title += f" (arm {show('arm', arm)})"
    return Node(title, text, children)


def stage_runs(stages: Stages) -> Table:
    """Returns every stage run with its lineage."""
    return Table(
        "stage_runs",
        "Every stage run. A run is named by a hash of all that determines its result.",
        [
            Column("folder"),
            Column("chain of stages"),
            Column("started from"),
            *(Column(name, "number") for name in ("seed", "fraction", "fold")),
            *(
                Column(f"{name} examples", "count")
                for name in ("train", "validation", "test")
            ),
            Column("balanced accuracy", "percent"),
        ],
        [_stage_row(record) for record in stages.values()],
        "Balanced accuracy is on the stage's own test set, in per cent.",
    )


def _stage_row(record: StageRecord) -> list[Any]:
    lineage = record.lineage
    chain, examples = lineage["chain"], lineage["data"].get("examples", {})
    return [
        record.name,
        record.path,
        chain[-2] if len(chain) > 1 else "random parameters",
        *(lineage[key] for key in ("seed", "fraction", "fold")),
        *(examples.get(key) for key in ("train", "validation", "test")),
        lineage["scores"].get("balanced_accuracy"),
    ]


def transfers(stages: Stages) -> list[Part]:
    """Returns the transfer report of each path, folded; runs that did the same once."""
    groups: dict[tuple, list[StageRecord]] = {}
    for record in stages.values():
        if record.transfer:
            done = tuple(
                (row["path"], row["action"], str(row["target_shape"]))
                for row in record.transfer.get("rows", ())
            )
            groups.setdefault((record.path, done), []).append(record)
    parts: list[Part] = []
    for number, ((path, _), records) in enumerate(groups.items()):
        same = (
            f"{len(records)} runs did the same; norms are those of the first, "
            f"{records[0].name}."
            if len(records) > 1
            else f"Of {records[0].name}."
        )
        report = records[0].transfer
        text = " ".join([_summary(report["rows"], report.get("unused", ())), same])
        table = _transfer(f"transfer_{number}_{file_name(path)}", path, report["rows"])
        notes = [Text(str(note)) for note in report.get("notes", ())]
        parts.append(Details(f"Into {path}", [Text(text), *notes, table], True))
    return parts


def _summary(rows: Sequence[Mapping[str, Any]], unused: Sequence[str]) -> str:
    counts = collections.Counter(row["action"] for row in rows)
    fresh = [row["path"] for row in rows if row["action"] == "init"]
    done = ", ".join(f"{action} {count}" for action, count in counts.items())
    text = f"Arrays by action: {done}."
    if fresh:
        text += f" Re-initialised: {', '.join(fresh)}."
    return text + (f" Unused: {', '.join(map(str, unused))}." if unused else "")


def _transfer(name: str, path: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    def shape(value: Sequence[int] | None) -> str:
        return NOTHING if value is None else " × ".join(map(str, value))

    return Table(
        name,
        f"Transfer into {path}, array by array.",
        [
            Column("array"),
            Column("action"),
            Column("rule"),
            Column("shape before"),
            Column("shape after"),
            Column("norm before", "number"),
            Column("norm if fresh", "number"),
            Column("norm after", "number"),
        ],
        [
            [
                row["path"],
                row["action"],
                row["rule"],
                shape(row["source_shape"]),
                shape(row["target_shape"]),
                row["source_norm"],
                row["fresh_norm"],
                row["norm"],
            ]
            for row in rows
        ],
    )


def tuning(study: Study) -> list[Part]:
    """Returns what the tuning chose, and all that it tried, or nothing."""
    tried = [
        (record.place, one) for record in study.records.values() for one in record.tried
    ]
    if not any(one["settings"] for _, one in tried):
        return []
    chosen: dict[str, collections.Counter] = {}
    counts: dict[tuple, set] = {}
    for place, one in tried:
        counts.setdefault(place, set()).add(_settings(one))
        if one.get("chosen"):
            chosen.setdefault(place.arm, collections.Counter())[_settings(one)] += 1
    settings = list(dict.fromkeys(_settings(one) for _, one in tried))
    grids = {len(found) for found in counts.values()}
    same = (
        f"every row tried the same {grids.pop()} settings"
        if len(grids) == 1
        else "rows tried different numbers of settings"
    )
    summary = Table(
        "tuning",
        "How often each setting was chosen for an arm, on validation patients only.",
        [Column("setting"), *(Column(show("arm", a), "count") for a in study.arms)],
        [
            [name, *(chosen.get(a, {}).get(name, 0) for a in study.arms)]
            for name in settings
        ],
        f"Every arm got the same tuning: {same}. {_choice(chosen)}",
    )
    return [summary, Details("All that was tried", [_tried(tried)])]


def _choice(chosen: Mapping[str, collections.Counter]) -> str:
    """Returns how the settings were chosen, by what was chosen."""
    if any(len(counts) > 1 for counts in chosen.values()):
        return "Each row, or each run folder, chose its own setting."
    return (
        "Each arm has one setting for the whole study, of the highest mean balanced "
        "accuracy on validation patients over all its rows. With folds, these patients "
        "are test patients of other rows, for every arm alike."
    )


def _tried(tried: Sequence[tuple]) -> Table:
    return Table(
        "tried",
        "Every setting that was tried, with its score on validation.",
        [
            Column("arm", "arm"),
            *(Column(name, "number") for name in ("seed", "fraction", "fold")),
            Column("setting"),
            Column("balanced accuracy", "percent"),
            Column("loss", "number"),
            Column("chosen"),
        ],
        [
            [
                *place,
                _settings(one),
                (one.get("validation") or {}).get("balanced_accuracy"),
                (one.get("validation") or {}).get("loss"),
                "yes" if one.get("chosen") else "",
            ]
            for place, one in tried
        ],
        "Balanced accuracy in per cent.",
    )


def _settings(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in one["settings"].items())


def settings(study: Study) -> Table:
    """Returns every setting."""
    return Table(
        "settings",
        "Every setting of the study.",
        [Column("setting"), Column("value")],
        [[f"config.{key}", value] for key, value in flat(study.config).items()],
    )


def versions(stages: Stages) -> Table | None:
    """Returns the versions that made the stage runs; several where they differ."""
    found: dict[str, collections.Counter] = {}
    for record in stages.values():
        for name, version in record.lineage["versions"].items():
            found.setdefault(name, collections.Counter())[str(version)] += 1
    if not found:
        return None
    return Table(
        "versions",
        "Versions of the program, the libraries and the devices that made the runs.",
        [Column("what"), Column("version")],
        [
            [
                name,
                next(iter(counts))
                if len(counts) == 1
                else "; ".join(f"{v} ({n} runs)" for v, n in counts.items()),
            ]
            for name, counts in found.items()
        ],
    )
