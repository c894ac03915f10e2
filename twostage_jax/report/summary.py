"""The head of the report: the answer of the study, in paragraphs."""

import dataclasses

from twostage_jax.report.analysis import METRIC, Analysis, Primary
from twostage_jax.report.findings import (
    ALPHA,
    SCORE,
    area_p_values,
    as_told,
    capital,
    champion_pairs,
    compatible,
    ends,
    equals,
    points,
    primary_words,
    readings,
    scored,
    sentence,
    size_differences,
    surely,
    tested,
    verdict,
)
from twostage_jax.report.formats import listed, mean_and_range, minus, show
from twostage_jax.report.joining import Study
from twostage_jax.report.scores import Scores
from twostage_jax.stats.intervals import Difference, Interval, holm
from twostage_jax.stats.learning_curve import describe_size


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
    champion, name = show("arm", analysis.champion), show("arm", best.name)
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
        show("arm", arm) for arm in (analysis.champion, analysis.baseline)
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
    champion, baseline = show("arm", arm), show("arm", analysis.baseline)
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
        f"There is only one arm, so nothing is compared: {show('arm', arm)} reached a "
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
