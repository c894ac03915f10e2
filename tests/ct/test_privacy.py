"""Errors of a preparation, in a tree whose folders are named after a patient."""

import dataclasses
import re

import numpy as np
import pytest
from ct_files import SERIES, write_marked

from twostage_jax.ct import privacy
from twostage_jax.data import ct_patches, store
from twostage_jax.errors import UserError

NAME = "Smith Anna (1947)"


@pytest.fixture
def tree(tmp_path):
    """Returns a folder of one patient, named after her, with two slices and a mask."""
    stored, mask = np.zeros((2, 8, 8), np.int16), np.ones((8, 8), np.uint8)
    folder = tmp_path / "slices" / NAME
    write_marked(folder, stored, [mask], name="Anna {}", PatientID=NAME)
    return tmp_path / "slices"


def hidden(tree, error, kind):
    with pytest.raises(kind) as caught, privacy.errors({"--source": tree}, "s"):
        raise error
    assert not re.search("smith|anna|1947", str(caught.value), re.IGNORECASE)
    return caught.value


def test_errors_contain_hashes_of_paths(tree):
    path = tree / NAME / "Anna 1"
    error = UserError(f"{path}: is not like {tree / NAME / 'Anna 0'} of {path.parent}.")
    own, other, folder = (
        privacy.file_hash(p, "s") for p in (path, tree / NAME / "Anna 0", path.parent)
    )
    assert str(hidden(tree, error, UserError)) == (
        f"{own}: is not like {other} of {folder}. Run again with --show_paths to see "
        "the names."
    )


def test_messages_without_paths_are_not_changed(tree):
    error = UserError(f"stride = 0: not like {tree}2 or {tree}-2.")
    assert str(hidden(tree, error, UserError)) == str(error)


def test_given_folder_is_named_by_its_flag(tree):
    error = UserError(f"{tree}: no regions of slice {SERIES}.1 in {tree}.")
    text = str(hidden(tree, error, UserError))
    assert text.startswith("--source: no regions of slice UID in --source. Run")


def test_paths_of_missing_files_are_removed(tree):
    error = UserError(f"cannot read {tree / 'Smith' / 'gone'}: it is away")
    assert str(hidden(tree, error, UserError)).startswith("cannot read ... Run")


def test_system_errors_keep_their_number(tree):
    try:
        (tree / NAME / "Anna 1" / "x").read_bytes()
    except OSError as found:
        error = hidden(tree, found, NotADirectoryError)
    assert error.errno and error.strerror


def test_unexpected_errors_hide_paths_and_their_cause(tree):
    error = hidden(tree, ValueError(f"{tree / NAME / 'Anna 0'} is odd"), RuntimeError)
    assert str(error).startswith(
        f"ValueError: {privacy.file_hash(tree / NAME / 'Anna 0', 's')} is odd"
    )
    assert error.__suppress_context__


def test_unexpected_error_of_a_task_names_the_patient_by_hash(tree):
    recipe = ct_patches.recipe(path=str(tree), size=4, classes="a")
    (patient,) = recipe.tasks

    def fail(task):
        raise ValueError("odd")

    failing = dataclasses.replace(recipe, make=fail)
    with pytest.raises(RuntimeError) as error:
        list(store.run(failing, workers=1))
    assert f"task {patient.name}: " in str(error.value)
