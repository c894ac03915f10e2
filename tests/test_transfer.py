"""Transfer: each action against hand computation, each violation by its message."""

import ast
import copy
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage_jax.errors import UserError
from twostage_jax.transfer import (
    DEFAULT_RULES,
    Rule,
    TransferError,
    check_rules,
    rules_for,
    transfer,
)
from twostage_jax.transfer_actions import ACTIONS, parse_action

COPY_ALL = [(".*", "copy")]
# Dense layer behind a map of 2 channels: 3 x 3 positions in the source.
CHANNELS = 2


def array(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def network(classes, seed):
    """A net with a BatchNorm, two dense layers and a head."""
    return {
        "params": {
            "conv1": {"kernel": array(3, 3, 1, 4, seed=seed), "bias": array(4)},
            "fc6": {"kernel": array(8, 6, seed=seed), "bias": array(6, seed=seed)},
            "fc7": {"kernel": array(6, 5, seed=seed)},
            "head": {
                "kernel": array(5, classes, seed=seed),
                "bias": array(classes, seed=seed),
            },
        },
        "batch_stats": {"norm1": {"mean": array(4, seed=seed)}},
    }


def one(value):
    """Variables with a single array."""
    return {"params": {"layer": {"kernel": value}}}


def move(source, target, action):
    """Transfers the only array of two trees."""
    variables, _ = transfer(one(source), one(target), [(".*", action)])
    return variables["params"]["layer"]["kernel"]


def violations(source, target, rules):
    with pytest.raises(TransferError) as caught:
        transfer(source, target, rules)
    return caught.value.violations


def only_violation(source, target, rules):
    (message,) = violations(source, target, rules)
    return message


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# Actions.


def test_copy_takes_the_source_and_init_keeps_the_target():
    source, target = network(3, seed=1), network(3, seed=2)
    variables, _ = transfer(
        source, target, [("params/conv1/.*", "init"), (".*", "copy")]
    )
    np.testing.assert_array_equal(
        variables["params"]["conv1"]["kernel"], target["params"]["conv1"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["params"]["fc6"]["kernel"], source["params"]["fc6"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["norm1"]["mean"],
        source["batch_stats"]["norm1"]["mean"],
    )


def test_copy_is_bit_identical_even_for_negative_zero_and_subnormals():
    source = np.array([-0.0, 0.0, 1e-45, 3.4e38], np.float32)
    moved = move(source, np.ones(4, np.float32), "copy")
    assert moved.tobytes() == source.tobytes()


def test_rgb_to_grey_sums_the_input_channels():
    kernel = np.array([[[[1, 10], [2, 20], [3, 30]]]], np.float32)  # [1, 1, 3, 2]
    moved = move(kernel, np.zeros((1, 1, 1, 2), np.float32), "rgb_to_grey")
    np.testing.assert_array_equal(moved, [[[[6, 60]]]])


def test_rgb_to_grey_answers_to_grey_as_the_source_to_grey_in_three_channels():
    kernel = array(5, 5, 3, 7)
    grey = array(2, 9, 9, 1, seed=1)
    moved = move(kernel, np.zeros((5, 5, 1, 7), np.float32), "rgb_to_grey")
    expected = convolve(np.repeat(grey, 3, axis=3), kernel)
    np.testing.assert_allclose(convolve(grey, moved), expected, rtol=1e-4, atol=1e-4)


def test_grey_to_rgb_spreads_a_third_over_each_channel():
    kernel = np.array([[[[3, 6]]]], np.float32)
    moved = move(kernel, np.zeros((1, 1, 3, 2), np.float32), "grey_to_rgb")
    np.testing.assert_array_equal(moved, [[[[1, 2], [1, 2], [1, 2]]]])


def test_grey_to_rgb_answers_to_colour_as_the_source_to_the_mean_of_the_channels():
    kernel = array(3, 3, 1, 4)
    colour = array(2, 8, 8, 3, seed=1)
    moved = move(kernel, np.zeros((3, 3, 3, 4), np.float32), "grey_to_rgb")
    expected = convolve(colour.mean(axis=3, keepdims=True), kernel)
    np.testing.assert_allclose(convolve(colour, moved), expected, rtol=1e-4, atol=1e-5)


def test_grey_to_rgb_then_rgb_to_grey_gives_the_kernel_back():
    kernel = array(3, 3, 1, 4)
    colour = move(kernel, np.zeros((3, 3, 3, 4), np.float32), "grey_to_rgb")
    np.testing.assert_allclose(move(colour, kernel, "rgb_to_grey"), kernel, rtol=1e-6)


def test_resize_kernel_from_two_to_one_sums_the_window():
    # The one pixel, interpolated to two positions, is itself at both.
    kernel = np.array([[1, 2], [4, 8]], np.float32)[:, :, None, None]
    moved = move(kernel, np.zeros((1, 1, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_array_equal(moved, [[[[15]]]])


def test_resize_kernel_from_one_to_two_halves_along_each_axis():
    # Two pixels shrink to their mean: the weight 4 becomes 2 and 2, here in columns.
    kernel = np.full((1, 1, 1, 1), 4, np.float32)
    moved = move(kernel, np.zeros((1, 2, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_array_equal(moved[0, :, 0, 0], [2, 2])


def test_resize_kernel_from_four_to_two_by_hand():
    # Positions 0..3 of the source look at -0.25, 0.25, 0.75, 1.25 of the two pixels.
    reads = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    kernel = np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1, 1)
    moved = move(kernel, np.zeros((2, 1, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_allclose(moved.ravel(), reads.T @ [1, 2, 3, 4])


@pytest.mark.parametrize("new", [(3, 3), (7, 7), (5, 2), (4, 11), (1, 1)])
def test_resized_kernel_answers_as_the_source_to_the_resized_patch(new):
    kernel, patch = array(5, 5, 3, 4), array(*new, 3, seed=1)
    moved = move(kernel, np.zeros((*new, 3, 4), np.float32), "resize_kernel")
    resized = jax.image.resize(patch, (5, 5, 3), "linear")
    np.testing.assert_allclose(
        np.einsum("hwc,hwcn->n", patch, moved),
        np.einsum("hwc,hwcn->n", resized, kernel),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("side", [1, 2, 4, 6, 7])
def test_resized_dense_layer_answers_as_the_source_to_the_resized_map(side):
    kernel = array(3 * 3 * CHANNELS, 5)
    features = array(side, side, CHANNELS, seed=1)
    moved = move(
        kernel, np.zeros((side * side * CHANNELS, 5), np.float32), "resize_dense:2"
    )
    resized = jax.image.resize(features, (3, 3, CHANNELS), "linear")
    np.testing.assert_allclose(
        features.ravel() @ moved, resized.ravel() @ kernel, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_resized_dense_layer_keeps_its_answer_to_constant_features(side):
    kernel, values = array(3 * 3 * CHANNELS, 5), np.array([0.3, -2.0], np.float32)
    moved = move(
        kernel, np.zeros((side * side * CHANNELS, 5), np.float32), "resize_dense:2"
    )
    np.testing.assert_allclose(
        np.tile(values, side * side) @ moved,
        np.tile(values, 9) @ kernel,
        rtol=1e-5,
        atol=1e-5,
    )


def test_resized_dense_layer_does_not_mix_channels():
    kernel = array(3 * 3 * CHANNELS, 5).reshape(9, CHANNELS, 5)
    kernel[:, 1] = 0
    moved = move(
        kernel.reshape(18, 5), np.zeros((4 * 2, 5), np.float32), "resize_dense:2"
    ).reshape(4, CHANNELS, 5)
    assert np.all(moved[:, 1] == 0) and np.all(moved[:, 0] != 0)


@pytest.mark.parametrize(
    ("action", "shape"), [("resize_dense:2", (18, 5)), ("resize_kernel", (4, 5, 2, 3))]
)
def test_resizing_to_the_same_size_is_the_identity(action, shape):
    kernel = array(*shape)
    assert move(kernel, np.zeros_like(kernel), action).tobytes() == kernel.tobytes()


@pytest.mark.parametrize(
    ("action", "old", "new"),
    [
        ("rgb_to_grey", (3, 3, 3, 2), (3, 3, 1, 2)),
        ("grey_to_rgb", (3, 3, 1, 2), (3, 3, 3, 2)),
        ("resize_kernel", (3, 3, 1, 2), (5, 5, 1, 2)),
        ("resize_dense:2", (18, 2), (8, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_shape_changes_keep_the_dtype_and_round_once(action, old, new, dtype):
    kernel = array(*old).astype(dtype)
    moved = move(kernel, np.zeros(new, dtype), action)
    exact = move(kernel.astype(np.float64), np.zeros(new), action)
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, exact.astype(dtype))


# Rules.


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
    assert "rule 'params/fc'" in message and "only a part" in message


def test_a_rule_for_a_layer_leaves_layers_of_a_longer_name_alone():
    tree = {"params": {"conv1": {"kernel": array(2)}, "conv10": {"kernel": array(2)}}}
    _, report = transfer(tree, tree, [("params/conv1/.*", "init"), *COPY_ALL])
    assert report.transferred == ("params/conv10/kernel",)


def test_default_rules_start_the_head_afresh_and_copy_the_rest():
    source, target = network(9, seed=1), network(3, seed=2)
    variables, report = transfer(source, target, DEFAULT_RULES)
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
    message = only_violation(tree, tree, DEFAULT_RULES)
    assert "params/head/.*" in message and "matches no array" in message


def test_unknown_reinitialise_setting_says_did_you_mean():
    with pytest.raises(UserError, match="'heads'. Did you mean 'head'"):
        rules_for("heads")


# Violations, one at a time.


def test_rule_that_matches_nothing_is_an_error():
    tree = network(3, 1)
    message = only_violation(tree, tree, [("params/conv9/.*", "init"), *COPY_ALL])
    assert "params/conv9/.*" in message and "matches no array" in message
    assert "params/conv1/kernel" in message


def test_rule_that_earlier_rules_leave_nothing_is_an_error():
    tree = network(3, 1)
    message = only_violation(tree, tree, [*COPY_ALL, ("params/head/.*", "init")])
    assert "params/head/.*" in message and "earlier rules" in message


def test_the_same_rule_twice_is_an_error():
    tree = network(3, 1)
    assert "earlier rules" in only_violation(tree, tree, COPY_ALL * 2)


@pytest.mark.parametrize(
    ("sides", "advice"), [("both", "copy"), ("target", "init"), ("source", "drop")]
)
def test_array_that_no_rule_claims_is_an_error(sides, advice):
    full, part = network(3, 1), network(3, 1)
    del part["params"]["fc7"]
    source = part if sides == "target" else full
    target = part if sides == "source" else full
    message = only_violation(source, target, [("(?!.*fc7).*", "copy")])
    assert message.startswith("params/fc7/kernel: no rule claims it")
    assert f"('params/fc7/kernel', '{advice}')" in message


def test_source_array_that_nobody_uses_must_be_named():
    source, target = network(3, 1), network(3, 1)
    del target["params"]["fc7"]
    message = only_violation(source, target, COPY_ALL)
    assert "only the source has this array" in message
    assert "('params/fc7/kernel', 'drop')" in message


@pytest.mark.parametrize("action", ["drop", "init"])
def test_source_array_that_a_rule_leaves_behind_is_listed_as_unused(action):
    source, target = network(3, 1), network(3, 1)
    del target["params"]["fc7"]
    variables, report = transfer(
        source, target, [("params/fc7/kernel", action), *COPY_ALL]
    )
    assert report.unused == ("params/fc7/kernel",)
    assert "fc7" not in variables["params"]


def test_target_array_that_the_source_lacks_cannot_be_copied():
    source, target = network(3, 1), network(3, 1)
    del source["params"]["fc7"]
    message = only_violation(source, target, COPY_ALL)
    assert "only the target has this array" in message
    assert "('params/fc7/kernel', 'init')" in message


def test_array_that_the_target_has_cannot_be_dropped():
    tree = network(3, 1)
    message = only_violation(tree, tree, [("params/fc7/kernel", "drop"), *COPY_ALL])
    assert "the target needs this array" in message and "'init'" in message


@pytest.mark.parametrize(
    ("source", "target", "advice"),
    [
        ((5, 5, 3, 64), (5, 5, 1, 64), ["rgb_to_grey"]),
        ((5, 5, 1, 64), (5, 5, 3, 64), ["grey_to_rgb"]),
        ((7, 7, 3, 8), (3, 3, 3, 8), ["resize_kernel", "init"]),
        ((36 * 4, 8), (9 * 4, 8), ["resize_dense:C", "init"]),
        ((0, 8), (4, 8), ["init"]),
        ((10, 8), (20, 8), ["init"]),  # squares times a common C: no such C
        ((10, 8), (10, 4), ["init"]),
        ((5, 5, 3, 64), (5, 5, 1, 32), ["init"]),
        ((7, 7, 3, 8), (3, 3, 1, 8), ["init"]),
        ((4,), (), ["init"]),
    ],
)
def test_shapes_that_differ_are_an_error_with_the_fitting_actions(
    source, target, advice
):
    message = only_violation(one(array(*source)), one(array(*target)), COPY_ALL)
    assert f"source {source} and target {target}" in message
    assert re.findall(r"\('params/layer/kernel', '(.*?)'\)", message) == advice


def test_advice_solves_the_violation():
    source, target = one(array(5, 5, 3, 4)), one(array(5, 5, 1, 4))
    message = only_violation(source, target, COPY_ALL)
    advice = re.search(r"\('(.*?)', '(.*?)'\)", message).groups()
    transfer(source, target, [advice])


def test_advice_escapes_names_that_are_no_plain_regular_expressions():
    source = {"params": {"a+b": {"w": array(2)}}}
    message = only_violation(source, {"params": {}}, COPY_ALL)
    assert r"('params/a\\+b/w', 'drop')" in message


@pytest.mark.parametrize(
    ("action", "source", "target", "reason"),
    [
        ("rgb_to_grey", (3, 3, 1, 2), (3, 3, 1, 2), "[kh, kw, 3, cout]"),
        ("rgb_to_grey", (3, 2), (1, 2), "[kh, kw, 3, cout]"),
        ("rgb_to_grey", (3, 3, 3, 2), (5, 5, 1, 2), "does not bring"),
        ("grey_to_rgb", (3, 3, 3, 2), (3, 3, 3, 2), "[kh, kw, 1, cout]"),
        ("grey_to_rgb", (3, 3, 1, 2), (3, 3, 4, 2), "does not bring"),
        ("resize_kernel", (3, 3), (5, 5), "[kh, kw, cin, cout]"),
        ("resize_kernel", (3, 3, 1, 2), (5, 5, 3, 2), "does not bring"),
        ("resize_dense:2", (18, 2), (18,), "[side * side * channels, units]"),
        ("resize_dense:2", (18, 2), (12, 2), "12 rows are no square map"),
        ("resize_dense:2", (19, 2), (8, 2), "19 rows are no square map"),
        ("resize_dense:2", (18, 2), (0, 2), "0 rows are no square map"),
        ("resize_dense:2", (18, 2), (8, 3), "does not bring"),
    ],
)
def test_shape_change_that_does_not_apply_is_an_error(action, source, target, reason):
    message = only_violation(one(array(*source)), one(array(*target)), [(".*", action)])
    assert f"'{action}'" in message and reason in message


def test_shape_change_that_is_not_needed_advises_to_copy():
    grey = one(array(3, 3, 1, 2))
    message = only_violation(grey, grey, [(".*", "rgb_to_grey")])
    assert "('params/layer/kernel', 'copy')" in message


def test_dtypes_that_differ_are_an_error():
    message = only_violation(
        one(array(3, dtype=np.float64)), one(array(3, dtype=np.float32)), COPY_ALL
    )
    assert "source is float64, the target float32" in message


def test_dtypes_that_differ_do_not_matter_for_a_fresh_array():
    source, target = one(array(3, dtype=np.float64)), one(array(3))
    variables, _ = transfer(source, target, [(".*", "init")])
    assert variables["params"]["layer"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_value_that_is_not_finite_cannot_be_copied(bad, dtype):
    source = np.array([1, bad, 2], dtype)
    message = only_violation(one(source), one(np.zeros(3, dtype)), COPY_ALL)
    assert "1 of the source's 3 values are NaN or infinite" in message


def test_value_that_is_not_finite_does_not_matter_where_it_is_not_used():
    source = one(np.array([np.nan, 1], np.float32))
    _, report = transfer(source, one(array(2)), [(".*", "init")])
    assert report.rows[0].source_norm is None
    json.dumps(report.to_json(), allow_nan=False)


def test_fresh_value_that_is_not_finite_is_an_error():
    target = one(np.array([np.nan, 1], np.float32))
    message = only_violation(one(array(2)), target, [(".*", "init")])
    assert "1 of the target's fresh 2 values" in message


def test_invalid_regular_expression_is_an_error():
    tree = network(3, 1)
    message = only_violation(tree, tree, [("params/(head/.*", "init"), *COPY_ALL])
    assert "'params/(head/.*'" in message and "unterminated" in message


@pytest.mark.parametrize(
    ("action", "advice"),
    [
        ("copi", "Did you mean 'copy'?"),
        ("rgb_to_gray", "Did you mean 'rgb_to_grey'?"),
        ("xyz", "Known: copy, drop, grey_to_rgb, init"),
        ("", "Known: copy"),
        ("copy:3", "Write 'copy' alone."),
        ("resize_dense", "such as 'resize_dense:256'"),
        ("resize_dense:", "such as 'resize_dense:256'"),
        ("resize_dense:0", "such as 'resize_dense:256'"),
        ("resize_dense:-2", "such as 'resize_dense:256'"),
        ("resize_dense:C", "such as 'resize_dense:256'"),
    ],
)
def test_unknown_action_is_an_error(action, advice):
    tree = network(3, 1)
    message = only_violation(tree, tree, [(".*", action)])
    assert "rule '.*'" in message and advice in message


@pytest.mark.parametrize("rule", [("a",), ("a", "copy", True, 1), ("a", 3), (1, "a")])
def test_rule_that_is_no_pair_of_strings_is_an_error(rule):
    tree = network(3, 1)
    assert "write (regular expression, action)" in only_violation(tree, tree, [rule])


@pytest.mark.parametrize("collection", ["opt_state", "step", "cache"])
def test_nothing_but_parameters_and_statistics_crosses(collection):
    tree = {**one(array(2)), collection: {"momentum": array(2)}}
    on_both_sides = violations(tree, tree, COPY_ALL)
    assert len(on_both_sides) == 2
    for side, message in zip(("source", "target"), on_both_sides, strict=True):
        assert f"{side} {collection}: only params and batch_stats" in message


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (None, "NoneType"),
        (1.0, "float"),
        ([array(2)], "list"),
        (np.array(["x"]), "<U1"),
        (np.array([True]), "bool"),
        (jax.ShapeDtypeStruct((2,), np.float32), "ShapeDtypeStruct"),
        (jax.random.key(0), "key"),
    ],
)
def test_leaf_that_is_no_array_of_numbers_is_an_error(leaf, kind):
    tree = {"params": {"a": array(2), "b": leaf}}
    message = only_violation(tree, {"params": {"a": array(2)}}, COPY_ALL)
    assert "source params/b" in message and kind in message


@pytest.mark.parametrize("name", ["a/b", 3])
def test_name_that_makes_paths_ambiguous_is_an_error(name):
    tree = {"params": {"a": array(2), name: array(2)}}
    message = only_violation({"params": {"a": array(2)}}, tree, COPY_ALL)
    assert f"target params: {name!r} cannot name an array" in message


def test_variables_that_are_no_dict_are_an_error():
    assert "source: list is no dict" in only_violation(
        [array(2)], one(array(2)), [(".*", "init")]
    )


# Several violations, and none by accident.


def test_all_violations_are_raised_together():
    source = {
        "params": {
            "conv1": {"kernel": array(5, 5, 3, 4)},
            "conv2": {"kernel": np.full(3, np.nan, np.float32)},
            "fc6": {"kernel": array(3, dtype=np.float64)},
            "old": {"kernel": array(3)},
            "head": {"kernel": array(3)},
        },
        "step": np.int32(7),
    }
    target = {
        "params": {
            "conv1": {"kernel": array(5, 5, 1, 4)},
            "conv2": {"kernel": array(3)},
            "fc6": {"kernel": array(4)},
            "new": {"kernel": array(3)},
            "head": {"kernel": array(3)},
        }
    }
    rules = [
        ("params/head/.*", "inti"),
        ("params/nothing/.*", "copy"),
        (".*", "copy"),
    ]
    with pytest.raises(TransferError) as caught:
        transfer(source, target, rules)
    expected = [
        "step: only params",
        "'init'",
        "params/nothing/.*",
        "params/conv1/kernel",
        "NaN",
        "float64",
        "source (3,) and target (4,)",
        "params/new/kernel",
        "params/old/kernel",
    ]
    assert len(caught.value.violations) == len(expected)
    message = str(caught.value)
    assert message.startswith("The transfer has 9 violations:\n  ")
    for violation, part in zip(caught.value.violations, expected, strict=True):
        assert part in violation and violation in message


def test_an_array_with_several_faults_names_each():
    source = one(np.array([np.nan, 1], np.float64))
    found = violations(source, one(array(3)), COPY_ALL)
    assert len(found) == 3
    assert all(
        message.startswith("params/layer/kernel (rule '.*')") for message in found
    )


def test_nothing_is_judged_behind_a_rule_that_cannot_be_read():
    # What the broken rule was meant to claim would differ in shape under '.*'.
    source, target = network(9, 1), network(3, 2)
    rules = [("params/nothing", "init"), ("params/[head/.*", "init"), *COPY_ALL]
    found = violations(source, target, rules)
    assert len(found) == 2
    assert "unterminated" in found[0] and "matches no array" in found[1]


def test_rules_can_be_checked_before_there_are_variables():
    check_rules([*DEFAULT_RULES, ("a.*", "resize_dense:3")])
    with pytest.raises(TransferError) as caught:
        check_rules([("(", "copy"), (".*", "copi"), ("a", "init")])
    assert len(caught.value.violations) == 2


def test_a_transfer_error_is_a_user_error():
    assert issubclass(TransferError, UserError)


def test_every_documented_action_can_be_parsed():
    for action in ACTIONS:
        parse_action(action.replace(":C", ":4"))


# Inputs and result.


@pytest.mark.parametrize("as_jax", [False, True])
def test_inputs_are_left_as_they_are_and_share_no_memory_with_the_result(as_jax):
    source, target = network(9, 1), network(3, 2)
    expected = copy.deepcopy((source, target))
    if as_jax:
        source, target = jax.tree.map(jnp.asarray, (source, target))
    variables, _ = transfer(source, target, DEFAULT_RULES)
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
    variables, _ = transfer(source, target, DEFAULT_RULES)
    hidden = array(4, 5, seed=3)
    head = variables["params"]["head"]
    assert (jnp.asarray(hidden) @ head["kernel"] + head["bias"]).shape == (4, 3)


# Report.


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
        *DEFAULT_RULES,
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
    variables, report = transfer(source, target, DEFAULT_RULES)
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
