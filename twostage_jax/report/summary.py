"""The head of the report: what the study shows, in paragraphs."""

from twostage_jax.report.analysis import METRIC, Analysis, Scores
from twostage_jax.report.findings import (
    ALPHA,
    SCORE,
    area_p_values,
    as_told,
    capital,
    champion_pairs,
    ends,
    equals,
    points,
    scored,
    sentence,
    size_differences,
    surely,
    tested,
    verdict,
)
from twostage_jax.report.formats import listed, mean_and_range, minus, show
from twostage_jax.report.joining import Study
from twostage_jax.size_study import describe_size
from twostage_jax.statistics import Difference, Interval


def summary(study: Study, analysis: Analysis) -> list[str]:
    """Returns the paragraphs at the head of the report; the first is the answer."""
    scores = analysis.full.scores
    if len(scores.arms) < 2:
        return [_alone(analysis), _basis(study, analysis)]
    first, *others = champion_pairs(analysis)
    paragraphs = [sentence(first, scores)]
    if first.reason and first.low is None:
        paragraphs.append(_by_accuracy(analysis))
    paragraphs.append(" ".join(_other(one, scores) for one in others))
    paragraphs += [_basis(study, analysis), by_size(analysis), over_sizes(analysis)]
    return [text for text in paragraphs if text]


def _other(one: Difference, scores: Scores) -> str:
    """Returns a further difference: what holds for all of them is not said again."""
    if one.low is None:
        return f"{capital(scored(one, ''))}; that too is of this sample only."
    if len(scores.seeds) == 1:
        sure = surely(as_told(one), len(scores.differences[one.metric]))
        return f"{capital(scored(one, ''))} ({sure}); that too is of one seed."
    return sentence(one, scores)


def _by_accuracy(analysis: Analysis) -> str:
    """Returns the first difference by accuracy, where it alone has an interval."""
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
        "leaning": f"not enough after correction for {champion} against {baseline} at",
        "not shown": f"no difference between {champion} and {baseline} is shown at",
        "unknown": f"nothing sure can be said of {champion} and {baseline} at",
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
        f"{'; '.join(parts)}."
    )


def over_sizes(analysis: Analysis) -> str:
    """Returns the area gained and the matching size in words."""
    study, arm = analysis.size_study, analysis.champion
    if study is None or arm not in study.area_gains:
        return ""
    seeds = analysis.common_seeds
    champion, baseline = show("arm", arm), show("arm", analysis.baseline)
    gain, p_value = study.area_gains[arm][0], area_p_values(study)[arm]
    more = "more" if gain.estimate >= 0 else "less"
    sure = "no interval" if gain.low is None else ends(_gain_as_told(gain))
    p = "" if p_value is None else f", p {equals(p_value)}"
    if p and len(study.area_gains) > 1:
        p += f", Holm-corrected over {len(study.area_gains)} arms"
    text = (
        f"Over all sizes (area under the size curve) {champion} scores "
        f"{points(gain)} {more} than {baseline} ({sure}{p}"
        f"{', one seed' if len(seeds) == 1 else ''})."
    )
    if p_value is not None and p_value >= ALPHA and len(seeds) > 1:
        text += " No difference over all sizes is shown."
    smallest = study.matches[arm][0]
    needed, low, high = (
        None if x is None else describe_size(x, study.n)
        for x in (smallest.value, smallest.low, smallest.high)
    )
    sure = f" (95 % CI {low} to {high})" if low and (low, high) != (needed,) * 2 else ""
    return (
        f"{text} To match {champion} trained on {smallest.n:,.0f} patches, {baseline} "
        f"needs {needed} patches{sure}."
    )


def _gain_as_told(gain: Interval) -> Interval:
    if gain.estimate >= 0:
        return gain
    return Interval(-gain.estimate, -gain.high, -gain.low)


def _alone(analysis: Analysis) -> str:
    (arm, interval), *_ = analysis.full.scores.intervals[METRIC].items()
    sure = f"no interval: {interval.reason}" if interval.low is None else ends(interval)
    return (
        f"There is only one arm, so nothing is compared: {show('arm', arm)} reached a "
        f"{SCORE} of {100 * interval.estimate:.1f} % ({sure})."
    )


def _basis(study: Study, analysis: Analysis) -> str:
    """Returns what the answer rests on."""
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
        unit = "patches" if full.scores.groups is None else "patients"
        once = f", and take the {unit} of one fold for independent (see Method)"
        parts.append(
            f"The intervals are over test {unit}{' and seeds' if seeds > 1 else ''}; "
            f"they know nothing of other training {unit}"
            f"{once if len(study.folds) > 1 and not study.folds_anew else ''}."
        )
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


def _folds(study: Study) -> str:
    if len(study.folds) < 2:
        return ""
    return f" in {len(study.folds)} folds{', new ones each seed' * study.folds_anew}"


def _at(n: float, one: Difference) -> str:
    sure = "no interval" if one.low is None else ends(one)
    return f"{n:,.0f} ({minus(f'{100 * one.estimate:+.1f}')} points, {sure})"


def _first(pair: tuple[float, Difference]) -> float:
    return pair[0]
