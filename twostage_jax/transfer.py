"""Transfer of one stage's variables to the next: rules, actions, and a full report.

A rule is a pair (regular expression, action). It is matched against the whole path of
an array, such as 'params/conv1/kernel', and the first rule that matches claims the
array. The actions:

  copy            the source's values
  init            the target's fresh values; those of the source, if any, are unused
  drop            the source's array is unused, and the target lacks one of this name
  rgb_to_grey     a colour kernel for grey images
  grey_to_rgb     a grey kernel for colour images
  resize_kernel   a convolution of another window size
  resize_dense:C  the first dense layer, behind a map of C channels of another size

Nothing is dropped silently: every array of both sides has a row in the report, and cases
that the rules do not cover are refused (see `transfer`).

The last four actions change shapes; each is a function with the decorator `_action`, and
a new action is just another such function. It takes the source's kernel and the target's
shape, and returns a new kernel of the source's dtype, computed in float64; it raises a
ValueError with the reason if it does not apply to that kernel.

This module does not import jax: a config is checked, and a report written, without it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twostage_jax.errors import UserError, did_you_mean

Shape = tuple[int, ...]
Variables = Mapping[str, Any]
Change = Callable[[np.ndarray, Shape], np.ndarray]

# Optimiser state and step counters are not variables and never cross a stage boundary.
COLLECTIONS = ("params", "batch_stats")

_REINITIALISE = {
    "head": r"(params|batch_stats)/(head|head_norm)/.*",
    "dense": r"(params|batch_stats)/(fc\d+|head|head_norm)/.*",
}
# Names of dtypes, because for NumPy jax's bfloat16 is not a number.
_NUMBER = re.compile(r"(b?float|u?int|complex)\d.*")


class TransferError(UserError):
    """Raised if a transfer cannot follow its rules exactly.

    Attributes:
      violations: One sentence per violation.
    """

    def __init__(self, violations: Sequence[str]):
        self.violations = tuple(violations)
        count = len(self.violations)
        title = f"The transfer has {count} violation{'s' * (count > 1)}:"
        super().__init__("\n  ".join([title, *self.violations]))


class Rule(NamedTuple):
    """Transfer rule; a plain pair (pattern, action) works as well.

    Attributes:
      pattern: Regular expression for whole paths.
      action: Name of the action, with its argument if it takes one.
      default: Whether earlier rules may claim every array that this rule matches;
        otherwise a rule that claims no array is a violation.
    """

    pattern: str
    action: str
    default: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """Record of one array in a transfer.

    Shapes and norms are None for an array that does not exist. Norms are Euclidean, and
    also None for an array with NaN or infinity (it was not used, or it was refused).

    Attributes:
      path: Path of the array, such as 'params/conv1/kernel'.
      action: Action of the rule that claimed the array.
      rule: Pattern of that rule.
      source_shape: Shape in the previous stage.
      target_shape: Shape in the new stage.
      source_norm: Norm in the previous stage.
      fresh_norm: Norm of the target's array before the transfer.
      norm: Norm of the target's array after the transfer.
    """

    path: str
    action: str
    rule: str
    source_shape: Shape | None
    target_shape: Shape | None
    source_norm: float | None
    fresh_norm: float | None
    norm: float | None


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """Report of one transfer, as a table, as one line, and as JSON.

    Attributes:
      rows: One row per array of the target, then per array that only the source has.
      notes: Remarks, such as a change of normalisation.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def transferred(self) -> tuple[str, ...]:
        """Paths whose values come from the source, unchanged or changed in shape."""
        return tuple(r.path for r in self.rows if r.action not in ("init", "drop"))

    @property
    def unused(self) -> tuple[str, ...]:
        """Paths of the source's arrays that the target does not use."""
        taken = set(self.transferred)
        return tuple(
            r.path
            for r in self.rows
            if r.source_shape is not None and r.path not in taken
        )

    def summary(self) -> str:
        """Returns the transfer in one line, and a line per note."""
        present = [r for r in self.rows if r.target_shape is not None]
        copied = [r for r in present if r.action == "copy"]
        fresh = [r.path for r in present if r.action == "init"]
        changed = [r for r in present if r.action not in ("copy", "init")]
        values = sum(math.prod(r.target_shape) for r in copied)
        parts = [f"copied {len(copied)} ({_count(values)} values)"]
        if changed:
            layers = ", ".join(f"{_layer(r.path)}: {r.action}" for r in changed)
            parts.append(f"changed {len(changed)} ({layers})")
        parts.append(f"re-initialised {len(fresh)}{_layers(fresh)}")
        parts.append(f"unused {len(self.unused)}{_layers(self.unused)}")
        return "\n".join([", ".join(parts), *(f"note: {n}" for n in self.notes)])

    def table(self) -> str:
        """Returns every row, in aligned columns, and the summary."""
        titles = ("path", "action", "rule", "source", "target")
        cells = [(*titles, "|source|", "|fresh|", "|result|")]
        for row in self.rows:
            shapes = (_text(s) for s in (row.source_shape, row.target_shape))
            norms = (row.source_norm, row.fresh_norm, row.norm)
            cells.append(
                (row.path, row.action, row.rule, *shapes, *(_number(n) for n in norms))
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = [
            "  ".join(
                # Text is left-aligned, norms right-aligned to line up decimal points.
                cell.ljust(width) if i < len(titles) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        return "\n".join([*aligned, self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: rows, unused, notes."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            for key in ("source_shape", "target_shape"):
                row[key] = None if row[key] is None else list(row[key])
        return {"rows": rows, "unused": list(self.unused), "notes": list(self.notes)}


def rules_for(
    reinitialise: str = "head", extra: Sequence[tuple[str, str]] = ()
) -> tuple[tuple[str, str] | Rule, ...]:
    """Returns the rules `extra`, then the default ones.

    Args:
      reinitialise: Layers to re-initialise: 'head' (the last layer) or 'dense' (all
        fully connected layers: fc6, fc7, head). All others are copied.
      extra: (pattern, action) pairs that take precedence over the default.

    Raises:
      UserError: `reinitialise` is unknown.
    """
    if reinitialise not in _REINITIALISE:
        raise UserError(
            f"reinitialise: unknown value '{reinitialise}'."
            f"{did_you_mean(reinitialise, _REINITIALISE)}",
            where="reinitialise",
        )
    fresh = Rule(_REINITIALISE[reinitialise], "init", default=True)
    return (*extra, fresh, Rule(".*", "copy", default=True))


def transfer(
    source: Variables,
    target: Variables,
    rules: Sequence[tuple[str, str] | Rule],
    *,
    notes: Sequence[str] = (),
) -> tuple[dict[str, Any], TransferReport]:
    """Returns the target's variables after the transfer, and its report.

    Args:
      source: Variables of the previous stage, `{'params': ..., 'batch_stats': ...}`:
        nested dicts of NumPy or jax arrays.
      target: Freshly initialised variables of the new stage.
      rules: Rules, as the module describes them; the first match claims an array.
      notes: Sentences for the report.

    Returns:
      Variables with the structure of `target`, NumPy arrays that share no memory with
      the inputs, which stay unchanged; and the report.

    Raises:
      TransferError: All violations together: a rule that is invalid or claims nothing;
        an array that no rule claims, or that one side lacks though the action needs
        both; shapes or dtypes that differ after the action; NaN or infinity in an array
        that would be used; a leaf that is not an array of numbers, or lies outside the
        collections that cross a stage boundary.
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
        rows.append(
            Row(
                path=path,
                action=rule.action,
                rule=rule.pattern,
                source_shape=None if before is None else before.shape,
                target_shape=None if start is None else start.shape,
                source_norm=_norm(before),
                fresh_norm=_norm(start),
                norm=_norm(after),
            )
        )
        result[path] = after
    if violations:
        raise TransferError(violations)
    return _unflatten(target, result), TransferReport(tuple(rows), tuple(notes))


def check_rules(rules: Sequence[tuple[str, str] | Rule]) -> None:
    """Raises a TransferError if a rule is invalid; needs no variables."""
    violations: list[str] = []
    for rule in rules:
        _compile(rule, violations)
    if violations:
        raise TransferError(violations)


class Action(NamedTuple):
    """Entry of `ACTIONS`; see `_action` for the fields.

    Attributes:
      change: Function that changes the shape; None if values are copied unchanged.
      suits: Function of source and target shape: whether to suggest the action.
      argument: Meaning of the argument; empty if the action does not take one.
    """

    change: Callable[..., np.ndarray] | None
    suits: Callable[[Shape, Shape], bool]
    argument: str = ""


ACTIONS = {
    "copy": Action(None, lambda source, target: source == target),
    "init": Action(None, lambda source, target: source != target),
    "drop": Action(None, lambda source, target: False),
}


def _action(
    suits: Callable[[Shape, Shape], bool], argument: str = ""
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Registers a change of shape as an action, under the name of its function.

    Args:
      suits: Function of source and target shape: whether to suggest the action if these
        differ.
      argument: Meaning of the positive integer after the colon, which the function gets
        as a third argument; empty if the action does not take one.
    """

    def register(change: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        ACTIONS[change.__name__] = Action(change, suits, argument)
        return change

    return register


@_action(suits=lambda source, target: _is_kernel(source, target, (3, 1)))
def rgb_to_grey(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Sums `[kh, kw, 3, cout]` over its input channels, to `[kh, kw, 1, cout]`.

    The response to a grey image is the source's response to that image in all three
    channels.
    """
    _require_channels(kernel, 3)
    grey = kernel.astype(np.float64).sum(axis=2, keepdims=True)
    return grey.astype(kernel.dtype)


@_action(suits=lambda source, target: _is_kernel(source, target, (1, 3)))
def grey_to_rgb(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Spreads `[kh, kw, 1, cout]` evenly over three channels: `[kh, kw, 3, cout]`.

    The response to a colour image is the source's response to the mean of its channels.
    """
    _require_channels(kernel, 1)
    third = kernel.astype(np.float64) / 3
    return np.repeat(third, 3, axis=2).astype(kernel.dtype)


@_action(
    suits=lambda source, target: (
        len(source) == len(target) == 4
        and source != target
        and source[2:] == target[2:]
    )
)
def resize_kernel(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Resizes the window of a convolution, `[kh, kw, cin, cout]`.

    The new kernel responds to a patch of its size as the source's kernel does to that
    patch, resized bilinearly to the source's size. The response to constant patches is
    unchanged; resizing to the same size is the identity.
    """
    if kernel.ndim != 4 or len(shape) != 4:
        raise ValueError("kernels [kh, kw, cin, cout] are required")
    return _resize(kernel, shape[0], shape[1])


@_action(
    suits=lambda source, target: _is_dense(source, target),
    argument="the number of channels of the feature map that the layer flattens",
)
def resize_dense(kernel: np.ndarray, shape: Shape, channels: int) -> np.ndarray:
    """Resizes the grid of a dense layer behind a flattened square feature map.

    The rows of `[side * side * channels, units]` are in (row, column, channel) order.
    The new layer responds to a feature map of its size as the source's layer does to
    that map, resized bilinearly to the source's grid.
    """
    if kernel.ndim != 2 or len(shape) != 2:
        raise ValueError("kernels [side * side * channels, units] are required")
    old, new = (_side(rows, channels) for rows in (kernel.shape[0], shape[0]))
    grid = kernel.reshape(old, old, channels, kernel.shape[1])
    return _resize(grid, new, new).reshape(new * new * channels, kernel.shape[1])


class _Compiled(NamedTuple):
    """Compiled rule; `regex` or `action` is None if that part is invalid."""

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
        violations.append(f"rule '{pattern}': not a regular expression: {error}.")
        return _Compiled(pattern, None, None, None, default)
    try:
        return _Compiled(pattern, regex, action, _parse_action(action), default)
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

    Rules after an invalid one are not judged, because the arrays that it was meant to
    claim are unknown.
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
                violations.append(
                    f"{path}: unclaimed by any rule. {_put(path, action)}"
                )
    for i, rule in enumerate(judged):
        if i not in used and (fault := _why_idle(rule, paths)):
            violations.append(f"rule '{rule.pattern}': {fault}")
    return claims


def _why_idle(rule: _Compiled, paths: Sequence[str]) -> str | None:
    """Returns why a rule does not claim any array; None for a default rule."""
    if any(rule.regex.fullmatch(path) for path in paths):
        if rule.default:
            return None
        return "earlier rules claim all of its matches. Move it up or delete it."
    part = next((path for path in paths if rule.regex.search(path)), None)
    if part:
        return (
            f"it matches only parts of paths, such as '{part}', not a whole path. Add "
            "'.*' for the rest."
        )
    example = f" Paths look like '{paths[0]}'." if paths else ""
    return f"it does not match any array.{example}"


def _carry(
    rule: _Compiled, path: str, source: np.ndarray | None, target: np.ndarray | None
) -> tuple[np.ndarray | None, list[str]]:
    """Returns the target's new array, or None, and the violations."""
    if rule.action is None:
        return None, []
    if rule.action == "drop":
        if target is None:
            return None, []
        return None, [f"the target needs this array. {_put(path, 'init')}"]
    if rule.action == "init":
        faults = _not_finite(target, "target's fresh")
        return target, [f"{fault} Fix its initialiser." for fault in faults]
    if target is None:
        return None, [f"only the source has this array. {_put(path, 'drop')}"]
    if source is None:
        return None, [f"only the target has this array. {_put(path, 'init')}"]
    faults = [
        f"{fault} Train that stage again. Or, to re-initialise it: {_put(path, 'init')}"
        for fault in _not_finite(source, "source's")
    ]
    if source.dtype != target.dtype:
        faults.append(
            f"the source is {source.dtype}, the target {target.dtype}. Convert the "
            f"source's array. Or, to re-initialise it: {_put(path, 'init')}"
        )
    shapes = f"source {source.shape} and target {target.shape}"
    advice = _put(path, *_suitable_actions(source.shape, target.shape))
    try:
        after = rule.change(source, target.shape) if rule.change else source
    except ValueError as error:
        return None, [*faults, f"'{rule.action}' with {shapes}: {error}. {advice}"]
    if after.shape != target.shape:
        faults.append(f"'{rule.action}' cannot reconcile {shapes}. {advice}")
    return after, faults


def _not_finite(array: np.ndarray | None, whose: str) -> list[str]:
    bad = 0 if array is None else int(np.sum(~np.isfinite(array)))
    if not bad:
        return []
    return [f"{bad} of the {whose} {array.size} values are NaN or infinite."]


def _put(path: str, *actions: str) -> str:
    """Returns the suggestion to put one of these rules first."""
    written, notes = [], []
    for action in actions:
        argument = ACTIONS[action].argument
        written.append(str((re.escape(path), f"{action}:C" if argument else action)))
        if argument:
            notes.append(f", where C is {argument}")
    return f"Put the rule {' or '.join(written)} first{''.join(notes)}."


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
        is_array = hasattr(node, "__array__") and hasattr(node, "dtype")
        if is_array and _NUMBER.fullmatch(getattr(node.dtype, "name", "")):
            arrays[path] = np.asarray(node)
        else:
            kind = node.dtype if is_array else type(node).__name__
            violations.append(f"{whose} {path}: {kind} is not an array of numbers.")

    if not isinstance(tree, Mapping):
        violations.append(f"{whose}: {type(tree).__name__} is not a dict of variables.")
        return arrays
    for name, collection in tree.items():
        if name in COLLECTIONS:
            walk(collection, name)
        else:
            violations.append(
                f"{whose} {name}: only {' and '.join(COLLECTIONS)} are transferred "
                "between stages. Remove it."
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


def _parse_action(action: str) -> Change | None:
    """Returns the change of shape named by `action`, or None for other actions.

    Raises:
      ValueError: The action is unknown, or its argument is missing or invalid.
    """
    name, colon, value = action.partition(":")
    entry = ACTIONS.get(name)
    if entry is None:
        raise ValueError(f"unknown action '{action}'.{did_you_mean(name, ACTIONS)}")
    if not entry.argument:
        if colon:
            raise ValueError(
                f"unknown action '{action}': '{name}' does not take an argument."
            )
        return entry.change
    if not (value.isascii() and value.isdecimal() and int(value)):
        raise ValueError(f"'{name}' needs {entry.argument}, such as '{name}:256'.")
    return lambda kernel, shape: entry.change(kernel, shape, int(value))


def _suitable_actions(source: Shape, target: Shape) -> list[str]:
    """Returns the names of the actions that change a source array to a target's shape.

    'init' comes last, because it discards the source's values.
    """
    names = [name for name, action in ACTIONS.items() if action.suits(source, target)]
    return sorted(names, key=lambda name: name == "init")


def _is_kernel(source: Shape, target: Shape, channels: tuple[int, int]) -> bool:
    """Whether two convolutions differ only in input channels, as given by `channels`."""
    if not len(source) == len(target) == 4 or (source[2], target[2]) != channels:
        return False
    return source[:2] == target[:2] and source[3] == target[3]


def _is_dense(source: Shape, target: Shape) -> bool:
    """Whether two dense layers may follow square maps with the same channels."""
    if not len(source) == len(target) == 2 or source[1] != target[1]:
        return False
    # Both are C times a square for some C if and only if their product is a square.
    product = source[0] * target[0]
    return product > 0 and source != target and math.isqrt(product) ** 2 == product


def _require_channels(kernel: np.ndarray, channels: int) -> None:
    if kernel.ndim != 4 or kernel.shape[2] != channels:
        raise ValueError(f"a source kernel [kh, kw, {channels}, cout] is required")


def _side(rows: int, channels: int) -> int:
    side = math.isqrt(rows // channels)
    if side * side * channels != rows or not rows:
        raise ValueError(f"{rows} rows are not a square map of {channels} channels")
    return side


def _resize(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes the first two axes of `[h, w, c, n]` by the transpose of interpolation.

    <W', x> = <W, R x> for every map x, with R the interpolation from the new grid to
    the old one, gives W' = R^T W. Interpolating W itself would change the sum of the
    weights, and so every response, with the number of positions.
    """
    rows = _interpolation(height, kernel.shape[0])
    columns = _interpolation(width, kernel.shape[1])
    resized = np.einsum(
        "hi,wj,hwcn->ijcn", rows, columns, kernel.astype(np.float64), optimize=True
    )
    return resized.astype(kernel.dtype)


def _interpolation(old: int, new: int) -> np.ndarray:
    """Returns the matrix `[new, old]` of linear interpolation, rows summing to one.

    Pixel centres lie at half-integers; shrinking widens the triangle so that no pixel
    is skipped, as `jax.image.resize(..., 'linear')` does.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old))
    weights = np.maximum(0, 1 - distance / max(1, old / new))
    return weights / weights.sum(axis=1, keepdims=True)


def _norm(array: np.ndarray | None) -> float | None:
    if array is None:
        return None
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(array.astype(np.float64).ravel()))
    return norm if math.isfinite(norm) else None


def _layers(paths: Iterable[str]) -> str:
    """Returns " (fc7, head)", each layer once; '' without paths."""
    layers = dict.fromkeys(_layer(path) for path in paths)
    return f" ({', '.join(layers)})" if layers else ""


def _layer(path: str) -> str:
    """Returns the path without its collection and the name of the array."""
    return "/".join(path.split("/")[1:-1]) or path


def _count(values: int) -> str:
    for size, unit in ((10**6, " M"), (10**3, " k")):
        if values >= size:
            return f"{values / size:.1f}{unit}"
    return str(values)


def _text(shape: Shape | None) -> str:
    return "-" if shape is None else str(shape)


def _number(norm: float | None) -> str:
    return "-" if norm is None else f"{norm:.4g}"
