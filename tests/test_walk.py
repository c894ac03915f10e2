"""Everything below a folder is read or listed, by one walker."""

import os
import socket

import numpy as np
import pydicom
import pytest
from chest import how, write_chest
from ct_files import SERIES, write_marked
from prepare_runs import rows_of, run

from twostage_jax import folders
from twostage_jax.data import ct_patches
from twostage_jax.errors import UserError
from twostage_jax.maps import write as files
from twostage_jax.maps.run import map_folder


@pytest.fixture
def tree(tmp_path):
    """A function that writes empty files by their names below a folder."""

    def write(*names, content=b"x"):
        for name in names:
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "tree"

    return write


def names(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def reasons(root, skipped):
    return {path.relative_to(root).as_posix(): why for path, why in skipped}


def test_files_of_a_folder_come_before_those_of_its_folders(tree):
    root = tree("b/1", "a/2", "a/1", "z", "a/c/1", "B/1")
    found = folders.walk(root)
    assert names(root, found.files) == ["z", "B/1", "a/1", "a/2", "a/c/1", "b/1"]
    assert found.skipped == []


def test_links_to_folders_and_files_are_followed(tree, tmp_path):
    root = tree("AA/1")
    for name in ("BB", "CC"):
        (tmp_path / "store" / name / "deep").mkdir(parents=True)
        (tmp_path / "store" / name / "deep" / "1").write_bytes(b"x")
        os.symlink(tmp_path / "store" / name, root / name)
    os.symlink(root / "AA" / "1", root / "AA" / "2")
    found = folders.walk(root)
    assert names(root, found.files) == ["AA/1", "AA/2", "BB/deep/1", "CC/deep/1"]
    assert found.skipped == []


def test_each_folder_is_read_once_under_its_own_name(tree, tmp_path):
    root = tree("z/1", "z/y/1", "m/1")
    os.symlink(root / "z", root / "a")  # comes first, by name
    os.symlink(root, root / "m" / "up")
    os.symlink(tmp_path, root / "m" / "above")
    (tmp_path / "store" / "in").mkdir(parents=True)
    (tmp_path / "store" / "in" / "1").write_bytes(b"x")
    os.symlink(tmp_path / "store" / "in", root / "k")
    os.symlink(tmp_path / "store", root / "l")
    found = folders.walk(root)
    assert names(root, found.files) == ["k/1", "m/1", "z/1", "z/y/1"]
    assert set(reasons(root, found.litter)) == {"a", "l/in", "m/up", "m/above"}
    assert found.lost == []


def test_a_link_is_a_root_as_good_as_its_folder(tree, tmp_path):
    tree("a/1")
    os.symlink(tmp_path / "tree", tmp_path / "link")
    assert names(tmp_path / "link", folders.walk(tmp_path / "link").files) == ["a/1"]


def test_links_that_lead_nowhere_are_lost_and_not_litter(tree):
    root = tree("a/1")
    os.symlink("../.git/annex/objects/x", root / "a" / "2")
    os.symlink("itself", root / "itself")
    os.symlink(root / "a" / "1" / "below a file", root / "odd")
    found = folders.walk(root)
    assert names(root, found.files) == ["a/1"]
    assert set(reasons(root, found.lost)) == {"a/2", "itself", "odd"}


@pytest.mark.parametrize(
    "content",
    [
        b"/annex/objects/MD5E-s100--0123.dcm\n",
        b"../../.git/annex/objects/a/b/MD5E-s100--0123.dcm",  # a link, as text
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n",
    ],
)
def test_pointers_to_content_that_was_not_fetched_are_lost(tree, content):
    root = tree("a/1.dcm")
    tree("a/2.dcm", content=content)
    found = folders.walk(root)
    assert names(root, found.files) == ["a/1.dcm"]
    assert set(reasons(root, found.lost)) == {"a/2.dcm"}


def test_a_placeholder_of_icloud_is_lost(tree):
    root = tree(".1.dcm.icloud", "2.dcm")
    assert set(reasons(root, folders.walk(root).lost)) == {".1.dcm.icloud"}


def test_hidden_and_foreign_files_are_listed_as_litter(tree):
    root = tree(
        "1", "._1", ".DS_Store", ".git/objects/1", "__MACOSX/._1", "a/@eaDir/1.jpg"
    )
    os.symlink("nobody@host:1", root / ".#1")  # of Emacs: leads nowhere on purpose
    found = folders.walk(root)
    assert names(root, found.files) == ["1"]
    assert set(reasons(root, found.litter)) == {
        *("._1", ".DS_Store", ".git", "__MACOSX", "a/@eaDir", ".#1")
    }
    assert found.lost == []


def test_pipes_and_sockets_are_listed_and_not_opened(tree, monkeypatch):
    root = tree("1")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(root)  # names of sockets must be short
        server.bind("socket")
        found = folders.walk(root)
    os.symlink("/dev/zero", root / "zero")
    assert names(root, found.files) == ["1"]
    assert set(reasons(root, found.litter)) == {"pipe", "socket"}
    assert "zero" in reasons(root, folders.walk(root).litter)


def refuse(monkeypatch, module, name, refused, error):
    """Makes a function of `module` fail for one path: the tests may run as root."""
    real = getattr(module, name)

    def maybe(path, *rest, **more):
        if os.fspath(path) == os.fspath(refused):
            if isinstance(error, Exception):
                raise error
            return error
        return real(path, *rest, **more)

    monkeypatch.setattr(module, name, maybe)


def test_unreadable_folders_and_files_are_lost(tree, monkeypatch):
    root = tree("a/1", "b/1", "b/2")
    refuse(monkeypatch, os, "scandir", root / "a", PermissionError(13, "denied"))
    refuse(monkeypatch, os, "access", root / "b" / "1", False)
    found = folders.walk(root)
    assert names(root, found.files) == ["b/2"]
    assert set(reasons(root, found.lost)) == {"a", "b/1"}


def test_a_root_that_is_missing_or_unreadable_is_refused(tree, monkeypatch):
    root = tree("a/1")
    with pytest.raises(UserError) as error:
        folders.walk(root / "none")
    assert error.value.where == str(root / "none")
    refuse(monkeypatch, os, "scandir", root, PermissionError(13, "denied"))
    with pytest.raises(UserError) as error:
        folders.walk(root)
    assert error.value.where == str(root)


def test_names_that_are_not_utf8_are_names(tree):
    root = tree("1")
    with open(os.fsencode(root) + b"/Gr\xf6\xdfe.dcm", "wb") as file:
        file.write(b"x")
    assert [os.fsencode(p.name) for p in folders.walk(root).files] == [
        *(b"1", b"Gr\xf6\xdfe.dcm")
    ]


def write_study(folder, count=5, *, patient="AA", series=1):
    """Slices from the feet, and a mask of two classes on two of them."""
    write_marked(
        folder,
        [np.full((16, 16), 100 + z, np.int16) for z in range(count)],
        [None, *(np.full((16, 16), z, np.uint8) for z in (1, 2))],
        name="im{}.dcm",
        uid=10 * series + 1,
        step=5,
        PatientID=patient,
        SeriesInstanceUID=f"{SERIES}.8.{series}",
    )


def patches_of(root, **settings):
    recipe = ct_patches.recipe(
        path=str(root), classes="a,b", size=8, stride=8, **settings
    )
    return recipe, [recipe.make(task) for task in recipe.tasks]


def test_linked_patients_are_prepared(tmp_path):
    for number, name in enumerate(("AA", "BB", "CC"), start=1):
        write_study(tmp_path / "store" / name, patient=name, series=number)
    (tmp_path / "study").mkdir()
    os.rename(tmp_path / "store" / "AA", tmp_path / "study" / "AA")
    for name in ("BB", "CC"):
        os.symlink(tmp_path / "store" / name, tmp_path / "study" / name)
    _, made = patches_of(tmp_path / "study")
    assert [len(part) for part in made] == [8, 8, 8]


def test_hidden_companions_of_slices_and_masks_are_listed(tmp_path):
    write_study(tmp_path)
    for path in [*tmp_path.glob("im*"), *(tmp_path / "rois").iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(
            b"\0\5\x16\7\0\2\0\0" + b"\0" * 200
        )
    recipe, (made,) = patches_of(tmp_path)
    assert len(made) == 8
    skipped = recipe.tasks.skipped
    assert len(skipped) == 7
    assert all(path.name.startswith("._") for path, _ in skipped)
    assert recipe.tasks.series[0].left_out == 0


def test_hidden_masks_in_a_folder_of_their_own_are_listed(tmp_path):
    write_study(tmp_path / "ct")
    os.rename(tmp_path / "ct" / "rois", tmp_path / "rois")
    (tmp_path / "rois" / "._1.png").write_bytes(b"x")
    os.symlink("nowhere", tmp_path / "rois" / "2.png")
    recipe, (made,) = patches_of(tmp_path / "ct", rois=str(tmp_path / "rois"))
    assert len(made) == 8
    assert {path.name for path, _ in recipe.tasks.skipped} == {"._1.png", "2.png"}


def break_links(folder, names):
    for name in names:
        (folder / name).unlink()
        os.symlink("../.git/annex/objects/xx/missing", folder / name)


def test_prepare_lists_dead_links_and_marks_the_series(tmp_path):
    write_study(tmp_path / "ct")
    break_links(tmp_path / "ct", ["im3.dcm", "im4.dcm"])
    result = run(
        *(f"--source={tmp_path / 'ct'}", f"--out={tmp_path / 'out'}"),
        *("--classes=a,b", "--patch=8", "--stride=8"),
    )
    assert "2 files" in result.stdout
    rows = rows_of(tmp_path / "out" / "skipped.csv")
    assert len(rows) == 2
    (series,) = rows_of(tmp_path / "out" / "series.csv")
    assert series["slices"] == "3" and "2 files" in series["remarks"]


def emptied(folder):
    (folder / "IM-0005.dcm").write_bytes(b"")


def pointed(folder):
    (folder / "IM-0005.dcm").write_bytes(b"/annex/objects/MD5E-s1--0.dcm\n")


def linked(folder):
    break_links(folder, ["IM-0005.dcm"])


def cut_short(folder):
    whole = (folder / "IM-0005.dcm").read_bytes()
    (folder / "IM-0005.dcm").write_bytes(whole[:200])


def without_rescale(folder):
    image = pydicom.dcmread(folder / "IM-0005.dcm")
    del image.RescaleSlope
    image.save_as(folder / "IM-0005.dcm")


@pytest.mark.parametrize("harm", [emptied, pointed, linked, cut_short, without_rescale])
def test_a_map_counts_the_files_that_may_be_missing(tmp_path, classifier, harm):
    root = tmp_path / "dicom"
    write_chest(root / "one", 5, gap=5.0)
    write_chest(root / "two", 2, gap=5.0, series=2)
    harm(root / "one")
    (root / "one" / "README").write_text("x")
    map_folder(root, tmp_path / "maps", classifier, how())
    report = files.read_report(tmp_path / "maps" / "report.csv")
    counts = {row["slices"]: row["files_left_out"] for row in report}
    assert counts == {"4": "1", "2": "0"}
    assert all(bool(row["remarks"]) == (row["slices"] == "4") for row in report)
    assert len(rows_of(tmp_path / "maps" / "skipped.csv")) == 2


def test_a_map_is_made_again_when_files_get_lost_beside_it(
    tmp_path, classifier, capsys
):
    root = tmp_path / "dicom"
    write_chest(root, 2)
    for lost in (False, True, True):
        if lost and not (root / "x.dcm").is_symlink():
            os.symlink("nowhere", root / "x.dcm")
        map_folder(root, tmp_path / "maps", classifier, how())
        report = files.read_report(tmp_path / "maps" / "report.csv")
        assert {row["files_left_out"] for row in report} == {str(int(lost))}
    assert "exists already" in capsys.readouterr().out


def test_unreadable_files_are_listed_and_counted(tmp_path, monkeypatch):
    write_study(tmp_path)
    refuse(monkeypatch, os, "access", tmp_path / "im4.dcm", False)
    recipe, (made,) = patches_of(tmp_path)
    assert len(made) == 8
    assert [path.name for path, _ in recipe.tasks.skipped] == ["im4.dcm"]
    assert recipe.tasks.series[0].left_out == 1
