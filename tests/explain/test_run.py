"""The whole command: its output, and its errors."""

import json
import re

import numpy as np
import pytest
from basics import refusal, refused_at
from explained import caffenet, examples, forward
from scipy import special

from twostage_jax import explain
from twostage_jax.explain import checks, networks, run, saliency, strongest, text

# Compiling all methods takes most of a minute; they have their own tests.
METHODS = ("gradient_x_input", "grad_cam")


@pytest.fixture(scope="module")
def few_methods():
    with pytest.MonkeyPatch.context() as patch:
        few = {name: saliency.SALIENCY[name] for name in METHODS}
        patch.setattr(saliency, "SALIENCY", few)
        yield


@pytest.fixture(scope="module")
def arms():
    natural = [caffenet("natural", seed) for seed in (0, 1)]
    # One channel that nothing brings above 0.
    kernel = natural[0].variables["params"]["conv1"]
    kernel["kernel"][..., 3], kernel["bias"][3] = 0, -1
    parent = natural[0]._replace(stage="natural")
    natural = [network._replace(parent=parent) for network in natural]
    return {"scratch": [caffenet("scratch", seed) for seed in (0, 1)],
            "natural": natural}  # fmt: skip


@pytest.fixture(scope="module")
def shown():
    """Three images per seed, one per class: enough to draw, too few to measure."""
    first = examples(3)
    return {0: first, 1: first._replace(images=1 - first.images)}


@pytest.fixture(scope="module")
def asked():
    """(function, seed of the network or None, the images it was given), call by call."""
    return []


@pytest.fixture(scope="module")
def written(arms, shown, asked, few_methods, tmp_path_factory):
    def spy(module, name, seed_of):
        real = getattr(module, name)

        def call(first, images, *more):
            asked.append((name, seed_of(first), images))
            return real(first, images, *more)

        patch.setattr(module, name, call)

    out = tmp_path_factory.mktemp("explained") / "out"
    # An earlier run, which is to be replaced.
    (out / "figures").mkdir(parents=True)
    for name in ("explain.json", "figures/stale.png"):
        (out / name).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (strongest, "find_strongest"),
            (checks, "saliency_maps"),
            (checks, "deletion_insertion"),
        ):
            spy(module, name, lambda network: network.seed)
        spy(strongest, "show", lambda found: None)
        explained = run.explain(
            arms, shown, "made images", out, layers=["conv1"], channels=6,
            left_out=["Nothing else."],
        )  # fmt: skip
    return out, explained


def test_each_network_is_shown_the_images_of_its_own_seed(arms, shown, asked, written):
    seen = {(name, seed) for name, seed, _ in asked}
    assert seen == {
        *((name, seed) for seed in (0, 1)
          for name in ("find_strongest", "saliency_maps", "deletion_insertion")),
        ("show", None),
    }  # fmt: skip
    for name, seed, given in asked:
        # The pictures are of the first seed.
        expected = shown[seed or 0].images
        if name in ("saliency_maps", "deletion_insertion"):
            expected = networks.scaled(arms["scratch"][0], expected)
        np.testing.assert_array_equal(given, expected, err_msg=f"{name}, {seed}")


def test_pictures_are_of_the_first_seed_that_all_arms_have(arms):
    zero, one = arms["scratch"]
    found = networks.of_first_seed({"a": [zero, one], "b": [one]})
    assert {arm: network.seed for arm, network in found.items()} == {"a": 1, "b": 1}
    with refused_at("--arms"):
        networks.of_first_seed({"a": [zero], "b": [one]})


def test_json_holds_what_it_says(written):
    out, explained = written
    assert json.loads((out / "explain.json").read_text()) == explained
    assert explained["arms"] == {
        "scratch": {"seeds": [0, 1], "chain": ["target"]},
        "natural": {"seeds": [0, 1], "chain": ["natural", "target"]},
    }
    assert explained["images"] == {
        "source": "made images", "sets": 2, "count": 3, "most": 3, "saliency": 3,
    }  # fmt: skip
    dead = explained["dead_channels"]["natural"]["conv1"]
    assert dead == {"channels": 6, "dead": [1, 0]}
    found = explained["saliency"]
    assert found["methods"] == list(METHODS)
    for kind in ("deletion", "insertion"):
        for of_arm in found[kind].values():
            assert set(of_arm) == {*METHODS, "random_order"}
            for one in of_arm.values():
                assert len(one["curve"]) == len(found["shares"])
                assert one["area"]["low"] <= one["area"]["mean"] <= one["area"]["high"]
    first = explained["saliency"]["deletion"]["scratch"]
    starts = {method: one["curve"][0] for method, one in first.items()}
    assert len({round(start, 6) for start in starts.values()}) == 1
    assert explained["measures"] is None


def test_figures_are_there_and_the_page_names_them(written):
    out, explained = written
    assert list(explained["figures"]) == [
        "strongest_conv1", "first_layer", "saliency",
        "deletion_insertion", "randomisation",
    ]  # fmt: skip
    page = (out / "explain.md").read_text()
    for path in explained["figures"].values():
        for suffix in (".png", ".pdf"):
            assert (out / (path + suffix)).stat().st_size > 1000
        assert f"({path}.png)" in page
    assert "conv1 scratch 0, natural 1 of 6" in page
    assert "- Nothing else.\n- Measures: they need 4 images, but only 3" in page
    assert re.search(r"^\| Grad-CAM[†‡]* +\|", page, re.M)
    assert sorted(path.name for path in out.iterdir()) == [
        "explain.json", "explain.md", "figures",
    ]  # fmt: skip


