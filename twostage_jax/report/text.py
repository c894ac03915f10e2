"""The answer of a study in words: effect size and uncertainty.

A difference is significant if its p-value is below 0.05 and there are two or more seeds.
The primary endpoint needs no correction; all other p-values are Holm-corrected. Other
differences are called not significant, never absent. Each caveat is stated once: that of
a single seed with the answer, those of the data below it.
"""

from collections.abc import Iterable

import numpy as np

from twostage_jax.report.analysis import (
    METRIC,
    Analysis,
    Baseline,
    ByPatient,
    Primary,
    Scores,
    Size,
)
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import (
    arm_name,
    listed,
    mean_and_range,
    minus,
    p_text,
    plural,
)
from twostage_jax.stats.intervals import (
    ALPHA,
    LEVEL,
    Difference,
    Interval,
    corrected,
)
from twostage_jax.stats.learning_curve import describe_size
from twostage_jax.stats.metrics import METRICS, OF_PATIENTS

SCORE = "balanced accuracy"
CHANCE = "with a single seed the effect cannot be separated from chance"


def summary(study: Study, analysis: Analysis) -> list[str]:
    """Returns the paragraphs at the top of the report; the first is the answer."""
    scores, primary = analysis.full.scores, analysis.primary
    if len(scores.arms) < 2:
        return [_alone(analysis), _basis(study, analysis)]
    pairs = champion_pairs(analysis)
    if primary:
        answer = primary_words(primary)
        if primary.sizes == 1 and not primary.reason:
            # The pair is the primary endpoint itself.
            pairs = [one for one in pairs if one.second != analysis.baseline]
    else:
        first, *pairs = pairs
        answer = sentence(first, scores)
    paragraphs = [answer]
    if all(one.low is None for one in scores.differences[METRIC]):
        one = champion_pairs(analysis, "accuracy")[0]
        if one.low is not None:
            paragraphs.append(f"By plain accuracy: {sentence(one, scores)}")
    if others := _others(analysis, pairs):
        lead = (
            "Exploratory"
            if primary
            else "Exploratory, because no primary endpoint was named"
        )
        known = any(one.low is not None for one in scores.differences[METRIC])
        units = f"points of {SCORE}{', 95 % CI, Holm-corrected p' if known else ''}"
        paragraphs.append(f"{lead} ({units}): {others}.")
    return [*paragraphs, _basis(study, analysis)]


def size_words(analysis: Analysis) -> list[str]:
    """Returns paragraphs on how the difference depends on the training-set size."""
    return [text for text in (_by_size(analysis), _over_sizes(analysis)) if text]


def influence_words(found: ByPatient) -> str:
    """Returns a paragraph on the influence of single patients on the main difference."""
    one, most = found.difference, found.most
    low, high = (_signed(x) for x in (found.without.min(), found.without.max()))
    first, second = arm_name(one.first), arm_name(one.second)
    same = (np.sign(found.without) == np.sign(one.estimate)).all()
    sign = "" if same else " The sign depends on single patients."
    return capital(
        f"{first} minus {second} is {_signed(one.estimate)} points in "
        f"{_score_over(one.metric, found.sizes)}, and {low} to {high} points if any one "
        f"patient is excluded. Excluding {found.patients[most]} changes it most, to "
        f"{_signed(found.without[most])} points.{sign} By {found.score} of a patient's own "
        f"patches, {first} scores higher in {found.ahead} of {len(found.patients)} "
        f"patients, lower in {found.behind}."
    )


def champion_pairs(analysis: Analysis, metric: str = METRIC) -> list[Difference]:
    """Returns champion minus each other arm, the baseline first."""
    pairs = analysis.full.scores.minus(analysis.champion, metric).values()
    return sorted(
        (one.turned() for one in pairs), key=lambda one: one.second != analysis.baseline
    )


def size_differences(analysis: Analysis) -> list[tuple[Size, Difference]]:
    """Returns each arm minus the baseline at every size; `p_holm` is over all of them."""
    pairs = [
        (size, one)
        for size in analysis.sizes
        for one in size.scores.minus(analysis.baseline).values()
    ]
    found = corrected([one for _, one in pairs])
    return [(size, one) for (size, _), one in zip(pairs, found, strict=True)]


def verdict(one: Difference, p_value: float | None) -> str:
    """Returns the verdict on the first arm.

    'better' or 'worse'; 'leaning' if significant only before correction; 'not shown' if
    not significant; 'unknown' without an interval.
    """
    if p_value is None or one.low is None:
        return "unknown"
    if p_value < ALPHA:
        return "better" if one.estimate > 0 else "worse"
    return "leaning" if one.p_value < ALPHA else "not shown"


