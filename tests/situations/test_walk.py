"""Everything below a folder is read or listed, by one walker."""

import os
import socket

import pytest

from twostage_jax import walk
from twostage_jax.errors import UserError


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
    found = walk.walk(root)
    assert names(root, found.files) == ["z", "B/1", "a/1", "a/2", "a/c/1", "b/1"]
    assert found.skipped == []


def test_links_to_folders_and_files_are_followed(tree, tmp_path):
    root = tree("AA/1")
    for name in ("BB", "CC"):
        (tmp_path / "store" / name / "deep").mkdir(parents=True)
        (tmp_path / "store" / name / "deep" / "1").write_bytes(b"x")
        os.symlink(tmp_path / "store" / name, root / name)
    os.symlink(root / "AA" / "1", root / "AA" / "2")
    found = walk.walk(root)
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
    found = walk.walk(root)
    assert names(root, found.files) == ["k/1", "m/1", "z/1", "z/y/1"]
    assert set(reasons(root, found.litter)) == {"a", "l/in", "m/up", "m/above"}
    assert found.lost == []


def test_a_link_is_a_root_as_good_as_its_folder(tree, tmp_path):
    tree("a/1")
    os.symlink(tmp_path / "tree", tmp_path / "link")
    assert names(tmp_path / "link", walk.walk(tmp_path / "link").files) == ["a/1"]


def test_links_that_lead_nowhere_are_lost_and_not_litter(tree):
    root = tree("a/1")
    os.symlink("../.git/annex/objects/x", root / "a" / "2")
    os.symlink("itself", root / "itself")
    os.symlink(root / "a" / "1" / "below a file", root / "odd")
    found = walk.walk(root)
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
    found = walk.walk(root)
    assert names(root, found.files) == ["a/1.dcm"]
    assert set(reasons(root, found.lost)) == {"a/2.dcm"}


def test_a_placeholder_of_icloud_is_lost(tree):
    root = tree(".1.dcm.icloud", "2.dcm")
    assert set(reasons(root, walk.walk(root).lost)) == {".1.dcm.icloud"}


def test_hidden_and_foreign_files_are_listed_as_litter(tree):
    root = tree(
        "1", "._1", ".DS_Store", ".git/objects/1", "__MACOSX/._1", "a/@eaDir/1.jpg"
    )
    os.symlink("nobody@host:1", root / ".#1")  # of Emacs: leads nowhere on purpose
    found = walk.walk(root)
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
        found = walk.walk(root)
    os.symlink("/dev/zero", root / "zero")
    assert names(root, found.files) == ["1"]
    assert set(reasons(root, found.litter)) == {"pipe", "socket"}
    assert "zero" in reasons(root, walk.walk(root).litter)


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
    found = walk.walk(root)
    assert names(root, found.files) == ["b/2"]
    assert set(reasons(root, found.lost)) == {"a", "b/1"}


def test_a_root_that_is_missing_or_unreadable_is_refused(tree, monkeypatch):
    root = tree("a/1")
    with pytest.raises(UserError) as error:
        walk.walk(root / "none")
    assert error.value.where == str(root / "none")
    refuse(monkeypatch, os, "scandir", root, PermissionError(13, "denied"))
    with pytest.raises(UserError) as error:
        walk.walk(root)
    assert error.value.where == str(root)


def test_names_that_are_not_utf8_are_names(tree):
    root = tree("1")
    with open(os.fsencode(root) + b"/Gr\xf6\xdfe.dcm", "wb") as file:
        file.write(b"x")
    assert [os.fsencode(p.name) for p in walk.walk(root).files] == [
        *(b"1", b"Gr\xf6\xdfe.dcm")
    ]


def test_folders_left_out_are_not_searched(tree):
    root = tree("rois/1", "a/rois/1")
    assert names(root, walk.walk(root, ("rois",)).files) == ["a/rois/1"]