def test_an_earlier_run_is_replaced_and_nothing_else(
    arms, shown, few_methods, written, tmp_path
):
    with refused_at("conv9"):
        run.explain(arms, shown, "", tmp_path / "out", layers=["conv9"])
    assert not any(tmp_path.iterdir())
    (tmp_path / "thesis.txt").write_text("precious")
    with refused_at("--out"):
        run.explain(arms, shown, "", tmp_path)
    out, _ = written
    assert not (out / "figures" / "stale.png").exists()
    # The lock file stays (see `io.locked`); nothing else does.
    names = {path.name for path in out.parent.iterdir()}
    assert names == {out.name, f".{out.name}.lock"}


def test_examples_come_from_every_class_in_turn():
    labels = np.array([0] * 10 + [1] * 2 + [2] * 10)
    found = checks.spread_over_classes(labels, 22, 9)
    np.testing.assert_array_equal(labels[found], [0, 1, 2, 0, 1, 2, 0, 2])
    np.testing.assert_array_equal(found, [0, 10, 12, 4, 11, 16, 9, 21])
    np.testing.assert_array_equal(checks.spread_over_classes(None, 9, 3), [0, 4, 8])


def test_without_labels_all_arms_are_asked_about_the_class_most_likely(arms):
    firsts = {arm: of_arm[0] for arm, of_arm in arms.items()}
    unlabelled = examples(6, labels=False)
    found = checks.explained_classes(firsts, unlabelled)
    inputs = (unlabelled.images - 0.5) / 0.25
    mean = sum(special.softmax(forward(n, inputs)[0], 1) for n in firsts.values())
    np.testing.assert_array_equal(found, mean.argmax(1))
    labelled = examples(6)
    found = checks.explained_classes(firsts, labelled)
    np.testing.assert_array_equal(found, labelled.labels)


def area(value):
    return {"area": {"mean": value}}


def test_words_follow_from_the_numbers():
    of_arm = {
        "deletion": {"salinet": area(0.2), "occlusion": area(0.4),
                     "grad_cam": area(0.5), "random_order": area(0.4)},
        "insertion": {"salinet": area(0.5), "occlusion": area(0.8),
                      "grad_cam": area(0.6), "random_order": area(0.6)},
    }  # fmt: skip
    explained = {
        "arms": {"two_stage": {"seeds": [1, 2, 3]}},
        "chosen": ["The networks are of fold 0."],
        "images": {"source": "test images of the target", "sets": 1, "count": 5,
                   "most": 5},
        "dead_channels": {"two_stage": {"conv2": {"channels": 96, "dead": [0, 7, 3]}}},
        "saliency": {
            "methods": ["salinet", "occlusion", "grad_cam"],
            "unchanged": ["grad_cam"], "class_blind": [], "undefined": [],
            "deletion": {"two_stage": of_arm["deletion"]},
            "insertion": {"two_stage": of_arm["insertion"]},
        },
    }  # fmt: skip
    shown, dead, tests, best = text.study_words(explained)
    assert "1 arm (two-stage), 3 seeds; 5 images (test images of the target)" in shown
    assert "The networks are of fold 0. Pictures, and maps" in shown
    assert shown.endswith("are those of seed 1, the first that all arms share.")
    assert "never above 0 or, in a layer without a ReLU, the same on all images" in dead
    assert "conv2 two-stage 7 of 96" in dead
    assert tests.startswith("The maps of Grad-CAM hardly change when all weights")
    assert "deleted in the order of SaliNet (area 0.20; random order 0.40)" in best
    assert "inserted in the order of occlusion (0.80; 0.60)" in best
    assert best.endswith("No better than random order on either curve: Grad-CAM.")
    of_arm["deletion"]["random_order"] = area(0.15)
    best = text.study_words(explained)[3]
    assert (
        "the class probability falls no faster when pixels are deleted in the order of "
        "any method than in random order (area 0.15; best method SaliNet, 0.20), and rises "
        "fastest" in best
    )
    of_arm["insertion"]["random_order"] = area(0.9)
    best = text.study_words(explained)[3]
    assert (
        "rises no faster when they are inserted in the order of any method than in random "
        "order (0.90; occlusion, 0.80)." in best
    )
    explained["images"].update(sets=3, most=8)
    shown = text.study_words(explained)[0]
    assert "5 to 8 images (test images of the target, different for each seed)" in shown
    explained["saliency"]["unchanged"] = ["occlusion"]
    tests = text.study_words(explained)[2]
    assert "maps of occlusion hardly change, apart from their signs, when all" in tests
    explained["saliency"]["unchanged"] = []
    assert text.study_words(explained)[2].startswith("All 3 saliency methods depend")


def test_what_is_missing_ends_the_program_in_one_line(tmp_path):
    line = refusal(explain.main, f"--run={tmp_path}")
    assert str(tmp_path) in line and "results.json" in line
