"""Pictures of a slice and of a series."""

import numpy as np
import pytest

from twostage_jax.errors import plain
from twostage_jax.maps import draw
from twostage_jax.maps.draw import COLOURS, colour, is_striped

NAMES = ("normal", "ground_glass", "emphysema")


def style(**changes):
    settings = {
        "class_names": NAMES,
        "pixel_mm": (1.0, 1.0),
        "sides": "RLAP",
        "title": "patient-1, series-2",
        "made_by": ("model 0123", "stride 8"),
        **changes,
    }
    return draw.Style(**settings)


def slices(shape=(1, 100, 100)):
    """A lung with a square of the second class in the middle."""
    hu = np.full(shape, 40, np.int16)
    lungs, labels = np.zeros(shape, bool), np.zeros(shape, np.uint8)
    lungs[:, 20:80, 20:80] = True
    hu[lungs] = -850
    labels[lungs] = 1
    labels[:, 40:60, 50:70] = 2
    return hu, labels, lungs


def longest_run(row, rgb):
    """Returns the start and length of the longest run of a colour in `[W, 3]`."""
    same = np.concatenate([[0], (row == rgb).all(1), [0]])
    starts, ends = (
        np.flatnonzero(np.diff(same) == 1),
        np.flatnonzero(np.diff(same) == -1),
    )
    if not len(starts):
        return 0, 0
    best = (ends - starts).argmax()
    return starts[best], (ends - starts)[best]


@pytest.mark.parametrize(
    ("pixel_mm", "bar_mm"),
    [((1.5, 1.5), 50), ((3.0, 1.5), 50), ((1.0, 2.0), 50), ((0.7, 0.7), 10)],
)
def test_scale_bar_has_its_length_and_pixels_are_square(pixel_mm, bar_mm):
    hu, labels, lungs = slices()
    # Without side letters, so that nothing else is drawn in the bar's ink.
    settings = style(pixel_mm=pixel_mm, sides="    ")
    picture = draw.draw_slice(hu[0], labels[0], lungs[0], settings, "slice 1")
    high = round(draw.PANEL * min(1, pixel_mm[0] / pixel_mm[1]))
    wide = round(draw.PANEL * min(1, pixel_mm[1] / pixel_mm[0]))
    assert picture.width == 2 * wide + draw.LEGEND + 4 * draw.MARGIN
    panel = np.asarray(picture)[draw.HEAD :][:high, : draw.MARGIN + wide]
    bar = max(longest_run(row, draw.INK)[1] for row in panel)
    assert bar * pixel_mm[1] * 100 / wide == pytest.approx(bar_mm, rel=0.03)


def test_class_is_drawn_where_it_is_and_normal_lung_stays_grey():
    hu, labels, lungs = slices()
    image = np.asarray(draw.draw_slice(hu[0], labels[0], lungs[0], style(), "1"))
    scale = draw.PANEL / 100
    left = 2 * draw.MARGIN + draw.PANEL
    panel = image[draw.HEAD :][: draw.PANEL, left : left + draw.PANEL]
    spread = np.ptp(panel.astype(int), axis=2) > 20  # not grey
    rows, columns = np.flatnonzero(spread.any(1)), np.flatnonzero(spread.any(0))
    found = [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]
    np.testing.assert_allclose(np.array(found) / scale, [40, 60, 50, 70], atol=0.5)
    assert tuple(panel[rows[0], columns[0]]) == COLOURS[0]
    # The tint lies between the grey of the slice and the colour.
    grey = 255 * (-850 + 1350) / 1500
    inside = panel[round(50 * scale), round(60 * scale)]
    tinted = (1 - draw.TINT) * grey + draw.TINT * np.array(COLOURS[0])
    np.testing.assert_allclose(inside, tinted, atol=1)
    # The left panel is the plain slice.
    plain = image[draw.HEAD :][: draw.PANEL, draw.MARGIN :][:, : draw.PANEL]
    assert np.ptp(plain.astype(int), axis=2).max() == 0


def test_window_of_the_picture_is_the_lung_window():
    hu = np.full((100, 100), -600, np.int16)
    nothing = np.zeros((100, 100), np.uint8)
    picture = draw.draw_slice(hu, nothing, nothing.astype(bool), style(), "1")
    assert picture.getpixel((100, 150)) == (128, 128, 128)


