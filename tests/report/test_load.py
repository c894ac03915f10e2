"""Run folders that form one study, and clear errors for those that do not."""

import json
import shutil

import numpy as np
import pytest
import study_files
from basics import refused_at
from study_files import (
    CLASSES,
    read_results,
    reported,
    write_results,
    write_study,
)

from twostage_jax.report import analysis, study_table
from twostage_jax.report.artefacts import gather
from twostage_jax.report.study_table import Place, flat
from twostage_jax.stats import metrics

SMALL = {"patients": 6, "patches": 6}
CHANCES = {"scratch": 0.7, "two_stage": 0.8}


@pytest.fixture
def run(tmp_path):
    return write_study(tmp_path / "a", CHANCES, **SMALL)


def refused(*folders, where):
    """Returns the message of the refusal, one line, to join the folders."""
    with refused_at(where) as error:
        study_table.load(folders)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder, change):
    results = read_results(folder)
    change(results)
    write_results(folder, results.pop("config"), results.pop("rows"), **results)


def edit_arrays(path, **changes):
    """Changes arrays of a file of predictions; returns them as they were."""
    with np.load(path) as saved:
        arrays = {key: saved[key] for key in saved.files}
    np.savez(path, **(arrays | changes))
    return arrays


def test_rows_come_with_their_predictions_sorted_by_id(run):
    study = study_table.load([run])
    assert list(study.arms) == ["scratch", "two_stage"]
    assert study.missing == () and study.class_names == CLASSES
    found = study.records[Place("scratch", 1, 1.0, 0)]
    saved = np.load(run / "predictions" / "scratch-seed1-fraction1-fold0.npz")
    order = np.argsort(saved["ids"])
    np.testing.assert_array_equal(found.predictions.labels, saved["labels"][order])
    assert found.n_train == 1600 and found.predictions.seed == 1


def test_folders_with_other_seeds_are_joined(run, tmp_path):
    other = write_study(tmp_path / "b", CHANCES, seeds=(3, 4), **SMALL)
    study = study_table.load([run, other])
    assert study.seeds == (0, 1, 2, 3, 4) and len(study.records) == 10
    assert study.complete(1.0) == (("scratch", "two_stage"), (0, 1, 2, 3, 4))


def test_the_same_rows_in_two_folders_count_once(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert len(study_table.load([run, copy]).records) == 6
    # As is the same folder given twice.
    assert len(study_table.load([run, run]).records) == 6


def test_missing_rows_are_named_and_their_seed_is_left_out(run):
    edit(run, lambda results: results["rows"].pop())
    study = study_table.load([run])
    assert study.missing == (Place("two_stage", 2, 1.0, 0),)
    assert study.complete(1.0) == (("scratch", "two_stage"), (0, 1))
    report, found = reported(study)
    assert found.full.scores.seeds == (0, 1)
    assert any(
        "Missing rows: two_stage (seed 2, fraction 1, fold 0)." in text
        for text in report.warnings
    )
    assert any("seeds 2." in text for text in report.warnings)


def test_a_fold_that_is_missing_takes_its_seed_with_it(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, folds=2, **SMALL)
    edit(run, lambda results: results["rows"].pop(0))
    study = study_table.load([run])
    assert study.missing == (Place("scratch", 0, 1.0, 0),)
    assert study.complete(1.0)[1] == (1, 2)


def test_nothing_is_reported_without_one_whole_seed(run):
    edit(run, lambda r: r.update(rows=[x for x in r["rows"] if x["arm"] == "scratch"]))
    study = study_table.load([run])
    # The other arm is left out, by name; alone it can still be described.
    assert study.complete(1.0)[0] == ("scratch",)
    edit(run, lambda r: r["config"]["study"].update(folds=2))
    with refused_at(run):
        analysis.analyse(study_table.load([run]))


def test_folds_are_put_together_and_test_every_patient_once(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, folds=3, **SMALL)
    study = study_table.load([run])
    joined = study.joined("scratch", 0, 1.0)
    assert len(np.unique(joined.ids)) == 36 and len(np.unique(joined.groups)) == 6


def test_how_often_states_are_saved_does_not_part_folders(run, tmp_path):
    train = {"steps": 400, "save_every": 7}
    other = write_study(tmp_path / "b", CHANCES, seeds=(3,), train=train, **SMALL)
    assert len(study_table.load([run, other]).seeds) == 4


OTHER_CHAIN = {**study_files.ARMS, "two_stage": ["texture", "natural", "target"]}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (
            {"optim": {"learning_rate": 0.004}},
            ["stages.target.optim.learning_rate (0.002 and 0.004)", "/a", "/b"],
        ),
        (
            {"chances": {**CHANCES, "scratch": 0.5}, "seeds": (0, 1, 2)},
            ["scratch (seed 0, fraction 1, fold 0)", "/a", "/b"],
        ),
        (
            {"classes": ("x", "y", "z")},
            ["healthy, ground glass, nodular", "x, y, z"],
        ),
        ({"arms": OTHER_CHAIN}, ["'two_stage'", "texture > natural > target"]),
    ],
)
def test_folders_that_do_not_belong_together_are_refused(run, tmp_path, changes, facts):
    settings = {"chances": CHANCES, "seeds": (3,), **SMALL, **changes}
    other = write_study(tmp_path / "b", **settings)
    message = refused(run, other, where=other)
    assert all(fact in message for fact in facts)


