"""From finished stage runs to rows: which candidate is chosen."""

import pytest
from test_plan import datasets, parsed

from twostage_jax import config as configs
from twostage_jax import plan, results, runtime
from twostage_jax.stage import Materials


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 1),  # More balanced accuracy.
        ([(0.7, 1.0), (0.7, 0.9), (0.6, 0.1)], 1),  # At a tie, less loss.
        ([(0.7, 0.9), (0.7, 0.9), (0.7, 0.9)], 0),  # Then the first of the grid.
    ],
)
def test_choice_looks_at_validation_alone(tmp_path, scores, chosen):
    grid = (("optim.learning_rate", (0.1, 0.2, 0.3)),)
    config, made = parsed(**{"study.grid": grid}), datasets()
    row = plan.rows(config, made)[0]
    materials = Materials(config, made, {}, tmp_path)
    for run, (accuracy, loss) in zip(row.candidates, scores, strict=True):
        told = {
            "validation": {
                "validation_balanced_accuracy": accuracy,
                "validation_loss": loss,
            },
            "scores": {"balanced_accuracy": 1 - accuracy},
        }
        runtime.write_json(materials.folder(run) / "lineage.json", told)
    assert results.chosen_run(materials, row) is row.candidates[chosen]


def test_grid_is_every_combination_first_setting_slowest():
    config = parsed(
        **{
            "study.grid": (
                ("optim.learning_rate", (0.1, 0.2)),
                ("train.label_smoothing", (0.0, 0.3)),
            )
        }
    )
    names = "optim.learning_rate", "train.label_smoothing"
    assert configs.grid(config.study) == [
        tuple(zip(names, place, strict=True))
        for place in [(0.1, 0.0), (0.1, 0.3), (0.2, 0.0), (0.2, 0.3)]
    ]
    assert configs.grid(parsed().study) == [()]
