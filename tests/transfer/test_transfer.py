"""Rules: the action of an array, and the inputs that a transfer must not change."""

import ast
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from basics import refused_at
from hypothesis import given
from hypothesis import strategies as st
from transfer_trees import (
    COPY_ALL,
    array,
    move,
    network,
    one,
    only_violation,
)

from twostage_jax.transfer import (
    Rule,
    TransferError,
    rules_for,
    transfer,
)


def test_first_match_wins():
    rules = [("params/fc6/bias", "init"), ("params/fc6/.*", "copy"), (".*", "init")]
    _, report = transfer(network(3, 1), network(3, 2), rules)
    actions = {row.path: (row.action, row.rule) for row in report.rows}
    assert actions["params/fc6/bias"] == ("init", "params/fc6/bias")
    assert actions["params/fc6/kernel"] == ("copy", "params/fc6/.*")
    assert actions["params/fc7/kernel"] == ("init", ".*")


def test_a_rule_matches_the_whole_path_not_a_part():
    # A search for 'params/fc' would find it in fc6 and fc7.
    message = only_violation(
        network(3, 1), network(3, 2), [("params/fc", "init"), *COPY_ALL]
    )
    assert "rule 'params/fc'" in message and "only parts of paths" in message


def test_a_rule_for_a_layer_leaves_layers_of_a_longer_name_alone():
    tree = {"params": {"conv1": {"kernel": array(2)}, "conv10": {"kernel": array(2)}}}
    _, report = transfer(tree, tree, [("params/conv1/.*", "init"), *COPY_ALL])
    assert report.transferred == ("params/conv10/kernel",)


def test_default_rules_start_the_head_afresh_and_copy_the_rest():
    source, target = network(9, seed=1), network(3, seed=2)
    variables, report = transfer(source, target, rules_for())
    assert report.unused == ("params/head/kernel", "params/head/bias")
    for layer in ("conv1", "fc6", "fc7"):
        jax.tree.map(
            np.testing.assert_array_equal,
            variables["params"][layer],
            source["params"][layer],
        )
    jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"]["head"],
        target["params"]["head"],
    )


def test_reinitialising_the_dense_layers_takes_fc6_fc7_and_the_head():
    _, report = transfer(network(9, 1), network(3, 2), rules_for("dense"))
    fresh = {row.path.split("/")[1] for row in report.rows if row.action == "init"}
    assert fresh == {"fc6", "fc7", "head"}


@pytest.mark.parametrize("reinitialise", ["head", "dense"])
def test_statistics_of_the_head_are_fresh_like_the_head(reinitialise):
    """An orderless head standardises its input for its own classes."""
    source, target = network(9, 1), network(3, 2)
    for tree, mean in ((source, 5.0), (target, 0.0)):
        tree["batch_stats"]["head_norm"] = {"mean": np.full(5, mean, np.float32)}
    variables, _ = transfer(source, target, rules_for(reinitialise))
    np.testing.assert_array_equal(variables["batch_stats"]["head_norm"]["mean"], 0)
    np.testing.assert_array_equal(
        variables["batch_stats"]["norm1"]["mean"],
        source["batch_stats"]["norm1"]["mean"],
    )


def test_reinitialising_the_dense_layers_needs_no_fc_layer():
    source, target = network(9, 1), network(3, 2)
    for tree in (source, target):
        del tree["params"]["fc6"], tree["params"]["fc7"]
    _, report = transfer(source, target, rules_for("dense"))
    assert report.unused == ("params/head/kernel", "params/head/bias")


def test_extra_rules_come_before_the_default_ones():
    extra = [("params/conv1/.*", "init")]
    _, report = transfer(network(9, 1), network(3, 2), rules_for("head", extra))
    assert "params/conv1/kernel" in report.unused


def test_extra_rules_may_overrule_a_default_rule_altogether():
    same = network(3, 1)
    extra = [("params/head/.*", "copy")]
    _, report = transfer(same, network(3, 2), rules_for("head", extra))
    assert report.unused == ()
    _, report = transfer(same, network(3, 2), rules_for("head", [(".*", "init")]))
    assert report.transferred == ()


def test_a_default_rule_for_a_layer_that_does_not_exist_is_an_error():
    tree = one(array(2))
    message = only_violation(tree, tree, rules_for())
    assert "head" in message and "does not match any array" in message


def test_unknown_reinitialise_setting_says_did_you_mean():
    with refused_at("reinitialise") as error:
        rules_for("heads")
    assert "'head'" in str(error.value)


# Inputs and result.


