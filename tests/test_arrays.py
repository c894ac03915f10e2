"""Arrays in npz files: written without pickle, and refused if damaged in any way."""

import zipfile

import numpy as np
import pytest
from basics import refused_at

from twostage_jax import io


def test_arrays_are_read_as_they_were_written(tmp_path):
    io.write_arrays(tmp_path / "a.npz", names=np.array(["a", "ü"]), x=np.arange(3))
    read = io.read_arrays(tmp_path / "a.npz", ("names", "x"))
    assert read["names"].tolist() == ["a", "ü"] and read["x"].tolist() == [0, 1, 2]


def test_objects_are_neither_written_nor_read(tmp_path):
    objects = np.array([{}], object)
    with pytest.raises(ValueError):
        io.write_arrays(tmp_path / "a.npz", x=objects)
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "b.npz", x=objects)
    with refused_at(tmp_path / "b.npz"):
        io.read_arrays(tmp_path / "b.npz", ("x",))


def missing(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def overwritten(path):
    with path.open("r+b") as file:
        file.seek(60)
        file.write(b"\xff" * 40)


def without_the_array(path):
    np.savez(path, y=np.arange(3))


def not_an_archive(path):
    path.write_bytes(b"PK\x03\x04 and then something else")


def a_single_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def with_a_damaged_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x04\x00{'x'")


@pytest.mark.parametrize(
    "damage",
    [
        missing, empty, cut_off, overwritten, without_the_array, not_an_archive,
        a_single_array, with_a_damaged_header,
    ],
)  # fmt: skip
def test_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "a.npz"
    io.write_arrays(path, x=np.random.default_rng(0).normal(size=100))
    damage(path)
    with refused_at(path) as error:
        io.read_arrays(path, ("x",), "Do this.")
    assert str(error.value).endswith("Do this.")
