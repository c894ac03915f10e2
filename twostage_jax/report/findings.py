"""What a study shows, in words: the answer, its size and how sure it is.

A difference is called shown where its Holm-corrected p-value is below 0.05 and there
are two seeds or more. Everything else is said to be not shown, never to be nothing.
"""

from collections.abc import Sequence

from twostage_jax.report.analysis import METRIC, Analysis, Scores, Size
from twostage_jax.report.formats import mean_and_range, minus, p_text, show
from twostage_jax.report.joining import Study
from twostage_jax.size_study import SizeStudy, describe_size
from twostage_jax.statistics import LEVEL, Difference, Interval, holm

ALPHA = round(1 - LEVEL, 9)
SCORE = "balanced accuracy"


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
    scored = _scored(one, f" of {score}")
    if one.low is None:
        return (
            f"{_capital(scored)} on {_tested(scores)}. Whether this holds for other "
            f"patients cannot be said: {one.reason}."
        )
    sure = _surely(_as_told(one), pairs)
    if len(scores.seeds) == 1:
        return (
            f"With one seed the method cannot be told from luck: {scored} in this one "
            f"training of each ({sure}; over patients only). Run more seeds to judge "
            "the methods."
        )
    found = verdict(one, one.p_holm)
    if found == "better":
        return f"{_capital(first)} beats {second} by {points(one)} of {score} ({sure})."
    if found == "worse":
        return (
            f"{_capital(first)} does worse than {second}, by {points(one)} of {score} "
            f"({sure})."
        )
    if found == "leaning":
        return (
            f"{_capital(scored)}, but among {pairs} pairs that is not enough to call it "
            f"shown ({sure}; p {_equals(one.p_value)} alone)."
        )
    return (
        f"No difference between {first} and {second} is shown: {first} less {second} is "
        f"{minus(f'{100 * one.estimate:.1f}')} points of {score} "
        f"({_surely(one, pairs)}). The data "
        f"agree with anything from {_reach(one)}."
    )


def _as_told(one: Difference) -> Difference:
    """Returns it with the sign of words that say 'more' or 'less', 'beats' or 'worse'.

    The number in them is never negative, so its interval is that of the gain or of the
    loss; where the words are 'first less second' the interval has that sign.
    """
    return turned(one) if round(1000 * one.estimate) < 0 else one


def _scored(one: Difference, of: str) -> str:
    first, second = show("arm", one.first), show("arm", one.second)
    if not round(1000 * one.estimate):
        return f"{first} scored as {second} did, to a tenth of a point{of}"
    more = "more" if one.estimate > 0 else "less"
    return f"{first} scored {points(one)}{of} {more} than {second}"


def _other(one: Difference, scores: Scores) -> str:
    """Returns a further difference: what holds for all of them is not said again."""
    if one.low is None:
        return f"{_capital(_scored(one, ''))}; that too is of this sample only."
    if len(scores.seeds) == 1:
        sure = _surely(_as_told(one), len(scores.differences[one.metric]))
        return f"{_capital(_scored(one, ''))} ({sure}); that too is of one seed."
    return sentence(one, scores)


def _by_accuracy(analysis: Analysis) -> str:
    """Returns the first difference by accuracy, where it alone has an interval."""
    one = champion_pairs(analysis, "accuracy")[0]
    if one.low is None:
        return ""
    return f"By plain accuracy: {sentence(one, analysis.full.scores)}"


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
        f"{text} {_listed([_at(n, one) for n, one in sorted(sizes[key], key=_first)])}"
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
    p = "" if p_value is None else f", p {_equals(p_value)}"
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


def area_p_values(study: SizeStudy) -> dict[str, float | None]:
    """Returns arm -> p-value of its area gained, Holm-corrected over the arms."""
    corrected = holm([p_value for _, p_value in study.area_gains.values()])
    return dict(zip(study.area_gains, corrected, strict=True))


def ends(interval: Interval | Difference) -> str:
    """Returns '95 % CI 1.2 to 5.0', in points."""
    low, high = (minus(f"{100 * x:.1f}") for x in (interval.low, interval.high))
    return f"{100 * LEVEL:.0f} % CI {low} to {high}"


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
        f"This rests on {seeds} seed{'s' if seeds > 1 else ''}, {_tested(full.scores)}"
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


def _tested(scores: Scores) -> str:
    patches = f"{scores.examples:,} test patches"
    if scores.groups is None:
        return patches
    return (
        f"{scores.groups:,} test patient{'s' if scores.groups > 1 else ''} ({patches})"
    )


def _surely(one: Difference, pairs: int) -> str:
    parts = [] if one.low is None else [ends(one)]
    if one.p_holm is not None:
        over = f", Holm-corrected over {pairs} pairs" if pairs > 1 else ""
        parts.append(f"p {_equals(one.p_holm)}{over}")
    return "; ".join(parts)


def _equals(p_value: float) -> str:
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _reach(one: Difference) -> str:
    def words(value: float) -> str:
        side = "better" if value >= 0 else "worse"
        return f"{abs(100 * value):.1f} points {side}"

    return f"{words(one.low)} to {words(one.high)}"


def _at(n: float, one: Difference) -> str:
    sure = "no interval" if one.low is None else ends(one)
    return f"{n:,.0f} ({minus(f'{100 * one.estimate:+.1f}')} points, {sure})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _first(pair: tuple[float, Difference]) -> float:
    return pair[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