def test_folders_trained_on_other_data_are_refused(run, tmp_path):
    other = write_study(tmp_path / "b", CHANCES, seeds=(3,), **SMALL)
    edit(run, lambda results: results.update(data={"natural": "aa", "target": "cc"}))
    edit(other, lambda results: results.update(data={"natural": "bb", "target": "cc"}))
    assert "natural" in refused(run, other, where=other)
    # Its arms may do without a stage.
    edit(other, lambda results: results.update(data={"target": "cc"}))
    assert len(study_table.load([run, other]).workdirs) == 2


def test_folders_of_another_protocol_are_refused(run, tmp_path):
    other = write_study(tmp_path / "b", CHANCES, seeds=(3,), **SMALL)
    edit(run, lambda results: results.update(protocol="aa"))
    edit(other, lambda results: results.update(protocol="bb"))
    assert str(run) in refused(run, other, where=other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        # Pickles are not opened, and those of another run are recognised.
        lambda path: edit_arrays(path, ids=np.array([{"a": 1}], object)),
        lambda path: shutil.copy(path.with_name(path.name.replace("1", "0", 1)), path),
    ],
)
def test_predictions_that_are_not_those_of_the_row_are_named(run, damage):
    path = run / "predictions" / "scratch-seed1-fraction1-fold0.npz"
    damage(path)
    refused(run, where=path)


@pytest.mark.parametrize(
    "changes",
    [
        lambda arrays: {"ids": np.char.add("other", arrays["ids"])},
        lambda arrays: {"groups": arrays["groups"][::-1]},
    ],
)
def test_predictions_of_another_split_are_refused(run, changes):
    path = run / "predictions" / "two_stage-seed1-fraction1-fold0.npz"
    edit_arrays(path, **changes(edit_arrays(path)))
    assert "two_stage (seed 1" in refused(run, where=run)


def test_a_patient_in_two_folds_is_refused(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, folds=2, **SMALL)
    for path in (run / "predictions").glob("*fold1.npz"):
        groups = edit_arrays(path)["groups"]
        edit_arrays(path, groups=np.full(len(groups), "p00"))
    assert "'p00'" in refused(run, where=run)


def test_one_class_alone_is_refused(run):
    def of_one_class(results):
        for row in results["rows"]:
            path = run / row["predictions"]
            arrays = edit_arrays(path)
            labels = np.zeros_like(arrays["labels"])
            edit_arrays(path, labels=labels)
            row["metrics"] = metrics.scores(labels, arrays["probabilities"])

    edit(run, of_one_class)
    refused(run, where=run)


def test_arms_trained_on_other_numbers_of_examples_are_refused(run):
    edit(run, lambda results: results["rows"][0].update(n_train=1234))
    message = refused(run, where=run)
    assert "1234" in message and "1600" in message


def test_predictions_outside_the_folder_are_not_read(run, tmp_path):
    row = read_results(run)["rows"][0]
    shutil.copy(run / row["predictions"], tmp_path / "outside.npz")
    edit(run, lambda r: r["rows"][0].update(predictions="../outside.npz"))
    assert "scratch (seed 0" in refused(run, where=run / "results.json")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", []),
        ('{"schema": 2}', ["schema 1"]),
        ('{"schema": 1}', ["'config'", "'rows'"]),
        ("[]", ["schema 1"]),
    ],
)
def test_results_of_no_finished_run_are_named(tmp_path, text, facts):
    (tmp_path / "results.json").write_text(text)
    message = refused(tmp_path, where=tmp_path / "results.json")
    assert all(fact in message for fact in facts)


def test_folder_without_results_is_named(tmp_path):
    assert "results.json" in refused(tmp_path, where=tmp_path)


def test_a_row_that_lacks_a_field_is_named(run):
    for change, number, field in (
        (lambda results: results["rows"][2].pop("n_train"), "2", "n_train"),
        (lambda results: results["rows"][1].update(seed="0"), "1", "seed"),
        (lambda results: results["rows"].insert(0, 5), "0", "arm"),
    ):
        edit(run, change)
        message = refused(run, where=run / "results.json")
        assert f"row {number}" in message and field in message


