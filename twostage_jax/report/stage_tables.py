"""The stages in the report: tree, runs, transfers, tuning, settings and versions."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from twostage_jax.report.artefacts import StageRecord
from twostage_jax.report.parts import Details, Node, Part, Text, Tree
from twostage_jax.report.study_table import Study, flat
from twostage_jax.report.tables import (
    NOTHING,
    Column,
    Table,
    arm_name,
    columns,
    file_name,
    plural,
)

Stages = Mapping[str, StageRecord]


def tree(study: Study, stages: Stages) -> Tree:
    """Returns the tree of stages, with each path once for all of its runs."""
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
    title = lineage["stage"]
    if origin := lineage.get("imported"):
        return Node(title, _imported(origin), children)
    data, train = lineage["data"], lineage["settings"].get("train", {})
    whole = [r for r in records if r.lineage["fraction"] == 1] or records
    scores = [r.lineage["scores"].get("balanced_accuracy") for r in whole]
    score = (
        f", balanced accuracy {100 * statistics.fmean(scores):.1f} % on its own test set"
        if None not in scores
        else ""
    )
    text = (
        f"{data.get('name', '?')}, data {str(data.get('fingerprint', '?'))[:12]}, "
        f"{len(data.get('class_names', ()))} classes, {train.get('steps', '?')} steps, "
        f"{plural(len(records), 'run')}{score}"
    )
    if arm:
        title += f" (arm {arm_name(arm)})"
    return Node(title, text, children)


def _imported(origin: Mapping[str, Any]) -> str:
    text = (
        f"imported from {origin['file']}, SHA-256 {origin['sha256'][:12]}, "
        f"licence {origin.get('licence') or 'not recorded'}, "
        f"{len(origin['names'])} arrays"
    )
    if origin["missing"]:
        # 'head' instead of 'params/head/kernel' and 'params/head/bias'.
        places = (place.split("/")[1:-1] for place in origin["missing"])
        text += f", without {', '.join(dict.fromkeys(map('/'.join, places)))}"
    return "; ".join([text, *origin["notes"]])


def stage_runs(stages: Stages) -> Table:
    """Returns every stage run with its lineage."""
    return Table(
        "stage_runs",
        "Every stage run, named by a hash of everything that determines its result.",
        [
            *columns("text", "folder", "chain of stages", "started from"),
            *columns("number", "seed", "fraction", "fold"),
            *columns("count", "train examples", "validation examples", "test examples"),
            Column("balanced accuracy", "percent"),
        ],
        [_stage_row(record) for record in stages.values()],
        "Balanced accuracy is on the stage's own test set, in per cent.",
    )


def _stage_row(record: StageRecord) -> list[Any]:
    lineage = record.lineage
    examples = lineage["data"].get("examples", {})
    first = (lineage.get("imported") or {}).get("file", "random parameters")
    return [
        record.name,
        record.path,
        [first, *lineage["chain"][:-1]][-1],
        *(lineage[key] for key in ("seed", "fraction", "fold")),
        *(examples.get(key) for key in ("train", "validation", "test")),
        lineage["scores"].get("balanced_accuracy"),
    ]


def transfers(stages: Stages) -> list[Part]:
    """Returns the transfer reports of each path, folded, without duplicates."""
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
            f"The same in {len(records)} runs; norms are those of the first, "
            f"{records[0].name}."
            if len(records) > 1
            else f"Run: {records[0].name}."
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
            *columns("text", "array", "action", "rule", "shape before", "shape after"),
            *columns("number", "norm before", "norm if fresh", "norm after"),
        ],
        [
            [
                *(row[key] for key in ("path", "action", "rule")),
                *(shape(row[key]) for key in ("source_shape", "target_shape")),
                *(row[key] for key in ("source_norm", "fresh_norm", "norm")),
            ]
            for row in rows
        ],
    )


def tuning(study: Study) -> list[Part]:
    """Returns the chosen and all tried settings, or nothing without tuning."""
    tried = [
        (record.place, one) for record in study.records.values() for one in record.tried
    ]
    if not any(one["settings"] for _, one in tried):
        return []
    chosen = {arm: collections.Counter() for arm in study.arms}
    counts = collections.defaultdict(set)
    for place, one in tried:
        counts[place].add(_tuned(one))
        chosen[place.arm][_tuned(one)] += bool(one.get("chosen"))
    names = dict.fromkeys(_tuned(one) for _, one in tried)
    grids = {len(found) for found in counts.values()}
    same = (
        f"every row tried the same {grids.pop()} settings"
        if len(grids) == 1
        else "rows tried different numbers of settings"
    )
    summary = Table(
        "tuning",
        "Number of times each setting was chosen per arm, on validation patients only.",
        [Column("setting"), *columns("count", *map(arm_name, study.arms))],
        [[name, *(chosen[arm][name] for arm in study.arms)] for name in names],
        f"All arms were tuned alike: {same}. {_choice(chosen)}",
    )
    return [summary, Details("All settings tried", [_tried(tried)])]


def _choice(chosen: Mapping[str, collections.Counter]) -> str:
    """Returns how the settings were chosen, inferred from the choices."""
    if any(len(+counts) > 1 for counts in chosen.values()):
        return "Each row, or each run folder, chose its own setting."
    return (
        "Each arm has one setting for the whole study: that with the highest mean "
        "balanced accuracy on validation patients over all its rows. With folds, these "
        "patients are test patients of other rows, equally for every arm."
    )


def _tried(tried: Sequence[tuple]) -> Table:
    return Table(
        "tried",
        "All settings tried, with their validation scores.",
        [
            Column("arm", "arm"),
            *columns("number", "seed", "fraction", "fold"),
            Column("setting"),
            Column("balanced accuracy", "percent"),
            Column("loss", "number"),
            Column("chosen"),
        ],
        [
            [
                *place,
                _tuned(one),
                (one.get("validation") or {}).get("balanced_accuracy"),
                (one.get("validation") or {}).get("loss"),
                "yes" if one.get("chosen") else "",
            ]
            for place, one in tried
        ],
        "Balanced accuracy in per cent.",
    )


def _tuned(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in one["settings"].items())


def settings_table(study: Study) -> Table:
    """Returns every setting."""
    return Table(
        "settings",
        "Every setting of the study.",
        columns("text", "setting", "value"),
        [[f"config.{key}", value] for key, value in flat(study.config).items()],
    )


def versions(stages: Stages) -> Table | None:
    """Returns the versions behind the stage runs; several if they differ."""
    found = collections.defaultdict(collections.Counter)
    for record in stages.values():
        for name, version in record.lineage["versions"].items():
            found[name][str(version)] += 1
    if not found:
        return None
    return Table(
        "versions",
        "Versions of the program and its libraries, and devices of the runs.",
        columns("text", "what", "version"),
        [[name, _counted(counts)] for name, counts in found.items()],
    )


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{version} ({n} runs)" for version, n in counts.items())
