"""Groups whose names differ in spelling only."""

import logging

import numpy as np
import pytest
from PIL import Image

from twostage_jax.data import image_folder, slices, spelling
from twostage_jax.data.store import prepare


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CASE01", "case01"),
        ("Straße", "STRASSE"),
        ("1", "01"),
        ("p1", "p001"),
        ("1.0", "1"),
        ("01.0", "1"),
        ("0", "00"),
        ("p1\u200b", "p1"),
        ("\ufeffp1", "p1"),
        ("p\u00ad1", "p1"),
        ("p\u00a01", "p 1"),
        ("p\uff11", "p1"),
    ],
)
def test_spellings_of_one_name(one, other):
    assert spelling.pairs([other, one, other]) == [tuple(sorted((one, other)))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p1", "p10"),
        ("p10", "p100"),
        ("1.0", "10"),
        ("1.2", "1.02"),
        ("1.2.0", "1.2"),
        ("p1", "p-1"),
        ("a b", "ab"),
        ("0", ""),
        ("é", "e"),
    ],
)
def test_distinct_names(one, other):
    assert spelling.pairs([one, other]) == []


def noted(recipe, tmp_path, caplog):
    """Returns the notes of a set on spelling, and what is printed."""
    with caplog.at_level(logging.WARNING):
        notes = prepare(recipe, tmp_path / "data", workers=1).notes
    return [note for note in notes if "pairs of groups" in note], caplog.text


NAMES = ("p1", "P1", "p01", "p2", "P2", "p3", "P3")


@pytest.mark.parametrize("setting", ["group_regex", "group_csv"])
def test_groups_of_a_folder_are_noted_without_their_names(tmp_path, caplog, setting):
    lines = ["path,group"]
    for label, name in enumerate(NAMES):
        path = f"{'ab'[label % 2]}/{label}_{name}.png"
        lines.append(f"{path},{name}")
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 30 * label + 40, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / path)
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    values = {"group_regex": r"_(\w+)", "group_csv": str(tmp_path / "groups.csv")}
    recipe = image_folder.recipe(
        path=str(tmp_path / "set"), size=8, **{setting: values[setting]}
    )
    (note,), printed = noted(recipe, tmp_path, caplog)
    assert note.startswith("4 pairs of groups") and setting in note
    assert "P2" not in note
    assert "'P1' and 'p01', 'P1' and 'p1', 'P2' and 'p2', 1 more" in printed


def test_patients_of_slices_are_noted_without_their_names(tmp_path, caplog):
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 1
    pixels = {"ct": np.full((8, 8), 99, np.uint8), "lungs": mask * 0 + 1}
    pixels["infection"] = mask
    rows = ["patient,slice"]
    for number, name in enumerate(("smith", "smith\u200b", "jones")):
        rows.append(f"{name},{number}.png")
        for folder, values in pixels.items():
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "set" / folder / f"{number}.png"
            Image.fromarray(values).save(path)
    table = tmp_path / "set" / "slices.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    recipe = slices.recipe(path=str(tmp_path / "set"), size=4, stride=4)
    (note,), printed = noted(recipe, tmp_path, caplog)
    assert note.startswith("1 pairs of groups") and "smith" not in note
    assert r"'smith' and 'smith\u200b'" in printed
    table.write_text("\n".join([*rows[:2], "brown,1.png"]), encoding="utf-8")
    recipe = slices.recipe(path=str(tmp_path / "set"), size=4, stride=4)
    assert noted(recipe, tmp_path, caplog)[0] == []
