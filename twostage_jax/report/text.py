"""The head of the report: the answer of the study, in paragraphs."""

import dataclasses

from twostage_jax.report.analysis import METRIC, Analysis, Primary, Scores, Size
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import arm_name, listed, mean_and_range, minus, p_text
from twostage_jax.stats.intervals import LEVEL, Difference, Interval, holm
from twostage_jax.stats.learning_curve import SizeStudy, describe_size


def summary(study: Study, analysis: Analysis) -> list[str]:
    """Returns the paragraphs at the head of the report; the first is the answer."""
    scores = analysis.full.scores
    if len(scores.arms) < 2:
        return [_alone(analysis), _basis(study, analysis)]
    pairs = champion_pairs(analysis)
    primary = analysis.primary
    paragraphs = []
    if primary:
        paragraphs.append(primary_words(primary, scores))
        if primary.sizes == 1 and not primary.reason:
            # The pair is the primary endpoint itself.
            pairs = [one for one in pairs if one.second != analysis.baseline]
    else:
        first, *pairs = pairs
        paragraphs.append(sentence(first, scores))
        if verdict(first, first.p_holm) == "not shown" and len(scores.seeds) > 1:
            paragraphs[0] += f" {compatible(first)}"
    paragraphs.append(against_baselines(analysis))
    if all(one.low is None for one in scores.differences[METRIC]):
        paragraphs.append(_by_accuracy(analysis))
    others = " ".join(_other(one, scores) for one in pairs)
    if others:
        paragraphs.append(f"{_exploratory(primary)}{others}")
    paragraphs += [_basis(study, analysis), by_size(analysis), over_sizes(analysis)]
    return [text for text in paragraphs if text]


def against_baselines(analysis: Analysis) -> str:
    """Returns how the champion compares with the best baseline, at full size."""
    full = analysis.full
    if not full.baselines:
        return ""
    best, count = full.baselines[0], len(full.baselines)
    one = best.difference
    champion, name = arm_name(analysis.champion), arm_name(best.name)
    (p_holm, *_) = holm([b.difference.p_value for b in full.baselines])
    sure = surely(dataclasses.replace(as_told(one), p_holm=p_holm), count)
    fact = (
        f"{scored(one, f' of {SCORE}')}, the best of {count} "
        f"baseline{'s' if count > 1 else ''} without training a network on the target"
    )
    if len(full.scores.seeds) == 1:
        return f"{capital(fact)} ({sure})."
    found = verdict(one, p_holm)
    if found == "better":
        return f"{capital(fact)} ({sure})."
    lead = {
        "worse": f"A baseline beats {champion}: ",
        "unknown": "",
    }.get(found, f"{capital(champion)} is not shown to beat the baseline {name}: ")
    return f"{lead}{fact if lead else capital(fact)} ({sure})."


def _exploratory(primary: Primary | None) -> str:
    if primary is None:
        return (
            "No primary endpoint was named before this run, so every comparison is "
            "exploratory. "
        )
    return "All other comparisons are exploratory. "


def _other(one: Difference, scores: Scores) -> str:
    """Returns a further difference: what holds for all of them is not repeated."""
    if one.low is None:
        return f"{capital(scored(one, ''))}, in this sample only."
    if len(scores.seeds) == 1:
        sure = surely(as_told(one), len(scores.differences[one.metric]))
        return f"{capital(scored(one, ''))} with this one seed ({sure})."
    return sentence(one, scores)


def _by_accuracy(analysis: Analysis) -> str:
    """Returns the first difference by accuracy, if it alone has an interval."""
    one = champion_pairs(analysis, "accuracy")[0]
    if one.low is None:
        return ""
    return f"By plain accuracy: {sentence(one, analysis.full.scores)}"


def by_size(analysis: Analysis) -> str:
    """Returns at which sizes the champion is ahead of the baseline, or behind."""
    if len(analysis.sizes) < 2 or analysis.champion == analysis.baseline:
        return ""
    several = {size.n for size in analysis.sizes if len(size.scores.seeds) > 1}
    sizes: dict[str, list[tuple[float, Difference]]] = {}
    for size, one, p_value in size_differences(analysis):
        if one.first == analysis.champion:
            found = verdict(one, p_value) if size.n in several else "unknown"
            sizes.setdefault(found, []).append((size.n, one))
    champion, baseline = (
        arm_name(arm) for arm in (analysis.champion, analysis.baseline)
    )
    words = {
        "better": f"{champion} is ahead of {baseline} at",
        "worse": f"{champion} is behind {baseline} at",
        "leaning": f"{champion} against {baseline} is not significant after correction at",
        "not shown": f"no difference between {champion} and {baseline} is shown at",
        "unknown": f"the difference of {champion} and {baseline} has no test at",
    }
    parts = [
        f"{text} {listed([_at(n, one) for n, one in sorted(sizes[key], key=_first)])}"
        for key, text in words.items()
        if key in sizes
    ]
    mean = ", a mean over seeds and folds" if analysis.sizes_differ else ""
    return (
        f"By number of target training patches{mean} (those for validation, the same at "
        "every size, are not counted; tests Holm-corrected over sizes and arms): "
        f"{'; '.join(parts)}.{_trend(analysis)}"
    )


