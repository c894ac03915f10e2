"""What one stage hands to the next: rules -> variables and a report of every array.

A rule is a pair (regular expression, action). It is matched against the whole path of
an array, such as 'params/conv1/kernel', and the first rule that matches claims the
array. The actions:

  copy            the source's values
  init            the target's fresh values; the source's, if any, stay unused
  drop            the source's array stays unused and the target has none of that name
  rgb_to_grey     a colour kernel for grey images      (see `transfer_actions` for this
  grey_to_rgb     a grey kernel for colour images       and the next three)
  resize_kernel   a convolution of another window size
  resize_dense:C  the first dense layer, behind a map of C channels of another size

Nothing is left out in silence: see `transfer` for what is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.transfer_actions import Change, parse_action, suitable_actions
from twostage_jax.transfer_report import TransferReport, row

Variables = Mapping[str, Any]

# Optimiser state and step counters are no variables and never cross a stage boundary.
COLLECTIONS = ("params", "batch_stats")

_REINITIALISE = {
    "head": r"params/head/.*",
    "dense": r"params/(fc\d+|head)/.*",
}


class TransferError(UserError):
    """A transfer that is not exactly what was asked for; lists every violation."""

    def __init__(self, violations: Sequence[str]):
        self.violations = tuple(violations)
        count = len(self.violations)
        title = f"The transfer has {count} violation{'s' * (count > 1)}:"
        super().__init__("\n  ".join([title, *self.violations]))


class Rule(NamedTuple):
    """(pattern, action); a plain pair of strings does as well.

    A `default` rule may be overruled: it need not claim an array if earlier rules took
    all that it matches.
    """

    pattern: str
    action: str
    default: bool = False


def rules_for(
    reinitialise: str = "head", extra: Sequence[tuple[str, str]] = ()
) -> tuple[tuple[str, str] | Rule, ...]:
    """Returns the rules `extra`, then the default ones.

    Args:
      reinitialise: 'head': the last layer starts afresh and the rest is copied.
        'dense': all fully connected layers (fc6, fc7, head) start afresh.
      extra: (pattern, action) pairs that take precedence over the default.

    Raises:
      UserError: `reinitialise` is neither.
    """
    if reinitialise not in _REINITIALISE:
        raise UserError(
            f"reinitialise: unknown value '{reinitialise}'."
            f"{did_you_mean(reinitialise, _REINITIALISE)}"
        )
    fresh = Rule(_REINITIALISE[reinitialise], "init", default=True)
    return (*extra, fresh, Rule(".*", "copy", default=True))


DEFAULT_RULES = rules_for()


def transfer(
    source: Variables,
    target: Variables,
    rules: Sequence[tuple[str, str] | Rule],
    *,
    notes: Sequence[str] = (),
) -> tuple[dict[str, Any], TransferReport]:
    """Returns the target's variables with what the rules carry over from the source.

    Args:
      source: Variables of the stage before, `{'params': ..., 'batch_stats': ...}`:
        nested dicts of NumPy or jax arrays.
      target: Freshly initialised variables of the new stage.
      rules: See the module; first match wins, the whole path must match.
      notes: Sentences for the report.

    Returns:
      Variables with the structure of `target`, NumPy arrays that share no memory with
      the inputs, which are left as they are; and the report.

    Raises:
      TransferError: With every violation there is: a rule that cannot be read, or that
        claims nothing; an array that no rule claims, or that only one side has where
        the action needs both; shapes or dtypes that differ after the action; NaN or
        infinity in an array that would be used; anything that is no array, or lies
        outside the collections that cross a stage boundary.
    """
    violations: list[str] = []
    old = _flatten(source, "source", violations)
    fresh = _flatten(target, "target", violations)
    compiled = [_compile(rule, violations) for rule in rules]
    rows, result = [], {}
    for path, rule in _claims(compiled, old, fresh, violations).items():
        before, start = old.get(path), fresh.get(path)
        after, faults = _carry(rule, path, before, start)
        violations += [f"{path} (rule '{rule.pattern}'): {fault}" for fault in faults]
        rows.append(row(path, rule.action, rule.pattern, before, start, after))
        result[path] = after
    if violations:
        raise TransferError(violations)
    return _unflatten(target, result), TransferReport(tuple(rows), tuple(notes))


def check_rules(rules: Sequence[tuple[str, str] | Rule]) -> None:
    """Raises a TransferError if a rule cannot be read; needs no variables."""
    violations: list[str] = []
    for rule in rules:
        _compile(rule, violations)
    if violations:
        raise TransferError(violations)


class _Compiled(NamedTuple):
    """A rule that was read; `regex` or `action` is None where that failed."""

    pattern: str
    regex: re.Pattern | None
    action: str | None
    change: Change | None
    default: bool


def _compile(rule: tuple[str, str] | Rule, violations: list[str]) -> _Compiled:
    try:
        pattern, action, default = Rule(*rule)
        if not isinstance(pattern, str) or not isinstance(action, str):
            raise TypeError
        regex = re.compile(pattern)
    except TypeError:
        violations.append(f"rule {rule!r}: write (regular expression, action).")
        return _Compiled(repr(rule), None, None, None, False)
    except re.error as error:
        violations.append(f"rule '{pattern}': no regular expression: {error}.")
        return _Compiled(pattern, None, None, None, default)
    try:
        return _Compiled(pattern, regex, action, parse_action(action), default)
    except ValueError as error:
        violations.append(f"rule '{pattern}': {error}")
        return _Compiled(pattern, regex, None, None, default)


def _claims(
    rules: Sequence[_Compiled],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    violations: list[str],
) -> dict[str, _Compiled]:
    """Returns the first rule to match each path, the target's paths first.

    Behind a rule that could not be read nothing is judged: what it was meant to claim
    is not known.
    """
    readable = [rule.regex is not None for rule in rules]
    judged = rules[: readable.index(False)] if False in readable else rules
    paths = [*target, *(path for path in source if path not in target)]
    claims, used = {}, set()
    for path in paths:
        for i, rule in enumerate(judged):
            if rule.regex.fullmatch(path):
                claims[path] = rule
                used.add(i)
                break
        else:
            if all(readable):
                action = "init" if path in target else "drop"
                if path in source and path in target:
                    action = "copy"
                violations.append(f"{path}: no rule claims it. {_put(path, action)}")
    for i, rule in enumerate(judged):
        if i not in used and (fault := _why_idle(rule, paths)):
            violations.append(f"rule '{rule.pattern}': {fault}")
    return claims


def _why_idle(rule: _Compiled, paths: Sequence[str]) -> str | None:
    """Returns why the rule claims no array, None for a default rule overruled."""
    if any(rule.regex.fullmatch(path) for path in paths):
        if rule.default:
            return None
        return "earlier rules claim all that it matches. Move it up or delete it."
    part = next((path for path in paths if rule.regex.search(path)), None)
    if part:
        return (
            f"it matches no whole path, only a part of some, such as '{part}'. "
            "Write '.*' for the rest."
        )
    example = f" Paths look like '{paths[0]}'." if paths else ""
    return f"it matches no array.{example}"


def _carry(
    rule: _Compiled, path: str, source: np.ndarray | None, target: np.ndarray | None
) -> tuple[np.ndarray | None, list[str]]:
    """Returns the target's new array, if it is to have one, and what is wrong."""
    if rule.action is None:
        return None, []
    if rule.action == "drop":
        if target is None:
            return None, []
        return None, [f"the target needs this array. {_put(path, 'init')}"]
    if rule.action == "init":
        faults = _not_finite(target, "target's fresh")
        return target, [f"{fault} Mend its initialiser." for fault in faults]
    if target is None:
        return None, [f"only the source has this array. {_put(path, 'drop')}"]
    if source is None:
        return None, [f"only the target has this array. {_put(path, 'init')}"]
    faults = [
        f"{fault} Train that stage again. Or, to do without: {_put(path, 'init')}"
        for fault in _not_finite(source, "source's")
    ]
    if source.dtype != target.dtype:
        faults.append(
            f"the source is {source.dtype}, the target {target.dtype}. Convert the "
            f"source's array. Or, to do without: {_put(path, 'init')}"
        )
    shapes = f"source {source.shape} and target {target.shape}"
    advice = _put(path, *suitable_actions(source.shape, target.shape))
    try:
        after = rule.change(source, target.shape) if rule.change else source
    except ValueError as error:
        return None, [*faults, f"'{rule.action}' with {shapes}: {error}. {advice}"]
    if after.shape != target.shape:
        faults.append(f"'{rule.action}' does not bring {shapes} together. {advice}")
    return after, faults