def test_sheet_shows_the_head_first():
    hu, labels, lungs = slices((4, 100, 100))
    for z in range(4):
        hu[z, lungs[z]] = -1000 + 100 * z  # brighter towards the head
    labels[:] = lungs
    image = np.asarray(draw.draw_sheet(hu, labels, lungs, style(sides="    ")))
    row = image[draw.HEAD + 100]
    steps = [int(row[draw.MARGIN + 380 * i + 4 * i + 190, 0]) for i in range(4)]
    expected = [255 * (-1000 + 100 * z + 1350) / 1500 for z in (3, 2, 1, 0)]
    np.testing.assert_allclose(steps, expected, atol=1)


def test_sheet_of_a_long_series_stays_of_a_size_to_look_at():
    hu, labels, lungs = slices((300, 40, 40))
    picture = draw.draw_sheet(hu, labels, np.ones_like(lungs), style())
    assert picture.width <= draw.SHEET_WIDTH + 4 * draw.MARGIN
    assert picture.height < 6000


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [
        ((1, 0, 0, 0, 1, 0), "RLAP"),
        ((-1, 0, 0, 0, -1, 0), "LRPA"),  # prone
        ((0, 1, 0, 0, 0, -1), "APHF"),  # sagittal
        ((0.98, 0.17, 0, -0.17, 0.98, 0), "RLAP"),
        (None, "    "),
    ],
)
def test_sides_are_those_of_the_patient(orientation, letters):
    assert draw.sides(orientation) == letters


def test_colours_are_distinct_and_repeat_in_stripes():
    names = ["normal", *(f"disease {i}" for i in range(9)), "Healthy "]
    assert colour(0, names) is None and colour(10, names) is None
    assert len({colour(i, names) for i in range(1, 8)}) == 7
    assert colour(8, names) == colour(1, names)
    assert [is_striped(i, names) for i in range(1, 10)] == [False] * 7 + [True] * 2
    hu, labels, lungs = slices()
    for index in (1, 8):
        labels[labels > 1] = 1 + index
        image = np.asarray(
            draw.draw_slice(
                hu[0], labels[0], lungs[0], style(class_names=tuple(names)), "1"
            )
        )
        left = 2 * draw.MARGIN + draw.PANEL
        part = image[draw.HEAD + 250 : draw.HEAD + 310, left + 300 : left + 370]
        coloured = (np.ptp(part.astype(int), axis=2) > 20).mean()
        assert coloured == pytest.approx(1.0 if index == 1 else 0.5, abs=0.1)


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("Normal lung", True),
        ("healthy_tissue", True),
        ("lung (normal)", True),
        ("abnormal", False),
        ("unhealthy", False),
        ("non-normal", False),
        ("not normal", False),
        ("ground glass", False),
    ],
)
def test_normal_lung_is_recognised_by_a_word_of_its_name(name, normal):
    assert draw.is_normal(name) == normal
    assert (colour(0, [name]) is None) == normal


def test_hostile_names_do_not_break_the_picture():
    hu, labels, lungs = slices()
    names = ("normal", "\x00\x1b[31m<script>\n../../x\u202e" * 20, "漢" * 300)
    plain = draw.draw_slice(hu[0], labels[0], lungs[0], style(), "1")
    hostile = style(class_names=names, title="x" * 500, made_by=("y\n" * 300, "z"))
    picture = draw.draw_slice(hu[0], labels[0], lungs[0], hostile, "1")
    assert picture.size == plain.size
    margin = np.asarray(picture)[:, -draw.MARGIN + 2 :]
    assert (margin == draw.GROUND).all()


def test_plain_text_is_one_line_of_limited_length():
    assert plain("a\n\tb\x00c\u202e", 10) == "a b c"
    assert plain("abcdefgh", 5) == "abcd…"


def test_legend_of_many_classes_is_not_cut():
    hu, labels, lungs = slices()
    names = tuple(f"disease {i}" for i in range(40))
    picture = draw.draw_slice(hu[0], labels[0], lungs[0], style(class_names=names), "1")
    assert picture.height >= draw.HEAD + draw.LINE * 43 + style().foot
