"""Folds put together: one row for each arm, fraction and seed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage_jax.errors import UserError
from twostage_jax.report.load import read_arrays
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions, joined


def by_seed(
    workdir: Path, rows: Sequence[Mapping[str, Any]], folds: int
) -> list[dict[str, Any]]:
    """Returns a row for each (arm, fraction, seed), for `tables.results_table`.

    The scores are of the test examples of all folds together, as in the report. A mean
    of the scores of folds would be another number: a class may be absent in a fold.

    Args:
      workdir: The run folder, which holds the predictions of the rows.
      rows: As in `results.json`.
      folds: Their number; 0 or 1 for none, and then no predictions are read.

    Returns:
      Rows with 'arm', 'fraction', 'seed', 'n_train' (a list, of each fold), 'n_test'
      (over all folds), 'metrics', and 'lacks': the folds that are not there. Where
      there are such, 'metrics' is empty.

    Raises:
      UserError: Predictions are missing or damaged, or folds do not belong together.
    """
    if folds < 2:
        return [{**row, "n_train": [row["n_train"]], "lacks": []} for row in rows]
    places: dict[tuple, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        places[row["arm"], row["fraction"], row["seed"]][row["fold"]] = row
    pooled = []
    for (arm, fraction, seed), there in places.items():
        lacks = [fold for fold in range(folds) if fold not in there]
        pooled.append(
            {
                "arm": arm,
                "fraction": fraction,
                "seed": seed,
                "n_train": [row["n_train"] for row in there.values()],
                "n_test": sum(row["n_test"] for row in there.values()),
                "metrics": {} if lacks else _scores(workdir, list(there.values())),
                "lacks": lacks,
            }
        )
    return pooled


def _scores(workdir: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    parts = []
    for row in rows:
        names = ("ids", "labels", "probabilities")
        saved = read_arrays(workdir / row["predictions"], names)
        parts.append(Predictions(groups=None, seed=row["seed"], **saved))
    try:
        whole = joined(parts)
        matrix = metrics.confusion(whole.labels, whole.probabilities)
    except UserError as error:
        raise UserError(f"{workdir / rows[0]['predictions']}: {error}") from None
    return metrics.of_counts(matrix)