def test_stages_and_mistakes_that_are_damaged_are_left_out_by_name(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, seeds=(0,), rich=True, **SMALL)
    whole = gather(study_table.load([run]))
    assert len(whole.stages) == 4 and set(whole.examples) == {
        "natural", "texture", "target",
    }  # fmt: skip
    (run / "examples" / "mistakes.npz").write_bytes(b"PK")
    (run / "stages" / next(iter(whole.stages)) / "lineage.json").write_text("{}")
    edit(run, lambda r: r["rows"][1].update(stage_runs=["../../etc"]))
    found = gather(study_table.load([run]))
    text = " ".join(found.notes)
    assert "Worst mistakes are skipped" in text
    assert "mistakes.npz: the file is damaged" in text
    assert "lineage.json: lacks stage" in text and "../../etc" in text
    assert found.mistakes == {} and found.stages == {}


def test_a_transfer_report_that_lacks_a_field_is_left_out_by_name(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, seeds=(0,), rich=True, **SMALL)
    for path in (run / "stages").glob("texture-*/transfer.json"):
        path.write_text('{"rows": [{"path": "params/x"}]}')
    found = gather(study_table.load([run]))
    assert len(found.stages) == 3
    assert any("transfer.json: lacks action, rule" in note for note in found.notes)


def test_what_explain_found_is_shown(tmp_path):
    run = write_study(tmp_path / "a", CHANCES, seeds=(0,), **SMALL)
    folder = run / "explain"
    (folder / "figures").mkdir(parents=True)
    png, pdf = b"\x89PNG\r\n\x1a\nrest", b"%PDF-1.4 rest"
    for name, files in {
        "explain/figures/first_layer": {".png": png, ".pdf": pdf},
        "explain/figures/fake": {".png": b"<svg onload=alert(1)>", ".pdf": pdf},
        "explain/figures/fake_pdf": {".png": png, ".pdf": b"<script>"},
        "explain/figures/without_pdf": {".png": png},
        "outside": {".png": png, ".pdf": pdf},
    }.items():
        for suffix, data in files.items():
            (run / f"{name}{suffix}").write_bytes(data)
    for suffix in (".png", ".pdf"):
        link = folder / "figures" / f"linked{suffix}"
        link.symlink_to(run / f"outside{suffix}")
    figures = {
        "first_layer": "figures/first_layer",
        "fake": "figures/fake",
        "fake_pdf": "figures/fake_pdf",
        "without_pdf": "figures/without_pdf",
        "linked": "figures/linked",
        "outside": "../outside",
        "absent": "figures/absent",
    }
    explained = {"words": ["Edges, then texture."], "figures": figures, "left_out": []}
    (folder / "explain.json").write_text(json.dumps(explained))
    found = gather(study_table.load([run]))
    assert found.explanation.words == ["Edges, then texture."]
    (saved,) = found.explanation.figures
    assert (saved.name, saved.png, saved.pdf) == ("explain_first_layer", png, pdf)
    assert sum("its PNG or PDF file is missing" in note for note in found.notes) == 6


def test_feature_analysis_of_other_networks_is_skipped(tmp_path, study_run):
    run = tmp_path / "run"
    shutil.copytree(study_run, run)
    path = run / "explain" / "explain.json"
    explained = json.loads(path.read_text())
    study = study_table.load([run])
    ours = [record.stage_runs[-1] for record in study.records.values()]
    path.write_text(json.dumps({**explained, "stage_runs": ours[:2]}))
    assert gather(study).explanation
    path.write_text(json.dumps({**explained, "stage_runs": [ours[0], "target-old"]}))
    found = gather(study)
    assert found.explanation is None
    assert any("Run twostage explain again" in note for note in found.notes)


def test_first_valid_feature_analysis_of_several_folders_is_shown(tmp_path):
    folders = [
        write_study(tmp_path / str(seed), CHANCES, seeds=(seed,), rich=True, **SMALL)
        for seed in range(3)
    ]
    for folder in folders:
        change_explanation(folder, words=[folder.name])
    study = study_table.load(folders)

    def shown():
        found = gather(study)
        notes = [note for note in found.notes if note.startswith("Feature analysis")]
        return found.explanation and found.explanation.words, notes

    words, notes = shown()
    assert words == ["0"] and len(notes) == 2
    for folder, note in zip(folders[1:], notes, strict=True):
        assert f"of {folder} is not shown" in note
    change_explanation(folders[0], stage_runs=["target-old"])
    words, notes = shown()
    assert words == ["1"]
    assert f"of {folders[0]} is skipped" in notes[0]
    assert f"of {folders[2]} is not shown" in notes[1]
    path = folders[1] / "explain" / "explain.json"
    path.write_text("{")
    words, notes = shown()
    assert words == ["2"] and str(path) in notes[1] and len(notes) == 2
    (folders[2] / "explain" / "explain.json").unlink()
    words, notes = shown()
    assert words is None and len(notes) == 2


def change_explanation(folder, **fields):
    path = folder / "explain" / "explain.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_settings_that_are_nested_are_named_by_their_path():
    nested = {"a": {"b": [1, 2], "c": ""}, "d": 0.5, "e": {}}
    assert flat(nested) == {"a.b": "[1, 2]", "a.c": "''", "d": "0.5", "e": "{}"}
    assert json.loads(flat(nested)["a.b"]) == [1, 2]
