"""The model card of exported weights: Markdown with a Hugging Face header.

Names of classes, data sets and arms come from files, so all text is escaped: for
Markdown, and in the header, whose values are JSON, which is valid YAML.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from twostage_jax.config import TARGET, AugmentConfig
from twostage_jax.errors import UserError, plain
from twostage_jax.notices import NOTICE, ORIGINS
from twostage_jax.report import score_tables, study_table, tables
from twostage_jax.report.analysis import METRIC, Scores, of_arms
from twostage_jax.report.artefacts import StageRecord, stage_record
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import COLUMNS, Column, Table, arm_name, columns
from twostage_jax.stats.intervals import RESAMPLES


def page(
    folder: Path,
    arm: str,
    weights: str,
    pytorch: str,
    licence: str = "",
    spacing: float | None = None,
) -> str:
    """Returns the card of a stage run.

    Args:
      folder: Folder of the stage run, in `stages/` of a study's workdir or elsewhere.
      arm: Arm whose last stage it is, or its chain of stages.
      weights: Name of the weights file.
      pytorch: Expression that builds the network in PyTorch, or '' (`Network.pytorch`).
      licence: Licence of the weights, or '' if it is not stated.
      spacing: mm per pixel that CT slices were resampled to, 0 if they were not; None =
        unknown, or not CT.

    Raises:
      UserError: The lineage of the stage run, or of an earlier stage, is damaged.
    """
    record = stage_record(folder)
    chain, unknown = _before(folder, record)
    study, scores, reason = _scores(folder, arm, record)
    lineage = record.lineage
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("twostage_jax.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": tables.escape, "yaml": _yaml, "numbers": _numbers}
    return environment.get_template("card.md.jinja").render(
        name=study.name if study else folder.name,
        arm=arm_name(arm) if study else arm,
        lineage=lineage,
        data=lineage["data"],
        settings=lineage["settings"]["data"],
        model=lineage["model"],
        windows=_windows(lineage),
        averaged=AugmentConfig.stored(lineage["settings"]),
        notice=NOTICE,
        origin=ORIGINS[lineage["data"].get("synthetic")],
        stages=tables.markdown(_stages([*chain, record])),
        unknown=unknown,
        folds=study.config["study"]["folds"] if study else 0,
        spacing=spacing,
        imported=_origins(chain),
        scores=scores and tables.markdown(_table(scores, arm)),
        reason=reason,
        index=_index(arm, lineage, scores),
        how=scores and score_tables.how(scores),
        margin=scores and _margin(scores, arm),
        weights=weights,
        licence=licence,
        pytorch=pytorch,
        build=_build(lineage),
    )


def origins(folder: Path) -> list[dict[str, str | None]]:
    """Returns the weights files that a stage run started from, with those of the files.

    Returns:
      'file', 'sha256' and 'licence' (None if not recorded) of each.
    """
    return _origins(_before(folder, stage_record(folder))[0])


def _origins(chain: Sequence[StageRecord]) -> list[dict[str, str | None]]:
    found = [one.lineage["imported"] for one in chain if "imported" in one.lineage]
    return [
        {name: origin.get(name) for name in ("file", "sha256", "licence")}
        for told in found
        # Earlier versions did not record the second.
        for origin in (told, *told.get("started_from", ()))
    ]


def _before(folder: Path, record: StageRecord) -> tuple[list[StageRecord], list[str]]:
    """Returns the earlier stage runs of a chain, and the names of those not at hand."""
    *before, _ = (folder.parent / Path(name).name for name in record.lineage["chain"])
    here = [home for home in before if (home / "lineage.json").is_file()]
    unknown = [home.name for home in before if home not in here]
    return [stage_record(home) for home in here], unknown


def _scores(
    folder: Path, arm: str, record: StageRecord
) -> tuple[Study | None, Scores | None, str]:
    """Returns the study of a run, and scores of its arm and baselines or a reason."""
    workdir = folder.absolute().parent.parent
    if not (workdir / "results.json").is_file():
        return None, None, "The weights do not belong to a study."
    try:
        study = study_table.load([workdir])
        fraction = record.lineage["fraction"]
        arms, seeds = study.complete(fraction)
        # A source stage may have the name of an arm.
        ends = record.lineage["stage"] == TARGET and arm in arms
        if not ends or not seeds:
            return (
                study,
                None,
                "This is not the last stage of a complete arm of the study.",
            )
        names = (arm, *study.whole_baselines(fraction, seeds))
        predictions = {
            name: [study.joined(name, seed, fraction) for seed in seeds]
            for name in names
        }
        scores = of_arms(predictions, RESAMPLES, named=tuple(COLUMNS))
    except UserError as error:
        return None, None, str(error)
    return study, scores, ""


def _best(scores: Scores, arm: str) -> str | None:
    """Returns the baseline with the highest score, or None."""
    found = {k: v.estimate for k, v in scores.intervals[METRIC].items() if k != arm}
    return max(found, key=found.__getitem__) if found else None


def _table(scores: Scores, arm: str) -> Table:
    best = _best(scores, arm)
    rows = {arm: arm_name(arm)}
    if best:
        rows[best] = f"best of {len(scores.arms) - 1} baselines: {arm_name(best)}"
    return Table(
        "scores",
        f"Scores in per cent with 95 % intervals, {score_tables.over_seeds(scores)}.",
        [Column("arm"), *columns("score", *COLUMNS.values())],
        [
            [title, *(scores.intervals[metric].get(name) for metric in COLUMNS)]
            for name, title in rows.items()
        ],
    )


def _margin(scores: Scores, arm: str) -> str:
    """Returns the arm minus the best baseline, in points."""
    best = _best(scores, arm)
    return Column("", "points").show(scores.minus(best)[arm]) if best else ""


def _stages(chain: Sequence[StageRecord]) -> Table:
    def row(record: StageRecord) -> list[Any]:
        lineage, data = record.lineage, record.lineage["data"]
        imported = lineage.get("imported")
        before = lineage["chain"][:-1]
        return [
            lineage["stage"],
            data["name"],
            data.get("examples", {}).get("train"),
            (data.get("groups") or {}).get("train"),
            len(data["class_names"]) or None,
            None if imported else lineage["settings"].get("train", {}).get("steps"),
            f"not trained here: {imported['file']}"
            if imported
            else before[-1] if before else "random parameters",
        ]  # fmt: skip

    return Table(
        "stages",
        "Stages, in the order of training.",
        [
            *columns("text", "stage", "data set"),
            *columns(
                "count", "training images", "patients or groups", "classes", "steps"
            ),
            Column("started from"),
        ],
        [row(record) for record in chain],
    )


def _windows(lineage: Mapping[str, Any]) -> list[tuple[float, float]] | None:
    """Returns the lowest HU and the width of each window; None if not in HU."""
    if lineage["data"].get("units") != "hu":
        return None
    window = lineage["settings"]["data"]["window"]
    pairs = zip(window[::2], window[1::2], strict=True)
    return [(centre - width / 2, width) for centre, width in pairs]


def _build(lineage: Mapping[str, Any]) -> str:
    """Returns the call of `models.build` that builds the network."""
    model = lineage["model"]
    given = {name: model.get(name) for name in ("norm", "head") if model.get(name)}
    if model.get("dtype", "float32") != "float32":
        given["dtype"] = model["dtype"]
    classes = len(lineage["data"]["class_names"])
    options = "".join(f", {name}={value!r}" for name, value in given.items())
    return f"models.build({model['name']!r}, num_classes={classes}{options})"


def _index(
    arm: str, lineage: Mapping[str, Any], scores: Scores | None
) -> list[dict[str, Any]]:
    """Returns the scores of these weights in the format of Hugging Face's model index.

    They are those of this one network, not the means over seeds and folds.
    """
    if scores is None:
        return []
    data = plain(str(lineage["data"]["name"]))
    metrics = [
        {"type": name, "name": title, "value": round(own, 4)}
        for name, title in COLUMNS.items()
        if (own := lineage["scores"].get(name)) is not None
    ]
    task = {"type": "image-classification"}
    result = {"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics}
    return [{"name": plain(arm), "results": [result]}]


def _yaml(value: Any) -> str:
    """Returns a value as one line of printable JSON, which is valid YAML."""
    return plain(json.dumps(value, ensure_ascii=False))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
