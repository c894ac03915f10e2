"""Preparation of patches by an Apache Beam pipeline."""

import pytest
from basics import refused_at
from prepare_runs import rows_of, write_archive

from twostage_jax.data import ct_patches, prepared_folder
from twostage_jax.data.store import folder_of, metadata_of, prepare


def recipe_of(folder):
    return ct_patches.recipe(path=str(folder), classes="a,b", size=8, stride=4)


def patches_of(recipe, out):
    """Returns the rows of patches.csv."""
    metadata = metadata_of(folder_of(recipe, out))
    made = prepare(recipe, out)
    prepared_folder.write(out, recipe, made, metadata, [], [])
    rows = rows_of(out / "patches.csv")
    assert len(rows) == len(made) and all(row["coverage"] for row in rows)
    return rows


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
    # The fingerprint excludes position and coverage of patches.
    assert patches_of(recipe, tmp_path / "beam") == patches_of(
        recipe, tmp_path / "local"
    )
    # Finished sets are not made again.
    beam.run(recipe, tmp_path / "beam", ["--runner=DirectRunner"])
    assert not list((tmp_path / "beam").rglob("task-*.npz"))


def test_refusal_of_a_worker_is_reported(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    from twostage_jax.data import beam

    write_archive(tmp_path / "slices", ["p0"])
    path = next((tmp_path / "slices").rglob("20190304-0"))
    path.write_bytes(path.read_bytes()[:-40])
    with refused_at(path):
        beam.run(recipe_of(tmp_path / "slices"), tmp_path, ["--runner=DirectRunner"])


def test_missing_beam_is_refused(tmp_path, monkeypatch):
    from twostage_jax.data import beam

    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    write_archive(tmp_path / "slices", ["p0"])
    with refused_at("apache_beam"):
        beam.run(recipe_of(tmp_path / "slices"), tmp_path, [])
