"""Preparing patches by an Apache Beam pipeline."""

import pytest
from test_prepare_command import write_archive

from twostage_jax.data import dicom
from twostage_jax.data.prepare import prepare
from twostage_jax.errors import UserError


def recipe_of(folder):
    return dicom.recipe(path=str(folder), classes="a,b", size=8, stride=4)


def test_direct_runner_makes_the_same_set(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    from twostage_jax.data import beam

    write_archive(tmp_path / "slices", [f"p{i}" for i in range(3)])
    recipe = recipe_of(tmp_path / "slices")
    beam.run(recipe, tmp_path / "beam", ["--runner=DirectRunner"])
    assert len(list((tmp_path / "beam").rglob("task-*.npz"))) == 3
    made = prepare(recipe, tmp_path / "beam", workers=1)
    local = prepare(recipe, tmp_path / "local", workers=1)
    assert made.fingerprint == local.fingerprint
    # What is there already is not made again.
    beam.run(recipe, tmp_path / "beam", ["--runner=DirectRunner"])
    assert not list((tmp_path / "beam").rglob("task-*.npz"))


def test_refusal_of_a_worker_is_handed_on(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    from twostage_jax.data import beam

    write_archive(tmp_path / "slices", ["p0"])
    path = next((tmp_path / "slices").rglob("20190304-0"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="20190304-0: .*cut off"):
        beam.run(recipe_of(tmp_path / "slices"), tmp_path, ["--runner=DirectRunner"])


def test_missing_beam_is_named_with_what_to_install(tmp_path, monkeypatch):
    from twostage_jax.data import beam

    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    write_archive(tmp_path / "slices", ["p0"])
    with pytest.raises(UserError, match=r"twostage_jax\[beam\]"):
        beam.run(recipe_of(tmp_path / "slices"), tmp_path, [])
