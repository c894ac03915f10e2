"""Differences between arms in words: their size, and how sure they are.

A difference is called shown if its p-value is below 0.05 and there are two or more
seeds. The primary endpoint needs no correction; all other p-values are Holm-corrected.
Everything else is said to be not shown, never to be nothing.
"""

from twostage_jax.report.analysis import METRIC, Analysis, Primary, Size
from twostage_jax.report.formats import listed, minus, p_text, show
from twostage_jax.report.scores import Scores
from twostage_jax.stats.intervals import LEVEL, Difference, Interval, holm
from twostage_jax.stats.learning_curve import SizeStudy

ALPHA = round(1 - LEVEL, 9)
SCORE = "balanced accuracy"
NAMED_BEFORE = "This is the primary endpoint, named before the run."


def champion_pairs(analysis: Analysis, metric: str = METRIC) -> list[Difference]:
    """Returns champion minus each other arm, the baseline first."""
    champion, baseline = analysis.champion, analysis.baseline
    found = []
    for one in analysis.full.scores.differences[metric]:
        if one.first == champion:
            found.append(one)
        elif one.second == champion:
            found.append(one.turned())
    return sorted(found, key=lambda one: one.second != baseline)


def verdict(one: Difference, p_value: float | None) -> str:
    """Returns the verdict on the first arm.

    'better' or 'worse'; 'leaning' if that is lost in the correction of the p-value;
    'not shown'; 'unknown' without an interval.
    """
    if p_value is None or one.low is None:
        return "unknown"
    if p_value < ALPHA:
        return "better" if one.estimate > 0 else "worse"
    return "leaning" if one.p_value < ALPHA else "not shown"


def primary_words(primary: Primary, scores: Scores) -> str:
    """Returns the answer of the primary endpoint in words."""
    one = primary.difference
    score = one.metric.replace("_", " ")
    first, second = show("arm", one.first), show("arm", one.second)
    if primary.sizes > 1:
        score += f", mean over {primary.sizes} sizes"
    if primary.reason:
        return (
            f"The primary endpoint, {first} minus {second} in {score}, cannot be "
            f"computed: {primary.reason}."
        )
    fact = scored(one, f" of {score}")
    if one.low is None:
        return (
            f"{capital(fact)} on {tested(scores)}. Whether this holds for other "
            f"patients is unknown: {one.reason}. {NAMED_BEFORE}"
        )
    p_value = f"; p {equals(one.p_value)}" if one.p_value is not None else ""
    sure = f"{readings(as_told(one))}{p_value}"
    if len(primary.seeds) == 1:
        return f"{_single(fact, sure)} {NAMED_BEFORE}"
    found = verdict(one, one.p_value)
    if found in ("better", "worse"):
        verb = "beats" if found == "better" else "is worse than"
        answer = (
            f"{capital(first)} {verb} {second} by {points(one)} of {score} ({sure})."
        )
    else:
        answer = (
            f"No difference between {first} and {second} is shown: {first} minus "
            f"{second} is {_signed(one.estimate)} points of {score} "
            f"({readings(one)}{p_value}). {compatible(one)}"
        )
    parts = (answer, detectable(one), NAMED_BEFORE)
    return " ".join(part for part in parts if part)


def detectable(one: Interval) -> str:
    """Returns the least detectable difference in words, or ''."""
    if one.detectable is None:
        return ""
    return (
        "The least detectable difference of this study (power 80 %) is "
        f"{100 * one.detectable:.1f} points."
    )


def compatible(one: Interval) -> str:
    """Returns which true differences the data rule out."""
    gain, loss = max(one.high, 0), max(-one.low, 0)
    parts = [f"gains above {100 * gain:.1f} points"] if one.high > 0 else ["any gain"]
    parts.append(f"losses above {100 * loss:.1f} points" if one.low < 0 else "any loss")
    return f"{capital(listed(parts))} are not compatible with these data."