def _not_finite(array: np.ndarray | None, whose: str) -> list[str]:
    bad = 0 if array is None else int(np.sum(~np.isfinite(array)))
    if not bad:
        return []
    return [f"{bad} of the {whose} {array.size} values are NaN or infinite."]


def _put(path: str, *actions: str) -> str:
    """Returns the advice to put one of these rules first."""
    rules = " or ".join(str((re.escape(path), action)) for action in actions)
    note = ""
    if "resize_dense:C" in actions:
        note = ", where C is the number of channels of the map that the layer flattens"
    return f"Put the rule {rules} first{note}."


def _flatten(tree: Any, whose: str, violations: list[str]) -> dict[str, np.ndarray]:
    """Returns path -> array, in the tree's order."""
    arrays: dict[str, np.ndarray] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                if not isinstance(name, str) or "/" in name:
                    violations.append(f"{whose} {path}: {name!r} cannot name an array.")
                else:
                    walk(child, f"{path}/{name}")
            return
        is_array = isinstance(node, np.ndarray | np.generic | jax.Array)
        if is_array and jnp.issubdtype(node.dtype, jnp.number):
            arrays[path] = np.asarray(node)
        else:
            kind = node.dtype if is_array else type(node).__name__
            violations.append(f"{whose} {path}: {kind} is no array of numbers.")

    if not isinstance(tree, Mapping):
        violations.append(f"{whose}: {type(tree).__name__} is no dict of variables.")
        return arrays
    for name, collection in tree.items():
        if name in COLLECTIONS:
            walk(collection, name)
        else:
            violations.append(
                f"{whose} {name}: only {' and '.join(COLLECTIONS)} cross from stage to "
                "stage. Leave it out."
            )
    return arrays


def _unflatten(
    tree: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: str = ""
) -> dict[str, Any]:
    """Returns copies of the arrays in the structure of `tree`, empty dicts included."""
    return {
        name: _unflatten(child, arrays, f"{path}{name}/")
        if isinstance(child, Mapping)
        else np.array(arrays[path + name])
        for name, child in tree.items()
    }
