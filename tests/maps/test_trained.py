"""Finding finished stage runs, and how they are applied."""

import json

import pytest
from chest import WINDOW, Channels, chest, write_chest, write_run
from ct_files import refused_at
from scipy import ndimage

from twostage_jax import models
from twostage_jax.errors import UserError
from twostage_jax.maps import trained
from twostage_jax.maps.classify import Classifier, How, classify
from twostage_jax.maps.run import map_folder


def add_row(workdir, arm, folder, **changes):
    row = {
        "arm": arm,
        "seed": 0,
        "fraction": 1.0,
        "fold": 0,
        "stage_runs": [folder.name],
    }
    name = "-".join([arm, *(f"{k}{v}" for k, v in changes.items())])
    (workdir / "rows" / f"{name}.json").write_text(json.dumps({**row, **changes}))


def test_study_gives_the_two_stage_arm_and_stage_folder_the_same(tmp_path):
    folder = write_run(tmp_path)
    scratch = tmp_path / "stages" / "target-scratch"
    scratch.mkdir()
    (scratch / "lineage.json").write_bytes((folder / "lineage.json").read_bytes())
    add_row(tmp_path, "scratch", scratch)
    of_study, of_stage = trained.find(tmp_path), trained.find(folder)
    assert of_study == of_stage
    assert of_study.arm == "two_stage" and of_study.hash.startswith("0123456789ab")
    assert of_study.window == (-600, 1500)
    assert of_study.class_names == ("normal", "ground_glass")
    assert trained.find(tmp_path, "scratch").folder == scratch


def test_run_with_all_data_and_the_first_seed_is_taken(tmp_path):
    folder = write_run(tmp_path)
    (tmp_path / "rows" / "two_stage.json").unlink()
    for fraction, seed in [(0.1, 0), (1.0, 1), (1.0, 0)]:
        other = tmp_path / "stages" / f"target-{fraction}-{seed}"
        other.mkdir()
        (other / "lineage.json").write_bytes((folder / "lineage.json").read_bytes())
        add_row(tmp_path, "two_stage", other, fraction=fraction, seed=seed)
    assert trained.find(tmp_path).folder.name == "target-1.0-0"


def test_arm_that_cannot_be_chosen_is_asked_for(tmp_path):
    folder = write_run(tmp_path)
    (tmp_path / "rows" / "two_stage.json").unlink()
    add_row(tmp_path, "scratch", folder)
    assert trained.find(tmp_path).arm == "scratch"
    add_row(tmp_path, "natural", folder)
    for arm in ("", "scrach"):
        with pytest.raises(UserError) as error:
            trained.find(tmp_path, arm)
        assert error.value.where == "--arm" and "scratch" in str(error.value)


def test_stage_run_outside_of_a_study_is_named_by_its_chain(tmp_path):
    folder = write_run(tmp_path / "study")
    folder = folder.rename(tmp_path / folder.name)
    assert trained.find(folder).arm == "natural > texture > target"
    with refused_at("--arm"):
        trained.find(folder, "two_stage")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hash": 1}', "null"])
def test_damaged_lineage_is_refused_by_its_name(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "lineage.json").write_text(text)
    with refused_at(str(folder / "lineage.json")):
        trained.find(folder)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with refused_at(str(tmp_path)):
        trained.find(tmp_path)


def test_window_is_the_trainings_unless_it_saw_no_hu(tmp_path):
    # The lineage says so, whatever the source: slices and folders may hold either.
    of_hu = trained.find(
        write_run(tmp_path / "a", window=[-400, 1000], source="slices")
    )
    of_pictures = trained.find(write_run(tmp_path / "b", source="slices", units="grey"))
    unknown = trained.find(write_run(tmp_path / "c", units=None))
    assert unknown.window is None
    assert trained.parse_window("", of_hu) == (-400, 1000)
    assert trained.parse_window("-500, 1400", of_hu) == (-500, 1400)
    assert trained.parse_window("-500,1400", of_pictures) == (-500, 1400)
    wrong = ("x", "-600", "-600,0", "-600,nan", "1,2,3,4,5,6", "1,2,")
    for text, run in (("", of_pictures), *((text, of_hu) for text in wrong)):
        with refused_at("--window"):
            trained.parse_window(text, run)


