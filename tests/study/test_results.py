"""From finished stage runs to rows: the chosen candidate, and examples for the report."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from basics import make_dataset
from small_study import datasets, parsed

from twostage_jax import config as configs
from twostage_jax import io
from twostage_jax.study import artifacts, plan, results
from twostage_jax.study.stage import Materials

GRID = (("optim.learning_rate", (0.1, 0.2, 0.3)),)


def trained(folder, rows, scores):
    """Materials of rows whose candidates have validation scores (accuracy, loss)."""
    config, made, _ = rows
    materials = Materials(config, made, folder)
    for row, of_row in zip(rows[2], scores, strict=True):
        for run, (accuracy, loss) in zip(row.candidates, of_row, strict=True):
            lineage = {
                "validation": {
                    "validation_balanced_accuracy": accuracy,
                    "validation_loss": loss,
                },
                "scores": {"balanced_accuracy": 1 - accuracy},
                "data": {"examples": {"train": 9, "test": 6}, "groups": None},
                "chain": [one.folder_name for one in run.chain],
            }
            io.write_json(materials.folder(run) / "lineage.json", lineage)
            np.savez(materials.folder(run) / "predictions.npz", accuracy=accuracy)
    return materials


def of_one_arm(**settings):
    """The settings, the data and the rows of a study of one arm."""
    config = parsed(**{"study.grid": GRID, "study.arms": ("scratch",), **settings})
    made = datasets()
    return config, made, plan.rows(config, made)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 1),  # More balanced accuracy.
        ([(0.7, 1.0), (0.7, 0.9), (0.6, 0.1)], 1),  # At a tie, less loss.
        ([(0.7, 0.9), (0.7, 0.9), (0.7, 0.9)], 0),  # Then the first of the grid.
    ],
)
def test_choice_looks_at_validation_alone(tmp_path, scores, chosen):
    study = of_one_arm()
    (row,) = study[2]
    materials = trained(tmp_path, study, [scores])
    assert results.chosen_runs(materials, [row])[row.name] is row.candidates[chosen]


def test_an_arm_has_one_setting_for_all_its_rows(tmp_path):
    study = of_one_arm(**{"study.seeds": (0, 1)})
    # Row by row the first and the last would be chosen; on average it is the second.
    scores = [
        [(0.80, 1.0), (0.79, 1.0), (0.6, 1.0)],
        [(0.60, 1.0), (0.79, 1.0), (0.8, 1.0)],
    ]
    materials = trained(tmp_path, study, scores)
    found = results.collect(materials, study[2])
    chosen = [[one["chosen"] for one in row["tried"]] for row in found["rows"]]
    assert chosen == [[False, True, False]] * 2
    for row in found["rows"]:
        assert np.load(tmp_path / row["predictions"])["accuracy"] == 0.79
    # A run of the second seed alone knows of the first, and chooses as before.
    again = results.collect(materials, study[2][1:])
    assert again["rows"] == found["rows"]
    # Rows whose stage runs were removed since then stay.
    for run in study[2][0].candidates:
        (materials.folder(run) / "lineage.json").unlink()
    kept = results.collect(materials, study[2][1:])["rows"]
    assert kept[0] == found["rows"][0] and len(kept) == 2


def test_the_primary_endpoint_is_part_of_the_protocol(tmp_path):
    digests = set()
    for number, metric in enumerate(("accuracy", "macro_f1")):
        study = of_one_arm(**{"study.primary": ("natural", "scratch", metric)})
        folder = tmp_path / str(number)
        scores = [[(0.7, 1.0)] * 3]
        found = results.collect(trained(folder, study, scores), study[2])
        assert found["config"]["study"]["primary"] == ["natural", "scratch", metric]
        digests.add(found["protocol"])
    assert len(digests) == 2


def test_mistakes_are_of_the_largest_fraction_alone(tmp_path):
    config = parsed(**{"study.fractions": (1.0, 0.5), "study.arms": ("texture",)})
    made = datasets()
    rows = plan.rows(config, made)
    materials = trained(tmp_path, (config, made, rows), [[(0.5, 1.0)]] * len(rows))
    for row in rows:
        # All are said to be of class 0, with less confidence at a half.
        said = np.eye(3)[np.zeros(6, int)]
        np.savez(
            materials.folder(row.candidates[0]) / "predictions.npz",
            ids=made["target"].ids[:6],
            probabilities=said if row.fraction == 1 else said[:, ::-1],
        )
    results.collect(materials, rows)
    results.save_examples(materials, rows)
    with np.load(tmp_path / "examples" / "mistakes.npz") as saved:
        assert set(saved["arm"]) == {"texture"}
        assert len(saved["ids"]) == (made["target"].labels[:6] != 0).sum()
        np.testing.assert_array_equal(saved["probabilities"][:, 0], 1)
    names = {path.stem for path in (tmp_path / "examples").glob("*.npz")}
    assert names == {"texture", "target", "mistakes"} | set(made)


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


def test_ablations_keep_the_last_checkpoint_whatever_the_settings_say():
    # In a process of its own: the script defines flags.
    code = (
        "import sys\n"
        "sys.path[:0] = ['experiments', 'tests/study', 'tests/helpers', 'tests']\n"
        "import ablations\n"
        "from small_study import parsed\n"
        "config = parsed(**{f'stages.{stage}.train.select': 'best' "
        "for stage in ('natural', 'texture', 'target')})\n"
        "for change in ({}, {'texture': {'train.steps': '* 2'}}):\n"
        "    stages = ablations.changed(config, change).stages.values()\n"
        "    assert {stage.train.select for stage in stages} == {'last'}, change\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


WINDOW = (-600.0, 1500.0)


def test_each_class_shows_examples_spread_over_the_set():
    shown = results.of_each_class(make_dataset(count=60), WINDOW)
    assert shown["labels"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert shown["class_names"].tolist() == ["a", "b", "c"]
    # Class 0 has the examples 0, 3, ..., 57: the first and the last are among them.
    made = make_dataset(count=60)
    np.testing.assert_array_equal(shown["images"][0], made.images[0])
    np.testing.assert_array_equal(shown["images"][7], made.images[57])


def test_a_small_class_shows_each_example_once():
    shown = results.of_each_class(make_dataset(count=7), WINDOW)
    assert shown["labels"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert len(np.unique(shown["images"], axis=0)) == 7


def save(path, dataset, indices, right):
    """Writes predictions in which the true class has the probabilities `right`."""
    indices = np.asarray(indices)
    probabilities = np.zeros((len(indices), 3))
    rows = np.arange(len(indices))
    labels = dataset.labels[indices]
    probabilities[rows, labels] = right
    probabilities[rows, (labels + 1) % 3] = 1 - np.asarray(right)
    artifacts.save_predictions(path, dataset, indices, probabilities)
    return path


def test_worst_mistakes_are_the_most_confident_over_all_seeds(tmp_path):
    dataset = make_dataset(count=9, groups=np.array([f"p{i}" for i in range(9)]))
    # Example 4: wrong for one seed, right in the mean. 5 is wrong, 7 is worse.
    one = save(tmp_path / "0.npz", dataset, [4, 5, 7], [0.2, 0.4, 0.1])
    two = save(tmp_path / "1.npz", dataset, [7, 5, 4], [0.3, 0.2, 0.9])
    other = save(tmp_path / "2.npz", dataset, [4, 5, 7], [0.1, 0.9, 0.9])
    found = results.worst_mistakes(
        dataset,
        WINDOW,
        [("mine", one), ("mine", two), ("theirs", other)],
    )
    assert found["arm"].tolist() == ["mine", "mine", "theirs"]
    assert found["ids"].tolist() == ["example0007", "example0005", "example0004"]
    assert found["groups"].tolist() == ["p7", "p5", "p4"]
    assert found["labels"].tolist() == [1, 2, 1]
    np.testing.assert_allclose(found["probabilities"][0], [0, 0.2, 0.8])
    np.testing.assert_allclose(found["probabilities"][1], [0.7, 0, 0.3])
    np.testing.assert_array_equal(found["images"], dataset.images[[7, 5, 4]])


def test_a_dozen_mistakes_are_shown_and_none_is_no_error(tmp_path):
    dataset = make_dataset(count=15)
    wrong = save(tmp_path / "0.npz", dataset, range(15), np.linspace(0.1, 0.4, 15))
    right = save(tmp_path / "1.npz", dataset, range(15), np.full(15, 0.9))

    def found(path):
        return results.worst_mistakes(dataset, WINDOW, [("arm", path)])

    assert found(wrong)["ids"].tolist() == [f"example{i:04d}" for i in range(12)]
    assert found(wrong)["groups"].tolist() == [""] * 12
    assert found(right)["images"].shape == (0, 8, 8, 1)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 7, 255], np.uint8, [0, 7, 255]),
        # Centre -600, width 1500: from -1350 to 150 HU.
        ([-2000, -1350, -600, 150, 900], np.int16, [0, 0, 128, 255, 255]),
        ([-0.5, 0.0, 0.2, 1.0], np.float32, [0, 0, 51, 255]),
    ],
)
def test_images_are_shown_as_8_bit_through_the_window(values, dtype, expected):
    images = np.array(values, dtype).reshape(-1, 1, 1, 1)
    shown = results.shown(images, WINDOW)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown.ravel(), expected)


def test_examples_on_disk_are_read_one_class_at_a_time():
    """A random-access source has indices, not slices."""

    class Source:
        def __init__(self, images):
            self.images, self.shape, self.dtype = images, images.shape, images.dtype

        def __getitem__(self, indices):
            return self.images[np.asarray(indices)]

    dataset = make_dataset()
    lazy = dataclasses.replace(dataset, images=Source(dataset.images))
    one = results.of_each_class(dataset, WINDOW)
    other = results.of_each_class(lazy, WINDOW)
    np.testing.assert_array_equal(one["images"], other["images"])