def primary_words(primary: Primary) -> str:
    """Returns the answer of the primary endpoint in words."""
    one = primary.difference
    score = _score_over(one.metric, primary.sizes)
    if primary.reason:
        return (
            f"The primary endpoint, {arm_name(one.first)} minus {arm_name(one.second)} "
            f"in {score}, cannot be computed: {primary.reason}."
        )
    notes = ["primary endpoint"]
    if one.detectable is not None and len(primary.seeds) > 1:
        notes.append(f"80 % power to detect {100 * one.detectable:.1f} points")
    return _sentence(one, one.p_value, score, len(primary.seeds), notes)


def sentence(one: Difference, scores: Scores) -> str:
    """Returns one difference in words, with its p-value corrected over all pairs."""
    score, pairs = _score_over(one.metric), len(scores.differences[one.metric])
    return _sentence(one, one.p_holm, score, len(scores.seeds), pairs=pairs)


def _sentence(
    one: Difference,
    p_value: float | None,
    score: str,
    seeds: int,
    notes: Iterable[str] = (),
    pairs: int = 1,
) -> str:
    """Returns the answer, then the number, then the caveat.

    `p_value` decides significance, and is corrected for `pairs` comparisons; `notes` are
    remarks in brackets.
    """
    first, second = arm_name(one.first), arm_name(one.second)
    equal = not round(1000 * one.estimate)
    size = "less than 0.1" if equal else f"{abs(100 * one.estimate):.1f}"
    more = "higher" if one.estimate > 0 else "lower"
    fact = f"{first} scored {size} points {more} than {second} in {score}"
    if equal:
        fact = f"{first} and {second} are equal in {score} to a tenth of a point"
    if one.low is None:
        brackets = f" ({'; '.join(notes)})" if notes else ""
        return capital(
            f"{fact}{brackets}; whether this holds for other patients is unknown: "
            f"{one.reason}."
        )

    def sure(interval: Difference) -> str:
        over = f", Holm-corrected over {pairs} pairs" if pairs > 1 else ""
        p = [] if p_value is None else [f"p {_equals(p_value)}{over}"]
        loss = "loss: " if interval is not one else ""
        return f"({'; '.join([loss + _readings(interval), *p, *notes])})"

    # Equal arms are told without a sign.
    told = one if equal else _as_told(one)
    if seeds == 1:
        return capital(f"{fact} {sure(told)}, but {CHANCE}.")
    found = verdict(one, p_value)
    if found in ("better", "worse"):
        verb = "beats" if found == "better" else "is worse than"
        return capital(
            f"{first} {verb} {second} by {size} points in {score} {sure(_as_told(one))}."
        )
    if found == "leaning":
        return capital(
            f"{fact} {sure(told)}, but this is not significant after correction for "
            f"{pairs} pairs (uncorrected p {_equals(one.p_value)})."
        )
    return capital(
        f"{first} and {second} do not differ significantly: {first} minus {second} is "
        f"{_signed(one.estimate)} points in {score} {sure(one)}. {_excluded(one)}"
    )


def _others(analysis: Analysis, pairs: Iterable[Difference]) -> str:
    """Returns the best baseline and further arms against the champion, by verdict."""
    found = [(one, one.p_holm, arm_name(one.second)) for one in pairs]
    if baselines := analysis.full.baselines:
        one, count = baselines[0].difference, len(baselines)
        among = f"best of {count} baselines" if count > 1 else "the only baseline"
        sizes = sum(bool(size.baselines) for size in analysis.sizes)
        over = f"; p is corrected over {sizes} sizes" if sizes > 1 else ""
        name = f"{arm_name(baselines[0].name)} ({among}{over})"
        found.insert(0, (one, one.p_holm, name))
    champion = arm_name(analysis.champion)
    leads = {
        "better": f"{champion} beats",
        "worse": f"{champion} is worse than",
        "not shown": f"not significant: {champion} minus",
        "unknown": f"{champion} minus",
    }
    clauses: dict[str, list[str]] = {}
    for one, p_value, second in found:
        answer = verdict(one, p_value)
        answer = "not shown" if answer == "leaning" else answer
        answer = answer if len(analysis.full.scores.seeds) > 1 else "unknown"
        told, by = one, ""
        if answer in ("better", "worse"):
            told, by = _as_told(one), "by "
        p = "" if p_value is None else f"; p {_equals(p_value)}"
        sure = "" if told.low is None else f" ({_range(told)}{p})"
        text = f"{second} {by}{_signed(told.estimate)}{sure}"
        clauses.setdefault(answer, []).append(text)
    told = "; ".join(
        f"{lead} {listed(clauses[answer])}"
        for answer, lead in leads.items()
        if answer in clauses
    )
    return told + (_fragile(baselines[0]) if baselines else "")