@pytest.mark.parametrize("as_jax", [False, True])
def test_inputs_are_left_as_they_are_and_share_no_memory_with_the_result(as_jax):
    source, target = network(9, 1), network(3, 2)
    expected = copy.deepcopy((source, target))
    if as_jax:
        source, target = jax.tree.map(jnp.asarray, (source, target))
    variables, _ = transfer(source, target, rules_for())
    given = [np.asarray(leaf) for leaf in jax.tree.leaves((source, target))]
    for leaf in jax.tree.leaves(variables):
        assert type(leaf) is np.ndarray
        assert not any(np.shares_memory(leaf, other) for other in given)
        leaf[...] = 99  # writable, and nobody else sees it
    jax.tree.map(np.testing.assert_array_equal, (source, target), expected)


@pytest.mark.parametrize(
    ("action", "shape"),
    [
        ("copy", (2, 2, 1, 2)),
        ("init", (2, 2, 1, 2)),
        ("resize_kernel", (2, 2, 1, 2)),
        ("resize_dense:2", (8, 3)),
    ],
)
def test_no_action_returns_a_view_of_its_input(action, shape):
    source, target = array(*shape, seed=1), array(*shape, seed=2)
    moved = move(source, target, action)
    assert not np.shares_memory(moved, source)
    assert not np.shares_memory(moved, target)


def test_result_has_the_structure_of_the_target_empty_collections_included():
    source, target = one(array(2)), {"batch_stats": {}, **one(array(2))}
    variables, _ = transfer(source, target, COPY_ALL)
    assert jax.tree.structure(variables) == jax.tree.structure(target)
    assert variables["batch_stats"] == {}
    variables, _ = transfer(target, source, COPY_ALL)
    assert list(variables) == ["params"]


def test_an_empty_source_can_start_everything_afresh():
    variables, report = transfer({}, one(array(2)), [(".*", "init")])
    np.testing.assert_array_equal(variables["params"]["layer"]["kernel"], array(2))
    assert report.unused == () and report.rows[0].source_shape is None


def test_an_empty_source_has_nothing_to_copy():
    assert "only the target" in only_violation({"params": {}}, one(array(2)), COPY_ALL)


def test_scalars_and_integers_are_arrays_too():
    moved = move(np.int32(7), jnp.int32(0), "copy")
    assert moved.shape == () and moved.dtype == np.int32 and moved == 7


def test_a_forward_pass_accepts_the_result():
    source, target = network(9, 1), network(3, 2)
    variables, _ = transfer(source, target, rules_for())
    hidden = array(4, 5, seed=3)
    head = variables["params"]["head"]
    assert (jnp.asarray(hidden) @ head["kernel"] + head["bias"]).shape == (4, 3)


# Properties of any tree.

names = st.text("abc_1.+(\\", min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
trees = st.recursive(
    shapes.map(lambda shape: np.ones(shape, np.float32)),
    lambda children: st.dictionaries(names, children, max_size=4),
    max_leaves=12,
)


def paths_of(tree, prefix):
    """Paths of all leaves, by jax's own traversal."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join([prefix, *(key.key for key in path)]) for path, _ in leaves]


@given(
    backbone=st.dictionaries(names, trees, max_size=4),
    statistics=st.dictionaries(names, trees, max_size=3),
    classes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_default_rules_account_for_every_array_of_any_tree_once(
    backbone, statistics, classes
):
    source, target = (
        {
            "params": {**backbone, "head": {"bias": np.ones(count, np.float32)}},
            "batch_stats": statistics,
        }
        for count in classes
    )
    target = jax.tree.map(np.zeros_like, target)
    variables, report = transfer(source, target, rules_for())
    expected = [
        *paths_of(target["params"], "params"),
        *paths_of(statistics, "batch_stats"),
    ]
    assert sorted(row.path for row in report.rows) == sorted(expected)
    assert report.unused == ("params/head/bias",)
    assert not variables["params"]["head"]["bias"].any()
    backbone_now = {k: v for k, v in variables["params"].items() if k != "head"}
    jax.tree.map(np.testing.assert_array_equal, backbone_now, backbone)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], statistics)


@given(old=trees, new=trees)
def test_advice_alone_leads_any_two_trees_to_a_transfer(old, new):
    # Each violation names a rule; with those rules put first, nothing is left to say.
    source, target = {"params": {"a": old}}, {"params": {"a": new}}
    rules = [Rule(".*", "copy", default=True)]
    if not (paths_of(old, "params/a") or paths_of(new, "params/a")):
        return
    try:
        transfer(source, target, rules)
    except TransferError as error:
        advice = []
        for message in error.violations:
            last = message.removesuffix(" first.").rpartition(" rule ")[2]
            advice.append(ast.literal_eval(last.rpartition(" or ")[2]))
        _, report = transfer(source, target, [*advice, *rules])
        assert {row.action for row in report.rows} <= {"copy", "init", "drop"}
