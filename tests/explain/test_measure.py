"""All measures together on small networks, with their text and figures."""

import copy
import json

import constructed
import jax
import numpy as np
import pytest
from basics import refused_at

from twostage_jax.explain import compare, measure, networks, stimuli
from twostage_jax.explain.figures import draw_measures
from twostage_jax.explain.measures import MEASURES
from twostage_jax.explain.text import measure_words, tables

SIZE = 16
LAYERS = ["conv1", "fc6"]


def trained(arm, seed, stage="target", parent=None, classes=3, noise=0.2):
    """Returns a network near its initial parameters: its parent's, or random ones."""
    network = constructed.as_network(
        constructed.Small(classes), {}, SIZE, arm, seed, stage, parent
    )
    rng = np.random.default_rng([seed, len(arm), len(stage)])
    images = np.zeros((1, SIZE, SIZE, 1), np.float32)
    key = jax.random.key(100 + seed)
    start = network.module.init(key, images, train=False)["params"]
    start = jax.tree.map(np.asarray, start)
    if parent is not None:
        start = {**parent.variables["params"], "head": start["head"]}
    moved = jax.tree.map(
        lambda x: (x + noise * x.std() * rng.normal(size=x.shape)).astype(np.float32),
        start,
    )
    return network._replace(variables={"params": moved, "batch_stats": {}})


def arms(seeds=(0, 1)):
    found = {"scratch": [], "two_stage": []}
    for seed in seeds:
        found["scratch"].append(trained("scratch", seed))
        natural = trained("two_stage", seed, "natural", classes=4)
        texture = trained("two_stage", seed, "texture", natural, classes=2)
        found["two_stage"].append(trained("two_stage", seed, parent=texture))
    return found