def sentence(one: Difference, scores: Scores) -> str:
    """Returns one difference in words, its p-value corrected over all pairs."""
    score = one.metric.replace("_", " ")
    pairs = len(scores.differences[one.metric])
    first, second = show("arm", one.first), show("arm", one.second)
    fact = scored(one, f" of {score}")
    if one.low is None:
        return (
            f"{capital(fact)} on {tested(scores)}. Whether this holds for other "
            f"patients is unknown: {one.reason}."
        )
    sure = surely(as_told(one), pairs)
    if len(scores.seeds) == 1:
        return _single(fact, sure)
    found = verdict(one, one.p_holm)
    if found == "better":
        return f"{capital(first)} beats {second} by {points(one)} of {score} ({sure})."
    if found == "worse":
        return (
            f"{capital(first)} is worse than {second} by {points(one)} of {score} "
            f"({sure})."
        )
    if found == "leaning":
        return (
            f"{capital(fact)}, but this is not significant among {pairs} pairs "
            f"({sure}; uncorrected p {equals(one.p_value)})."
        )
    return (
        f"No difference between {first} and {second} is shown: {first} minus {second} "
        f"is {_signed(one.estimate)} points of {score} ({surely(one, pairs)})."
    )


def _single(fact: str, sure: str) -> str:
    return (
        f"With a single seed, the effect cannot be separated from chance: {fact} in this "
        f"one training of each ({sure}; over patients only). Run more seeds to judge the "
        "methods."
    )


def as_told(one: Difference) -> Difference:
    """Returns the difference with the sign of words such as 'more' or 'worse'.

    The number in them is never negative, so its interval is that of the gain or of the
    loss; if the words are 'first minus second', the interval has that sign.
    """
    return one.turned() if round(1000 * one.estimate) < 0 else one


def scored(one: Difference, of: str) -> str:
    """Returns 'two-stage scored 3.1 points of accuracy more than scratch'."""
    first, second = show("arm", one.first), show("arm", one.second)
    if not round(1000 * one.estimate):
        return f"{first} and {second} scored the same{of}, to a tenth of a point"
    more = "more" if one.estimate > 0 else "less"
    return f"{first} scored {points(one)}{of} {more} than {second}"


def points(one: Difference | Interval) -> str:
    """Returns the size of a difference: '3.1 points'."""
    return f"{abs(100 * one.estimate):.1f} points"


def size_differences(analysis: Analysis) -> list[tuple[Size, Difference, float | None]]:
    """Returns each arm minus the baseline at every size, with a p-value.

    The p-values are Holm-corrected over all of them.
    """
    found = []
    for size in analysis.sizes:
        for one in size.scores.differences[METRIC]:
            if one.second == analysis.baseline:
                found.append((size, one))
            elif one.first == analysis.baseline:
                found.append((size, one.turned()))
    corrected = holm([one.p_value for _, one in found])
    return [(size, one, p) for (size, one), p in zip(found, corrected, strict=True)]


def area_p_values(study: SizeStudy) -> dict[str, float | None]:
    """Returns arm -> p-value of its gain in area, Holm-corrected over the arms."""
    corrected = holm([p_value for _, p_value in study.area_gains.values()])
    return dict(zip(study.area_gains, corrected, strict=True))


def ends(interval: Interval) -> str:
    """Returns '95 % CI 1.2 to 5.0', in points."""
    return f"{100 * LEVEL:.0f} % CI {_range(interval.low, interval.high)}"


def readings(interval: Interval) -> str:
    """Returns `ends`, with both readings if there are two."""
    if interval.these is None:
        return ends(interval)
    return (
        f"{ends(interval)} for new training patients, {_range(*interval.these)} for "
        "those of this study"
    )


def _range(low: float, high: float) -> str:
    return f"{_signed(low)} to {_signed(high)}"


def _signed(value: float) -> str:
    return minus(f"{100 * value:.1f}")


def tested(scores: Scores) -> str:
    """Returns the numbers of test patients, if they are known, and test patches."""
    patches = f"{scores.examples:,} test patches"
    if scores.groups is None:
        return patches
    return (
        f"{scores.groups:,} test patient{'s' if scores.groups > 1 else ''} ({patches})"
    )


def surely(one: Difference, pairs: int) -> str:
    """Returns the interval and the corrected p-value: '95 % CI 1.2 to 5.0; p = 0.01'."""
    parts = [] if one.low is None else [readings(one)]
    if one.p_holm is not None:
        over = f", Holm-corrected over {pairs} pairs" if pairs > 1 else ""
        parts.append(f"p {equals(one.p_holm)}{over}")
    return "; ".join(parts)


def equals(p_value: float) -> str:
    """Returns '= 0.012' or '< 0.001'."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def capital(text: str) -> str:
    """Returns the text with a capital at its start."""
    return text[:1].upper() + text[1:]
