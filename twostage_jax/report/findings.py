"""What a difference between arms is in words: how large, and how sure.

A difference is called shown where its Holm-corrected p-value is below 0.05 and there
are two seeds or more. Everything else is said to be not shown, never to be nothing.
"""

from twostage_jax.report.analysis import METRIC, Analysis, Size
from twostage_jax.report.formats import minus, p_text, show
from twostage_jax.report.scores import Scores
from twostage_jax.size_study import SizeStudy
from twostage_jax.statistics import LEVEL, Difference, Interval, holm

ALPHA = round(1 - LEVEL, 9)
SCORE = "balanced accuracy"


def champion_pairs(analysis: Analysis, metric: str = METRIC) -> list[Difference]:
    """Returns champion less each other arm, the baseline first."""
    champion, baseline = analysis.champion, analysis.baseline
    found = []
    for one in analysis.full.scores.differences[metric]:
        if one.first == champion:
            found.append(one)
        elif one.second == champion:
            found.append(turned(one))
    return sorted(found, key=lambda one: one.second != baseline)


def turned(one: Difference) -> Difference:
    """Returns the same difference, second arm minus first."""
    low, high = (None if x is None else -x for x in (one.high, one.low))
    return Difference(
        one.second, one.first, one.metric, -one.estimate, low, high, one.p_value,
        one.p_holm, one.mcnemar, one.reason,
    )  # fmt: skip


def verdict(one: Difference, p_value: float | None) -> str:
    """Returns what holds of the first arm.

    'better' or 'worse'; 'leaning' if that is lost in the correction of the p-value;
    'not shown'; 'unknown' without an interval.
    """
    if p_value is None or one.low is None:
        return "unknown"
    if p_value < ALPHA:
        return "better" if one.estimate > 0 else "worse"
    return "leaning" if one.p_value < ALPHA else "not shown"


def sentence(one: Difference, scores: Scores) -> str:
    """Returns one difference in words."""
    score = one.metric.replace("_", " ")
    pairs = len(scores.differences[one.metric])
    first, second = show("arm", one.first), show("arm", one.second)
    fact = scored(one, f" of {score}")
    if one.low is None:
        return (
            f"{capital(fact)} on {tested(scores)}. Whether this holds for other "
            f"patients cannot be said: {one.reason}."
        )
    sure = surely(as_told(one), pairs)
    if len(scores.seeds) == 1:
        return (
            f"{capital(fact)} in a single training of each ({sure}; over patients only). "
            "With a single seed, the effect cannot be separated from chance: run more "
            "seeds to judge the methods."
        )
    found = verdict(one, one.p_holm)
    if found == "better":
        return f"{capital(first)} beats {second} by {points(one)} of {score} ({sure})."
    if found == "worse":
        return (
            f"{capital(first)} does worse than {second}, by {points(one)} of {score} "
            f"({sure})."
        )
    if found == "leaning":
        return (
            f"{capital(fact)}, but among {pairs} pairs that is not enough to call it "
            f"shown ({sure}; p {equals(one.p_value)} alone)."
        )
    return (
        f"No difference between {first} and {second} is shown: {first} less {second} is "
        f"{minus(f'{100 * one.estimate:.1f}')} points of {score} "
        f"({surely(one, pairs)}). The data "
        f"agree with anything from {_reach(one)}."
    )


def as_told(one: Difference) -> Difference:
    """Returns it with the sign of words that say 'more' or 'less', 'beats' or 'worse'.

    The number in them is never negative, so its interval is that of the gain or of the
    loss; where the words are 'first less second' the interval has that sign.
    """
    return turned(one) if round(1000 * one.estimate) < 0 else one


def scored(one: Difference, of: str) -> str:
    first, second = show("arm", one.first), show("arm", one.second)
    if not round(1000 * one.estimate):
        return f"{first} scored as {second} did, to a tenth of a point{of}"
    more = "more" if one.estimate > 0 else "less"
    return f"{first} scored {points(one)}{of} {more} than {second}"


def points(one: Difference | Interval) -> str:
    """Returns the size of a difference: '3.1 points'."""
    return f"{abs(100 * one.estimate):.1f} points"


def size_differences(analysis: Analysis) -> list[tuple[Size, Difference, float | None]]:
    """Returns each arm against the baseline at every size.

    With its p-value, Holm-corrected over all of them.
    """
    found = []
    for size in analysis.sizes:
        for one in size.scores.differences[METRIC]:
            if one.second == analysis.baseline:
                found.append((size, one))
            elif one.first == analysis.baseline:
                found.append((size, turned(one)))
    corrected = holm([one.p_value for _, one in found])
    return [(size, one, p) for (size, one), p in zip(found, corrected, strict=True)]


def area_p_values(study: SizeStudy) -> dict[str, float | None]:
    """Returns arm -> p-value of its area gained, Holm-corrected over the arms."""
    corrected = holm([p_value for _, p_value in study.area_gains.values()])
    return dict(zip(study.area_gains, corrected, strict=True))


def ends(interval: Interval | Difference) -> str:
    """Returns '95 % CI 1.2 to 5.0', in points."""
    low, high = (minus(f"{100 * x:.1f}") for x in (interval.low, interval.high))
    return f"{100 * LEVEL:.0f} % CI {low} to {high}"


def tested(scores: Scores) -> str:
    """Returns what was tested: patients, where they are known, and patches."""
    patches = f"{scores.examples:,} test patches"
    if scores.groups is None:
        return patches
    return (
        f"{scores.groups:,} test patient{'s' if scores.groups > 1 else ''} ({patches})"
    )


def surely(one: Difference, pairs: int) -> str:
    """Returns the interval and the corrected p-value: '95 % CI 1.2 to 5.0; p = 0.01'."""
    parts = [] if one.low is None else [ends(one)]
    if one.p_holm is not None:
        over = f", Holm-corrected over {pairs} pairs" if pairs > 1 else ""
        parts.append(f"p {equals(one.p_holm)}{over}")
    return "; ".join(parts)


def equals(p_value: float) -> str:
    """Returns '= 0.012' or '< 0.001'."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _reach(one: Difference) -> str:
    def words(value: float) -> str:
        side = "better" if value >= 0 else "worse"
        return f"{abs(100 * value):.1f} points {side}"

    return f"{words(one.low)} to {words(one.high)}"


def capital(text: str) -> str:
    """Returns the text with a capital at its start."""
    return text[:1].upper() + text[1:]