def examples(count=48, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = (
        rng.random((count, SIZE, SIZE, 1)) * 0.4 + 0.3 * labels[:, None, None, None]
    )
    return networks.Examples(
        images=images.astype(np.float32),
        labels=labels,
        groups=np.array([f"patient{i % 8}" for i in range(count)]),
        ids=np.array([f"{i:03d}" for i in range(count)]),
        class_names=("a", "b", "c"),
    )


@pytest.fixture(scope="module")
def textures():
    return stimuli.embedded_textures(SIZE, samples=2, views=2)


@pytest.fixture(scope="module")
def measured(textures):
    shown = dict.fromkeys((0, 1), examples())
    return measure.measure(arms(), shown, LAYERS, textures)


def test_result_is_plain_json_with_all_measures(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert set(measured["values"]) == set(MEASURES)
    assert measured["order"] == [
        "scratch",
        "two_stage",
        "after natural",
        "after natural > texture",
        "random",
    ]
    for name in ("edge_selectivity", "texture_modulation", "probe_target"):
        for network in measured["order"]:
            assert set(measured["values"][name][network]) == {*LAYERS, "all layers"}


def test_entry_is_mean_and_interval_over_seeds(measured):
    entry = measured["values"]["orientation_selectivity"]["two_stage"]["conv1"]
    one, other = entry["values"]
    assert entry["seeds"] == [0, 1] and entry["channels"] == 6
    assert entry["mean"] == pytest.approx((one + other) / 2)
    # t(0.975, 1) = 12.706.
    half = 12.7062 * abs(one - other) / 2
    assert entry["high"] - entry["mean"] == pytest.approx(half, rel=1e-3)


def test_differences_are_paired_by_seed(measured):
    values = measured["values"]["edge_selectivity"]
    pairs = measured["differences"]["edge_selectivity"]
    for first, second in (
        ("two_stage", "scratch"),
        ("two_stage", "random"),
        ("two_stage", "after natural > texture"),
        ("scratch", "random"),
    ):
        expected = np.subtract(
            values[first]["fc6"]["values"], values[second]["fc6"]["values"]
        )
        found = pairs[f"{first} - {second}"]["fc6"]["values"]
        np.testing.assert_allclose(found, expected)


def test_mean_of_the_layers_is_taken_within_a_seed(measured):
    of_network = measured["values"]["edge_selectivity"]["scratch"]
    expected = np.mean([of_network[layer]["values"] for layer in LAYERS], 0)
    np.testing.assert_allclose(of_network["all layers"]["values"], expected)


@pytest.fixture(scope="module")
def own(textures):
    """Measures of both seeds on different examples; those of seed 0 as in `measured`."""
    shown = {0: examples(), 1: examples(40, seed=1)}
    return measure.measure(arms(), shown, LAYERS, textures=textures)


def test_networks_are_measured_on_the_examples_of_their_own_seed(
    measured, own, textures
):
    alone = measure.measure(
        arms((1,)), {1: examples(40, seed=1)}, LAYERS, textures=textures
    )
    for name in ("probe_target", "accuracy", "cka"):
        for network, by_place in own["values"][name].items():
            for place, entry in by_place.items():
                first = measured["values"][name][network][place]["values"][0]
                second = alone["values"][name][network][place]["values"][0]
                assert entry["values"] == pytest.approx([first, second]), (name, place)
        # What the second seed gives on the examples of the first is something else.
        assert own["values"][name] != measured["values"][name]
    assert measured["counts"]["example_sets"] == 1
    assert (own["counts"]["examples"], own["counts"]["example_sets"]) == (48, 2)


def test_words_say_that_each_seed_has_its_own_images(measured, own):
    text = measure_words(own)[0]
    assert "up to 48 images of the target, different for each seed." in text
    assert "intervals over seeds and their target images" in text
    assert "different" not in measure_words(measured)[0]


def test_same_networks_are_alike_and_do_not_differ(textures):
    network = trained("scratch", 0)
    twins = {"one": [network], "other": [network._replace(arm="other")]}
    shown = {0: examples()}
    found = measure.measure(twins, shown, LAYERS, textures=textures)
    for layer in LAYERS:
        alike = found["values"]["cka"]["other ~ one"][layer]
        assert alike["mean"] == pytest.approx(1)
        assert alike["low"] is None and "one seed" in alike["reason"]
    for name, pairs in found["differences"].items():
        for layer, entry in pairs.get("other - one", {}).items():
            assert entry["mean"] in (0, None), (name, layer)
    text = " ".join(measure_words(found))
    assert "With a single seed, differences cannot be separated from chance" in text
    assert "Edges. A single seed cannot answer this." in text
    assert "significant" not in text


def drift_of(network):
    """Returns the drift of a network and its ancestors, by name and layer, and notes."""
    named, chains = compare.name_networks({"two_stage": [network]})
    found = compare.Findings()
    compare.drift(found, named, chains)
    values = {key[1:]: by_seed[0] for key, by_seed in found.values.items()}
    return values, found.notes


def with_params(network, **layers):
    params = {**network.variables["params"], **layers}
    return network._replace(variables={"params": params, "batch_stats": {}})


def distance(before, after, layer="conv1"):
    start, end = (
        np.append(n.variables["params"][layer]["kernel"].ravel(),
                  n.variables["params"][layer]["bias"])
        for n in (before, after)
    )  # fmt: skip
    return np.linalg.norm(end - start) / np.linalg.norm(start)


def test_drift_is_from_the_stage_before_and_not_of_layers_drawn_anew():
    parent = trained("two_stage", 0, "texture", classes=2)
    network = trained("two_stage", 0, parent=parent)
    network = network._replace(redrawn=frozenset({"fc6", "head"}))
    values, notes = drift_of(network)
    expected = distance(parent, network)
    assert values["two_stage", "conv1"] == pytest.approx(expected)
    assert values["two_stage", "fc6"] is None
    start = networks.randomised(parent)
    first = values["after texture", "conv1"]
    assert first == pytest.approx(distance(start, parent))
    ((measure_name, _),) = notes
    assert measure_name == "drift"
    assert list(notes.values()) == [{"two_stage": ["fc6"]}]


def test_copied_layer_that_training_moved_back_to_where_it_began_has_a_drift():
    parent = trained("two_stage", 0, "texture", classes=2)
    network = trained("two_stage", 0, parent=parent)
    fresh = networks.randomised(network).variables["params"]
    network = with_params(network, fc6=fresh["fc6"])
    values, notes = drift_of(network)
    expected = distance(parent, network, "fc6")
    assert values["two_stage", "fc6"] == pytest.approx(expected) and not notes


def test_head_and_its_norm_have_no_drift():
    norm = {"scale": np.ones(3), "bias": np.zeros(3)}
    parent = with_params(trained("two_stage", 0, "texture"), head_norm=norm)
    network = trained("two_stage", 0, parent=parent)
    values, _ = drift_of(network)
    assert {layer for name, layer in values if name == "two_stage"} == set(LAYERS)


def test_imported_network_has_no_drift_and_the_notes_say_so():
    parent = trained("two_stage", 0, "natural")._replace(source="weights")
    values, notes = drift_of(trained("two_stage", 0, parent=parent))
    assert {name for name, _ in values} == {"two_stage"}
    assert list(notes.values()) == [{"after natural": LAYERS}]


@pytest.mark.parametrize(
    ("shape", "known"),
    [((4, 4, 1, 6), False), ((5, 5, 1, 6), True), ((3, 3, 3, 6), True)],
)
def test_grey_filters_too_small_to_tell_from_noise_have_no_gabor_value(shape, known):
    kernel = np.random.default_rng(0).normal(size=shape)
    network = with_params(trained("scratch", 0), conv1={"kernel": kernel})
    found = compare.Findings()
    measure.add_first_layer(found, "scratch", network)
    for name in ("gabor_share", "gabor_explained"):
        value = found.values[name, "scratch", "conv1"][0]
        assert (value is not None) == known
        noted = [places for (what, _), places in found.notes.items() if what == name]
        assert noted == ([] if known else [{"scratch": ["conv1"]}])


def test_silent_and_broken_channels_are_counted(textures):
    network = trained("scratch", 0)
    params = copy.deepcopy(network.variables["params"])
    params["conv1"]["kernel"][..., 0], params["conv1"]["bias"][0] = 0, 0
    params["conv1"]["bias"][1] = np.nan
    broken = network._replace(variables={"params": params, "batch_stats": {}})
    found = measure.measure(
        {"scratch": [broken]}, {0: examples()}, LAYERS, textures=textures
    )
    json.dumps(found, allow_nan=False)
    for name in ("edge_selectivity", "texture_modulation"):
        entry = found["values"][name]["scratch"]["conv1"]
        assert (entry["silent"], entry["not_finite"]) == ([1], [1]), name
        assert entry["mean"] is not None
        # Every unit of the next layer sums over the broken one.
        after = found["values"][name]["scratch"]["fc6"]
        assert after["not_finite"] == [7] and after["mean"] is None
    assert found["values"]["probe_target"]["scratch"]["conv1"]["left_out"] == [2]
    # One line for all networks and layers.
    (line,) = (one for one in found["notes"] if one.startswith("probe_target: "))
    assert "scratch: fc6" in line
    assert measure_words(found) and draw_measures(found)


def test_images_without_labels_leave_out_what_needs_them(textures):
    unlabelled = examples()._replace(labels=None)
    found = measure.measure(
        {"scratch": [trained("scratch", 0)]},
        {0: unlabelled},
        LAYERS,
        textures=textures,
    )
    assert not {"probe_target", "accuracy", "kept"} & set(found["values"])
    assert "not labelled" in found["notes"][0]
    assert set(draw_measures(found)) == {"responses", "similarity"}
    assert measure_words(found)


def test_classes_are_those_of_the_images_and_chance_is_not_drawn_if_they_vary(textures):
    full = examples()
    two = full.take(full.labels < 2)
    for shown, count in (
        ({0: two, 1: two}, 2),
        ({0: full, 1: two}, None),
    ):
        arms = {"scratch": [trained("scratch", seed) for seed in shown]}
        found = measure.measure(arms, shown, LAYERS, textures=textures)
        assert found["counts"]["classes"] == count
        panel = draw_measures(found)["reliance"].axes[0]
        flat = [y for y in map(tuple, (line.get_ydata() for line in panel.lines))
                if len(y) == 2]  # fmt: skip
        assert flat == ([(0.5, 0.5)] if count else [])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_probes_of_seeds_with_other_classes_have_no_mean(textures, order):
    full = examples()
    shown = {order[0]: full, order[1]: full.take(full.labels < 2)}
    arms = {"scratch": [trained("scratch", seed) for seed in (0, 1)]}
    found = measure.measure(arms, shown, LAYERS, textures=textures)
    expected = [1 / len(np.unique(shown[seed].labels)) for seed in (0, 1)]
    for layer in (*LAYERS, "all layers"):
        entry = found["values"]["probe_target"]["scratch"][layer]
        assert entry["chance"] == expected and None not in entry["values"]
        assert entry["mean"] is entry["low"] is entry["high"] is None
        assert "differs between seeds" in entry["reason"]
        entry = found["values"]["probe_orientation"]["scratch"][layer]
        assert entry["chance"] == [1 / 8, 1 / 8] and entry["mean"] is not None
    assert "differs between seeds" in "\n".join(tables(found))
    by_title = {p.get_title(): p for p in draw_measures(found)["responses"].axes}
    for title, count in (("Probe: target class", 0), ("Probe: orientation", 1)):
        drawn = [text.get_text() for text in by_title[title].texts]
        assert drawn.count("chance") == count


def test_a_layer_that_does_not_exist_is_named(textures):
    arms = {"scratch": [trained("scratch", 0)]}
    with refused_at("conv7"):
        measure.measure(arms, {0: examples()}, ["conv7"], textures=textures)


def seen(mean, half, p):
    return {
        "mean": mean, "low": mean - half, "high": mean + half, "reason": "",
        "p_value": p,
    }  # fmt: skip


def with_differences(measured, edges, textures):
    """Returns a copy with new differences of the two arms and random."""
    changed = copy.deepcopy(measured)
    for name, entries in (
        ("edge_selectivity", edges),
        ("texture_modulation", textures),
        ("probe_texture", [seen(0.0, 0.1, 0.9)] * 3),
    ):
        for pair, entry in zip(
            ("two_stage - random", "two_stage - scratch", "scratch - random"),
            entries,
            strict=True,
        ):
            changed["differences"][name][pair]["all layers"] = entry
    return changed


def paragraph(measured, start):
    (found,) = [text for text in measure_words(measured) if text.startswith(start)]
    return found


def test_words_follow_from_the_numbers(measured):
    nothing = seen(0.0, 0.1, 0.8)
    changed = with_differences(
        measured,
        [seen(0.2, 0.1, 0.001), seen(-0.2, 0.1, 0.002), nothing],
        [nothing] * 3,
    )
    edges = paragraph(changed, "Edges.")
    assert (
        "Two-stage is more selective for the orientation of edges than the untrained "
        "network; scratch does not differ significantly from it; two-stage is below "
        "scratch." in edges
    )
    assert (
        "Each arm minus the untrained network: scratch +0.00 [−0.10, +0.10], two-stage "
        "+0.20" in edges
    )
    assert "Two-stage minus each other arm: scratch −0.20 [−0.30, −0.10]" in edges
    textures = paragraph(changed, "Textures.")
    assert "No arm is significantly more or less selective for textures" in textures
    assert "two-stage does not differ significantly from scratch" in textures


def test_what_holds_alone_but_not_among_several_is_not_claimed(measured):
    """p = 0.02 of three comparisons is 0.06 by Holm, though its interval is above 0."""
    alone, nothing = seen(0.2, 0.1, 0.02), seen(0.0, 0.1, 0.8)
    changed = with_differences(measured, [alone, nothing, nothing], [nothing] * 3)
    edges = paragraph(changed, "Edges.")
    assert "No arm is significantly" in edges and "two-stage +0.20 [+0.10" in edges
    pair = ("edge_selectivity", "two_stage", "random", "all layers")
    assert compare.told(changed, [pair])[pair].sign == 1


def test_what_cannot_be_tested_is_not_called_the_same(measured):
    nothing, alone = seen(0.0, 0.1, 0.8), {**seen(0.2, 0.1, None), "low": None}
    changed = with_differences(measured, [alone, alone, nothing], [alone] * 3)
    edges = paragraph(changed, "Edges.")
    assert (
        "Scratch is not significantly more or less selective for the orientation of "
        "edges than the untrained network; two-stage cannot be tested against it; "
        "two-stage cannot be tested against scratch." in edges
    )
    textures = paragraph(changed, "Textures.")
    assert (
        "Scratch and two-stage cannot be tested against the untrained network"
        in textures
    )
    assert "test needs two seeds with unequal differences" in measure_words(changed)[0]
    pair = ("edge_selectivity", "two_stage", "random", "all layers")
    assert compare.told(changed, [pair])[pair].sign is None
    kept = changed["differences"]["kept"]["two_stage - scratch"]
    for change, entry in (
        ("shuffled 4 px", alone), ("mean only", alone), ("mean removed", nothing)
    ):  # fmt: skip
        kept[change] = entry
        for arm in ("scratch", "two_stage"):
            changed["values"]["kept"][arm][change] = seen(0.5, 0.1, None)
    cues = paragraph(changed, "Cue reliance.")
    assert cues.endswith(
        "Differences between two-stage and the other arms are not significant (1). The "
        "other differences cannot be tested (2)."
    )


def test_words_say_which_textures_favour_an_arm(measured):
    text = paragraph(measured, "Textures.")
    assert "The textures shown (embedded) are not the source of any stage." in text
    assert "not known" not in text
    found = arms()
    made = stimuli.embedded_textures(SIZE, samples=2, views=1)
    parent = found["two_stage"][0].parent._replace(source="textures")
    found["two_stage"][0] = found["two_stage"][0]._replace(parent=parent)
    assert measure.describe_textures(made, found) == {
        "folder": None, "grouped": True, "trained_on": ["two_stage"], "unknown": [],
    }  # fmt: skip
    elsewhere = made._replace(path="/somewhere/kth", groups=None)
    assert measure.describe_textures(elsewhere, found) == {
        "folder": "kth", "grouped": False, "trained_on": [], "unknown": [],
    }  # fmt: skip
    changed = copy.deepcopy(measured)
    changed["textures"]["trained_on"] = ["two_stage"]
    text = paragraph(changed, "Textures.")
    assert "which favours two-stage by construction" in text


def test_words_say_that_the_images_of_an_imported_stage_are_not_known(measured):
    found = arms((0,))
    (network,) = found["two_stage"]
    parent = network.parent._replace(source="weights", parent=None)
    found["two_stage"] = [network._replace(parent=parent)]
    made = stimuli.embedded_textures(SIZE, samples=2, views=1)
    record = measure.describe_textures(made, found)
    assert (record["trained_on"], record["unknown"]) == ([], ["two_stage"])
    text = paragraph({**measured, "textures": record}, "Textures.")
    assert (
        "Whether the imported stage of two-stage was trained on them is not known."
        in text
    )
    # Another stage settles it.
    target = network._replace(parent=parent, source="textures")
    record = measure.describe_textures(made, {"two_stage": [target]})
    assert (record["trained_on"], record["unknown"]) == (["two_stage"], [])


def test_shares_of_seeds_at_chance_are_left_out_and_said(measured):
    changed = copy.deepcopy(measured)
    lost = {"mean": None, "low": None, "high": None, "values": [None, 0.9],
            "reason": "1 of 2 seeds without a value: at chance"}  # fmt: skip
    for arm, share in (("scratch", None), ("two_stage", 0.5)):
        for change in changed["values"]["kept"][arm]:
            entry = lost if share is None else {**lost, "mean": share, "reason": ""}
            changed["values"]["kept"][arm][change] = entry
    text = paragraph(changed, "Cue reliance.")
    assert "The fraction is not given for scratch (1 of 2 seeds without a value" in text
    assert "random order (no layout) 50 %" in text
    table = "\n".join(tables(changed))
    assert "1 of 2 seeds without a value: at chance" in table and "90 %" not in table


def test_words_are_short_and_say_that_patients_are_fixed(measured):
    found = measure_words(measured)
    assert len(" ".join(found).split()) < 400
    assert "these images; they do not cover other images or patients" in found[0]


def test_tables_have_every_network_and_change(measured):
    lines = "\n".join(tables(measured)).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    cells = {row[0]: row[1:] for row in rows if row}
    assert {"two-stage", "after natural", "the untrained network"} <= set(cells)
    entry = measured["values"]["edge_selectivity"]["scratch"]["all layers"]
    mean, low, high = (f"{entry[field]:.2f}" for field in ("mean", "low", "high"))
    assert cells["scratch"][0] == f"{mean} \\[{low}, {high}]".replace("-", "−")
    assert len(cells["shuffled 4 px"]) == 2


def test_figures_show_every_arm(measured, tmp_path):
    figures = draw_measures(measured)
    assert set(figures) == {"responses", "similarity", "reliance"}
    for name, figure in figures.items():
        labels = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
        assert {"scratch", "two-stage"} <= labels, name
        figure.savefig(tmp_path / f"{name}.png")
    line = figures["responses"].axes[0].lines[0]
    means = [
        measured["values"]["edge_selectivity"]["scratch"][layer]["mean"]
        for layer in LAYERS
    ]
    np.testing.assert_allclose(line.get_ydata(), means)
