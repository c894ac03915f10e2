"""Violations of the contract of transfer: one message each, all at once."""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transfer_trees import COPY_ALL, array, network, one, only_violation, violations

from twostage_jax import transfer as transfers
from twostage_jax.errors import UserError
from twostage_jax.transfer import (
    ACTIONS,
    TransferError,
    check_rules,
    rules_for,
    transfer,
)


def test_rule_that_matches_nothing_is_an_error():
    tree = network(3, 1)
    message = only_violation(tree, tree, [("params/conv9/.*", "init"), *COPY_ALL])
    assert "params/conv9/.*" in message and "does not match any array" in message
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
    assert message.startswith("params/fc7/kernel: unclaimed by any rule")
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
        ((5, 5, 3, 64), (5, 5, 1, 64), ["rgb_to_grey", "init"]),
        ((5, 5, 1, 64), (5, 5, 3, 64), ["grey_to_rgb", "init"]),
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
        ("rgb_to_grey", (3, 3, 3, 2), (5, 5, 1, 2), "cannot reconcile"),
        ("grey_to_rgb", (3, 3, 3, 2), (3, 3, 3, 2), "[kh, kw, 1, cout]"),
        ("grey_to_rgb", (3, 3, 1, 2), (3, 3, 4, 2), "cannot reconcile"),
        ("resize_kernel", (3, 3), (5, 5), "[kh, kw, cin, cout]"),
        ("resize_kernel", (3, 3, 1, 2), (5, 5, 3, 2), "cannot reconcile"),
        ("resize_dense:2", (18, 2), (18,), "[side * side * channels, units]"),
        ("resize_dense:2", (18, 2), (12, 2), "12 rows are not a square map"),
        ("resize_dense:2", (19, 2), (8, 2), "19 rows are not a square map"),
        ("resize_dense:2", (18, 2), (0, 2), "0 rows are not a square map"),
        ("resize_dense:2", (18, 2), (8, 3), "cannot reconcile"),
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
        ("copy:3", "'copy' does not take an argument"),
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
    assert "source: list is not a dict" in only_violation(
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
    assert "unterminated" in found[0] and "does not match any array" in found[1]


def test_rules_can_be_checked_before_there_are_variables():
    check_rules([*rules_for(), ("a.*", "resize_dense:3")])
    with pytest.raises(TransferError) as caught:
        check_rules([("(", "copy"), (".*", "copi"), ("a", "init")])
    assert len(caught.value.violations) == 2


def test_a_transfer_error_is_a_user_error():
    assert issubclass(TransferError, UserError)


def test_every_action_is_documented_and_can_be_parsed():
    described = re.findall(r"^  (\w+)(?::C)?  +\w", inspect.getdoc(transfers), re.M)
    assert described == [*ACTIONS]
    for name, action in ACTIONS.items():
        check_rules([(".*", f"{name}:4" if action.argument else name)])