def test_spacing_is_the_trainings_unless_another_is_given(tmp_path):
    as_scanned = trained.find(write_run(tmp_path / "a"))
    resampled = trained.find(write_run(tmp_path / "b", options={"spacing": 0.7}))
    assert trained.parse_spacing(None, as_scanned) is None
    assert trained.parse_spacing(None, resampled) == 0.7
    assert trained.parse_spacing(0.9, resampled) == 0.9
    assert trained.parse_spacing(0, resampled) is None
    for wrong in (-1, 0.01, 11, float("nan")):
        with refused_at("--spacing"):
            trained.parse_spacing(wrong, resampled)


def test_spacing_of_a_prepared_set_is_read_beside_it(tmp_path):
    settings = {"source": "prepared", "options": {"path": str(tmp_path)}}
    run = trained.find(write_run(tmp_path / "study", **settings))
    assert trained.parse_window("", run) == (-600, 1500)
    with refused_at("--spacing"):
        trained.parse_spacing(None, run)
    made = {"fingerprint": "feed" * 16, "settings": {"spacing": 0.8}}
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    assert trained.parse_spacing(None, run) == 0.8
    made["fingerprint"] = "dead" * 16
    (tmp_path / "dataset.json").write_text(json.dumps(made))
    with refused_at("--spacing"):
        trained.parse_spacing(None, run)


def test_more_classes_than_a_map_can_hold_are_refused(tmp_path, brightness):
    names = [f"c{i}" for i in range(256)]
    run = trained.find(write_run(tmp_path, class_names=names))
    with pytest.raises(UserError, match="256 classes"):
        Classifier(run, (-600, 1500))


def test_three_windows_are_the_three_channels_of_the_network(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "channels", Channels)
    # Healthy lung, -850 HU, is brightest in the gentle one, disease, -650 HU, in the
    # steep one, and nothing is bright in the window of bone.
    gentle, steep, bone = (-800, 1200), (-700, 100), (2000, 100)
    folder = write_run(tmp_path, class_names="abc", window=[*bone, *steep, *gentle])
    path = folder / "lineage.json"
    lineage = json.loads(path.read_text())
    lineage["model"] |= {"name": "channels", "channels": 3}
    lineage["data"] |= {"mean": [0.5] * 3, "deviation": [0.25] * 3}
    path.write_text(json.dumps(lineage))
    run = trained.find(tmp_path)
    hu, lungs, disease = chest(2)
    # Away from borders, where a window sees both.
    ill, sound = (
        ndimage.binary_erosion(m, iterations=WINDOW)
        for m in (disease[0], lungs[0] & ~disease[0])
    )
    assert ill.sum() > 20 and sound.sum() > 20
    for window, classes in [("", (3, 2)), ("-700,100,-800,1200,2000,100", (2, 1))]:
        window = trained.parse_window(window, run)
        asked = How(stride=2, window=window, spacing=None)
        found = classify(hu, lungs, (3.0, 3.0), Classifier(run, window), asked)
        for where, label in zip((sound, ill), classes, strict=True):
            assert (found.labels[:, where] == label).all()


def test_hostile_names_stay_inside_the_output(tmp_path, brightness, capsys):
    names = ("../../x", "<script>alert(1)</script>" * 12)
    run = trained.find(write_run(tmp_path / "study", class_names=names))
    write_chest(
        tmp_path / "dicom",
        1,
        PatientID="/etc/passwd",
        PatientName="$(touch x)",
        SeriesDescription="\u202e" * 60,
        SpecificCharacterSet="ISO_IR 192",
    )
    before = sorted(tmp_path.parent.rglob("*"))
    how = How(stride=6, window=(-600, 1500), spacing=None)
    map_folder(tmp_path / "dicom", tmp_path / "out", Classifier(run, how.window), how)
    made = set(tmp_path.parent.rglob("*")) - set(before)
    assert all(tmp_path / "out" in (path, *path.parents) for path in made)
    assert "passwd" not in capsys.readouterr().out
    (folder,) = (tmp_path / "out").glob("patient-*")
    assert json.loads((folder / "series.json").read_text())["note"] == ""
