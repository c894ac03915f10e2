"""The report of a transfer."""

import json

import numpy as np
import pytest
from transfer_trees import COPY_ALL, one

from twostage_jax.transfer import rules_for, transfer


def small_report():
    source = {
        "params": {
            "conv1": {"kernel": np.array([[[[3.0], [4.0], [0.0]]]], np.float32)},
            "fc6": {"kernel": np.array([[3, 4]], np.float32)},
            "head": {"bias": np.array([6, 8, 0], np.float32)},
            "old": {"bias": np.array([2], np.float32)},
        }
    }
    target = {
        "params": {
            "conv1": {"kernel": np.full((1, 1, 1, 1), 2, np.float32)},
            "fc6": {"kernel": np.array([[0, 1]], np.float32)},
            "head": {"bias": np.array([5, 12], np.float32)},
        }
    }
    rules = [
        ("params/conv1/kernel", "rgb_to_grey"),
        ("params/old/.*", "drop"),
        *rules_for(),
    ]
    notes = ["the stage before normalised by patch, this one with fixed constants"]
    return transfer(source, target, rules, notes=notes)[1]


def test_report_has_shapes_and_norms_by_hand():
    rows = {row.path: row for row in small_report().rows}
    norms = {p: (r.source_norm, r.fresh_norm, r.norm) for p, r in rows.items()}
    assert norms == {
        "params/conv1/kernel": (5, 2, 7),
        "params/fc6/kernel": (5, 1, 5),
        "params/head/bias": (10, 13, 13),
        "params/old/bias": (2, None, None),
    }
    conv1, old = rows["params/conv1/kernel"], rows["params/old/bias"]
    assert (conv1.source_shape, conv1.target_shape) == ((1, 1, 3, 1), (1, 1, 1, 1))
    assert (conv1.action, conv1.rule) == ("rgb_to_grey", "params/conv1/kernel")
    assert (old.source_shape, old.target_shape) == ((1,), None)


def test_report_names_what_was_transferred_and_what_is_unused():
    report = small_report()
    assert report.transferred == ("params/conv1/kernel", "params/fc6/kernel")
    assert report.unused == ("params/head/bias", "params/old/bias")


def test_summary_is_one_line_and_the_notes():
    assert small_report().summary().splitlines() == [
        "copied 1 (2 values), changed 1 (conv1: rgb_to_grey), "
        "re-initialised 1 (head), unused 2 (head, old)",
        "note: the stage before normalised by patch, this one with fixed constants",
    ]


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999"), (1500, "1.5 k"), (1_200_000, "1.2 M")]
)
def test_summary_counts_values_in_readable_units(size, text):
    tree = one(np.zeros(size, np.float32))
    _, report = transfer(tree, tree, COPY_ALL)
    assert report.summary() == (f"copied 1 ({text} values), re-initialised 0, unused 0")


def test_table_is_aligned_and_ends_with_the_summary():
    report = small_report()
    lines = report.table().splitlines()
    header, rows = lines[0], lines[1:5]
    assert len({len(line) for line in lines[:5]}) == 1
    assert [line.split()[0] for line in rows] == [row.path for row in report.rows]
    for title in ("action", "rule", "source", "target"):
        at = header.index(f"  {title} ") + 2
        assert all(line[at - 1] == " " and line[at] != " " for line in rows)
    assert "(1, 1, 3, 1)" in rows[0] and rows[0].split()[-3:] == ["5", "2", "7"]
    assert rows[3].split()[-3:] == ["2", "-", "-"]
    assert "\n".join(lines[5:]) == report.summary()


def test_json_round_trip_keeps_everything():
    report = small_report()
    written = report.to_json()
    read = json.loads(json.dumps(written, allow_nan=False))
    assert read == written
    assert read["unused"] == ["params/head/bias", "params/old/bias"]
    assert read["notes"] == list(report.notes)
    assert read["rows"][0] == {
        "path": "params/conv1/kernel",
        "action": "rgb_to_grey",
        "rule": "params/conv1/kernel",
        "source_shape": [1, 1, 3, 1],
        "target_shape": [1, 1, 1, 1],
        "source_norm": 5.0,
        "fresh_norm": 2.0,
        "norm": 7.0,
    }
    assert len(read["rows"]) == len(report.rows)


def test_report_cannot_be_changed():
    with pytest.raises(AttributeError):
        small_report().notes = ()


def test_norm_that_overflows_is_none_and_the_json_stays_valid():
    tree = one(np.full(4, 1e308))
    _, report = transfer(tree, tree, COPY_ALL)
    assert report.rows[0].norm is None