def _trend(analysis: Analysis) -> str:
    """Returns whether the gain depends on the size, compared as such."""
    study = analysis.size_study
    if study is None or analysis.champion not in study.trends:
        return ""
    change, p_value = study.trends[analysis.champion]
    if change.low is None or p_value is None or len(analysis.common_seeds) == 1:
        return ""
    shown = "" if p_value < ALPHA else ", so a change with size is not shown"
    return (
        f" The gain at {study.n[0]:,.0f} patches minus that at {study.n[-1]:,.0f} is "
        f"{minus(f'{100 * change.estimate:.1f}')} points ({ends(change)}{shown})."
    )


def over_sizes(analysis: Analysis) -> str:
    """Returns the gain over all sizes and the matching size in words."""
    study, arm = analysis.size_study, analysis.champion
    if study is None or arm not in study.area_gains:
        return ""
    seeds = analysis.common_seeds
    primary = analysis.primary
    told = primary and not primary.reason and primary.difference.metric == METRIC
    champion, baseline = arm_name(arm), arm_name(analysis.baseline)
    gain, p_value = study.area_gains[arm][0], area_p_values(study)[arm]
    more = "more" if gain.estimate >= 0 else "less"
    sure = "no interval" if gain.low is None else readings(_gain_as_told(gain))
    p = "" if p_value is None else f", p {equals(p_value)}"
    if p and len(study.area_gains) > 1:
        p += f", Holm-corrected over {len(study.area_gains)} arms"
    text = (
        f"Over all sizes (area under the learning curve) {champion} scores "
        f"{points(gain)} {more} than {baseline} ({sure}{p}"
        f"{', one seed' if len(seeds) == 1 else ''})."
    )
    if p_value is not None and p_value >= ALPHA and len(seeds) > 1:
        text += " No difference over all sizes is shown."
    if told:  # By the first paragraph.
        text = ""
    smallest = study.matches[arm][0]
    needed, low, high = (
        None if x is None else describe_size(x, study.n)
        for x in (smallest.value, smallest.low, smallest.high)
    )
    sure = f" (95 % CI {low} to {high})" if low and (low, high) != (needed,) * 2 else ""
    return (
        f"{text} To match {champion} trained on {smallest.n:,.0f} patches, {baseline} "
        f"needs {needed} patches{sure}."
    ).strip()


def _gain_as_told(gain: Interval) -> Interval:
    if gain.estimate >= 0:
        return gain
    return Difference(**vars(gain)).turned()


def _alone(analysis: Analysis) -> str:
    (arm, interval), *_ = analysis.full.scores.intervals[METRIC].items()
    sure = f"no interval: {interval.reason}" if interval.low is None else ends(interval)
    return (
        f"There is only one arm, so nothing is compared: {arm_name(arm)} reached a "
        f"{SCORE} of {100 * interval.estimate:.1f} % ({sure})."
    )


def _basis(study: Study, analysis: Analysis) -> str:
    """Returns the numbers that the answer rests on."""
    full = analysis.full
    seeds = len(full.scores.seeds)
    patients = full.patients
    of_patients = f" of {mean_and_range(patients)} patients" if patients else ""
    parts = [
        f"This rests on {seeds} seed{'s' if seeds > 1 else ''}, {tested(full.scores)}"
        f"{_folds(study)}, and "
        f"{'on average ' if len(set(full.patches)) > 1 else ''}"
        f"{mean_and_range(full.patches)} target training patches{of_patients}."
    ]
    if any(one.low is not None for one in full.scores.intervals[METRIC].values()):
        parts.append(_over(study, analysis))
    if full.scores.groups is None:
        parts.append(
            "The data names no patients: patches are taken as independent, so the "
            "intervals are too narrow if several come from one patient."
        )
    if study.missing:
        parts.append(
            f"{len(study.missing)} row{'s are' if len(study.missing) > 1 else ' is'} "
            "missing; see below."
        )
    return " ".join(parts)


def _over(study: Study, analysis: Analysis) -> str:
    """Returns what the intervals are over."""
    scores = analysis.full.scores
    unit = "patches" if scores.groups is None else "patients"
    over = f"test {unit}{' and seeds' if len(scores.seeds) > 1 else ''}"
    intervals = scores.intervals[METRIC].values()
    if any(one.these for one in intervals):
        return (
            f"The intervals are over {over} and, unless stated otherwise, over new "
            "training patients, too."
        )
    if len(study.folds) < 2:
        why = "with one split, the study does not tell how much they matter"
    elif len(scores.seeds) < 2:
        why = "a single seed does not tell how much they matter"
    elif not study.folds_anew:
        why = "with the same folds for every seed, how much they matter is unknown"
    else:
        why = "their numbers are not known"
    return (
        f"The intervals are over {over}, for the training {unit} of this study only: "
        f"{why}."
    )


def _folds(study: Study) -> str:
    if len(study.folds) < 2:
        return ""
    return f" in {len(study.folds)} folds{', drawn again for each seed' * study.folds_anew}"


def _at(n: float, one: Difference) -> str:
    sure = "no interval" if one.low is None else ends(one)
    return f"{n:,.0f} ({minus(f'{100 * one.estimate:+.1f}')} points, {sure})"


def _first(pair: tuple[float, Difference]) -> float:
    return pair[0]


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
    first, second = arm_name(one.first), arm_name(one.second)
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
    first, second = arm_name(one.first), arm_name(one.second)
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
    first, second = arm_name(one.first), arm_name(one.second)
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
