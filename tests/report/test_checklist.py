"""The filled checklists: every item once, at places that exist in the report."""

import re

import pytest
from study_files import parts_of, reported, write_study

from twostage_jax.report import checklist, study_table
from twostage_jax.report.parts import walk

CHANCES = {"scratch": 0.7, "two_stage": 0.85}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    write_study(folder, CHANCES, seeds=(0, 1), patients=9, patches=9, rich=True)
    return folder


def answers(folder, **statements):
    study = study_table.load([folder])
    study.config["report"] = statements
    made, _ = reported(study)
    (section,) = (one for one in made.sections if one.anchor == "checklists")
    return made, {
        table.name: {number: where for number, _, where in table.rows}
        for table in walk(section.parts)[1:]
    }


def test_items_are_numbered_as_published():
    claim, tripod = map(checklist.items, ("CLAIM 2024", "TRIPOD+AI"))
    assert [one["number"] for one in claim] == [str(n) for n in range(1, 45)]
    numbers = [int(re.match(r"\d+", one["number"])[0]) for one in tripod]
    assert sorted(set(numbers)) == list(range(1, 28))
    assert numbers == sorted(numbers) and len(tripod) == 52


def test_items_stand_where_the_report_has_them_or_are_missing(folder):
    made, found = answers(folder)
    claim = found["claim"]
    assert claim["37"] == "Scores" and claim["23"].startswith("Settings and versions")
    # No external set, no records of the data, nothing stated.
    for number in ("12", "33", "35", "36", "44", "14"):
        assert claim[number] == checklist.MISSING
    assert claim["40"] == checklist.FOR_MANUSCRIPT
    files = re.findall(r"\((tables|figures)/(\w+)\.", " ".join(claim.values()))
    names = {getattr(part, "name", "") for part in parts_of(made)}
    assert files and {name for _, name in files} <= names


def test_a_statement_fills_its_items(folder):
    _, found = answers(folder, funding="None.", ethics=" ")
    assert found["claim"]["44"] == found["tripod_ai"]["18a"] == "Data (Funding)"
    assert found["tripod_ai"]["17"] == checklist.MISSING


def test_checklists_are_a_file_of_the_report(study_report):
    text = (study_report / checklist.FILE).read_text()
    assert "CLAIM 2024" in text and "TRIPOD+AI" in text and "| 18f" in text
