"""The main difference patient by patient."""

import numpy as np
import pytest
from study_files import reported, write_study

from twostage_jax.report import study_table
from twostage_jax.report.analysis import analyse
from twostage_jax.stats import learning_curve, metrics

CHANCES = {"scratch": 0.75, "two_stage": 0.85}
PRIMARY = ("two_stage", "scratch", "balanced_accuracy")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    write_study(
        folder, CHANCES, seeds=(0, 1), fractions=(1.0, 0.5), patients=9, patches=12,
        primary=PRIMARY,
    )  # fmt: skip
    return study_table.load([folder])


def score(one, without=""):
    keep = one.groups != without
    return metrics.scores(one.labels[keep], one.probabilities[keep])[
        "balanced_accuracy"
    ]


def gain(study, arms_score):
    """Two-stage minus scratch over both sizes, mean over seeds."""
    weights = dict(
        zip((0.5, 1.0), learning_curve.area_weights([800, 1600]), strict=True)
    )
    means = {
        arm: sum(
            weights[fraction]
            * np.mean(
                [arms_score(study.joined(arm, seed, fraction)) for seed in (0, 1)]
            )
            for fraction in weights
        )
        for arm in CHANCES
    }
    return means["two_stage"] - means["scratch"]


def test_difference_without_a_patient_is_that_of_the_others(study):
    found = analyse(study, 200).by_patient
    assert found.difference.estimate == pytest.approx(gain(study, score))
    for patient, without in zip(found.patients, found.without, strict=True):
        expected = gain(study, lambda one, p=patient: score(one, without=p))
        assert without == pytest.approx(expected)
    changes = np.abs(found.without - found.difference.estimate)
    assert changes[found.most] == changes.max()


def test_a_single_patient_cannot_be_excluded(tmp_path):
    folder = write_study(tmp_path, CHANCES, patients=1, baselines={"descriptors": 0.75})
    report, found = reported(folder)
    assert found.by_patient is None
    assert found.full.baselines[0].without is None
    assert not any(
        "nan" in text or "any one patient" in text for text in report.summary
    )


def test_scores_of_a_patient_are_of_its_own_patches(study):
    found = analyse(study, 200).by_patient
    for p, patient in enumerate(found.patients):

        def own(one, patient=patient):
            keep = one.groups == patient
            matrix = metrics.confusion(one.labels[keep], one.probabilities[keep])
            return metrics.balanced_accuracy(matrix)

        assert found.scores[0, p] - found.scores[1, p] == pytest.approx(
            gain(study, own)
        )


def test_report_says_how_much_depends_on_the_most_influential_patient(study):
    made, analysis = reported(study)
    (section,) = (one for one in made.sections if one.anchor == "patients")
    words = section.parts[0].text
    assert analysis.by_patient.patients[analysis.by_patient.most] in words


def test_without_patients_nothing_is_said_of_them(tmp_path):
    write_study(tmp_path, CHANCES, seeds=(0,), patients=None, patches=4)
    study = study_table.load([tmp_path])
    assert analyse(study, 200).by_patient is None