def _fragile(one: Baseline) -> str:
    """Returns a remark if the sign of the difference rests on one patient, or ''."""
    if one.without is None or one.without[0] * one.without[1] > 0:
        return ""
    low, high = map(_signed, one.without)
    return (
        f"; without any one patient, the difference from {arm_name(one.name)} is {low} to "
        f"{high}, so its sign depends on single patients"
    )


def _by_size(analysis: Analysis) -> str:
    """Returns a sentence on the sizes at which the champion is ahead, or behind."""
    if len(analysis.sizes) < 2 or analysis.champion == analysis.baseline:
        return ""
    several = {size.n for size in analysis.sizes if len(size.scores.seeds) > 1}
    sizes: dict[str, list[tuple[float, Difference]]] = {}
    for size, one in size_differences(analysis):
        if one.first == analysis.champion:
            found = verdict(one, one.p_holm) if size.n in several else "unknown"
            sizes.setdefault(found, []).append((size.n, one))
    champion, baseline = arm_name(analysis.champion), arm_name(analysis.baseline)
    words = {
        "better": f"{champion} is ahead of {baseline} at",
        "worse": f"{champion} is behind {baseline} at",
        "leaning": f"{champion} minus {baseline} is not significant after correction at",
        "not shown": f"{champion} minus {baseline} is not significant at",
        "unknown": f"{champion} minus {baseline} cannot be tested at",
    }
    parts = [
        f"{text} {listed(_at(*one) for one in sorted(sizes[key], key=lambda x: x[0]))}"
        for key, text in words.items()
        if key in sizes
    ]
    return (
        "By number of target training patches (tests Holm-corrected over sizes and "
        f"arms): {'; '.join(parts)}.{_trend(analysis)}"
    )


def _trend(analysis: Analysis) -> str:
    """Returns a sentence on whether the gain depends on the size."""
    study = analysis.size_study
    if study is None or analysis.champion not in study.trends:
        return ""
    one = study.trends[analysis.champion]
    if one.low is None or one.p_value is None or len(analysis.common_seeds) == 1:
        return ""
    remarks = {
        "leaning": f", not significant after correction over {len(study.trends)} arms",
        "not shown": ", not significant",
    }
    sure = remarks.get(verdict(one, one.p_holm), "")
    return (
        f" The gain at {study.n[0]:,.0f} patches minus that at {study.n[-1]:,.0f} is "
        f"{_signed(one.estimate)} points ({_ends(one)}{sure})."
    )


def _over_sizes(analysis: Analysis) -> str:
    """Returns the gain over all sizes and the equivalent sample size in words."""
    study, arm = analysis.size_study, analysis.champion
    if study is None or arm not in study.area_gains:
        return ""
    primary, text = analysis.primary, ""
    champion, baseline = arm_name(arm), arm_name(analysis.baseline)
    # The primary endpoint over all sizes is this gain, and was stated before.
    if not (primary and not primary.reason and primary.difference.metric == METRIC):
        gain = study.area_gains[arm]
        more = "higher" if gain.estimate >= 0 else "lower"
        told, p_value = gain if gain.estimate >= 0 else gain.turned(), gain.p_holm
        loss = "" if told is gain else "loss: "
        notes = ["no interval" if gain.low is None else loss + _readings(told)]
        if p_value is not None:
            several = len(study.area_gains)
            over = f", Holm-corrected over {several} arms" if several > 1 else ""
            notes.append(f"p {_equals(p_value)}{over}")
        text = (
            f"Over all sizes (area under the learning curve) {champion} scores "
            f"{abs(100 * gain.estimate):.1f} points {more} than {baseline} "
            f"({', '.join(notes)}). "
        )
        if p_value is not None and p_value >= ALPHA and len(analysis.common_seeds) > 1:
            text += "This difference is not significant. "
    smallest = study.matches[arm][0]
    needed, low, high = (
        None if x is None else describe_size(x, study.n)
        for x in (smallest.value, smallest.low, smallest.high)
    )
    sure = f" (95 % CI {low} to {high})" if low and (low, high) != (needed,) * 2 else ""
    return (
        f"{text}To match {champion} trained on {smallest.n:,.0f} patches, {baseline} "
        f"needs {needed} patches{sure}."
    )


def _alone(analysis: Analysis) -> str:
    (arm, interval), *_ = analysis.full.scores.intervals[METRIC].items()
    sure = (
        f"no interval: {interval.reason}" if interval.low is None else _ends(interval)
    )
    return (
        f"{capital(arm_name(arm))}, the only arm, reached a {SCORE} of "
        f"{100 * interval.estimate:.1f} % ({sure}); there is nothing to compare it with."
    )


def _basis(study: Study, analysis: Analysis) -> str:
    """Returns the sample sizes behind the answer, and the scope of the intervals."""
    full, scores = analysis.full, analysis.full.scores
    again = ", redrawn per seed" * study.folds_anew
    folds = f" in {len(study.folds)} folds{again}," if len(study.folds) > 1 else ""
    patients = f" of {mean_and_range(full.patients)} patients" if full.patients else ""
    parts = [
        f"Basis: {plural(len(scores.seeds), 'seed')}, {_tested(scores)}{folds} and "
        f"{'on average ' if len(set(full.patches)) > 1 else ''}"
        f"{mean_and_range(full.patches)} target training patches{patients}."
    ]
    intervals = scores.intervals[METRIC].values()
    unit = "patches" if scores.groups is None else "patients"
    if any(one.these for one in intervals):
        parts.append("Intervals include new training patients unless stated otherwise.")
    elif any(one.low is not None for one in intervals):
        parts.append(f"Intervals hold for these training {unit} only.")
    if scores.groups is None:
        parts.append(
            "The data do not identify patients, so the intervals are too narrow if "
            "several patches come from one patient."
        )
    if absent := absent_classes(scores):
        parts.append(absent)
    if study.missing:
        several = len(study.missing) > 1
        parts.append(
            f"{len(study.missing)} row{'s are' if several else ' is'} missing; see below."
        )
    return " ".join(parts)


def _as_told(one: Difference) -> Difference:
    """Returns the difference with the sign of words such as 'higher' or 'worse'.

    The number next to them is never negative, so its interval is that of the gain or of
    the loss; next to 'first minus second', the interval keeps its sign.
    """
    return one.turned() if one.estimate < 0 else one


def _excluded(one: Interval) -> str:
    """Returns which true differences the data rule out."""
    gain = f"gains above {100 * one.high:.1f} points" if one.high > 0 else "any gain"
    loss = f"losses above {-100 * one.low:.1f} points" if one.low < 0 else "any loss"
    return capital(f"{gain} and {loss} are incompatible with these data.")


def _ends(interval: Interval) -> str:
    """Returns '95 % CI 1.2 to 5.0', in points."""
    return f"{100 * LEVEL:.0f} % CI {_range(interval)}"


def _range(interval: Interval) -> str:
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _readings(interval: Interval) -> str:
    """Returns `_ends`, with both intervals if there are two."""
    if interval.these is None:
        return _ends(interval)
    low, high = map(_signed, interval.these)
    return f"{_ends(interval)} for new training patients, {low} to {high} for these"


def _at(n: float, one: Difference) -> str:
    sure = "no interval" if one.low is None else _ends(one)
    return f"{n:,.0f} ({minus(f'{100 * one.estimate:+.1f}')} points, {sure})"


def _signed(value: float) -> str:
    return minus(f"{100 * value:.1f}")


def _tested(scores: Scores) -> str:
    """Returns the numbers of test patients, if known, and test patches."""
    patches = f"{scores.examples:,} test patches"
    if scores.groups is None:
        return patches
    return f"{plural(scores.groups, 'test patient')} ({patches})"


def _equals(p_value: float) -> str:
    """Returns '= 0.012' or '< 0.001'."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _score_over(metric: str, sizes: int = 1) -> str:
    """Returns a metric in words, such as 'balanced accuracy'."""
    known = metric in METRICS
    name = METRICS[metric].title if known else metric.replace("_", " ")
    if metric in OF_PATIENTS:
        name = f"{name} of patients"
    return (
        f"{name} averaged over the learning curve ({sizes} sizes)"
        if sizes > 1
        else name
    )


def absent_classes(scores: Scores) -> str:
    """Returns a sentence on classes without test examples, or ''."""
    counts = np.bincount(scores.paired.labels, minlength=len(scores.class_names))
    names = [scores.class_names[k] for k in np.flatnonzero(counts == 0)]
    if not names:
        return ""
    return (
        f"No test patch is of class {listed(map(repr, names))}: balanced accuracy is over "
        f"the other {len(counts) - len(names)} classes, and AUROC is undefined."
    )


def capital(text: str) -> str:
    """Returns the text with a capital first letter."""
    return text[:1].upper() + text[1:]
