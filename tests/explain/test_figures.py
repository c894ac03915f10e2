"""Contents of the figures of the feature analysis."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from twostage_jax.explain import figures
from twostage_jax.explain.checks import SHARES
from twostage_jax.explain.strongest import Patches
from twostage_jax.report.figures import SHARED, arm_style, save

FAILED = {"unchanged": ["guided"], "class_blind": ["grad_cam"]}


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(), *(text.get_text() for text in axes.texts)]
    found += [figure.get_supxlabel(), figure.get_supylabel(), figure.get_suptitle()]
    return " | ".join(found)


def pictures(figure):
    return [image for axes in figure.axes for image in axes.get_images()]


def patches(dead=(False, False), channels=1):
    rng = np.random.default_rng(0)
    shape = (2, 3, 8, 8, channels)
    answered = np.array([[True, True, True], [True, True, False]])
    return Patches(rng.random(shape), rng.normal(size=shape), answered, np.array(dead))


@pytest.mark.parametrize("channels", [1, 3])
def test_strongest_patches_stand_above_their_pictures(channels):
    shown = {
        "scratch": patches(channels=channels),
        "two_stage": patches((False, True), channels),
    }
    shown["scratch"].patches[0, 0] = 0.25
    shown["scratch"].pictures[0, 0] = 0
    figure = figures.strongest_patches(shown, "conv2", np.array([4, 9]), "desalinet")
    found = texts(figure)
    for word in ("conv2", "DeSaliNet", "scratch", "two-stage", "4", "9", "dead"):
        assert word in found
    # What makes a channel dead depends on the layer.
    assert "never above" not in found
    # Two channels of two arms, one of them dead.
    assert len(pictures(figure)) == 3
    pixels = pictures(figure)[0].get_array()
    half = pixels.shape[0] // 2
    assert (pixels[10 : half - 10, 10:50] == 0.25).all()
    # What a picture does not see is grey.
    assert (pixels[half + 10 : -10, 10:50] == 0.5).all()
    # No third image brings channel 9 above 0: there is not even a frame.
    pixels = pictures(figure)[2].get_array()
    assert (pixels[:, -67:] == 1).all()
    assert (pixels[:64, :-70] < 1).any()


def test_filters_fill_their_sheet_in_order_and_untrained_ones_are_grey():
    rng = np.random.default_rng(0)
    kernels = {name: rng.normal(size=(5, 5, 1, 7)) for name in ("untrained", "natural")}
    figure = figures.first_layer(kernels, "conv1", ["natural"])
    colours = [to_hex(axes.title.get_color()) for axes in figure.axes]
    assert colours == [SHARED.lower(), arm_style("natural")["color"].lower()]
    sheet = pictures(figure)[0].get_array()
    kernel = kernels["untrained"][..., 0, 1]
    expected = 0.5 + kernel / np.abs(kernel).max() / 2
    np.testing.assert_allclose(sheet[:5, 6:11], expected)
    assert len(pictures(figure)) == 2


def test_maps_are_scaled_by_kind_and_methods_marked():
    rng = np.random.default_rng(0)
    methods = ("guided", "gradient_x_input", "grad_cam")
    maps = {
        arm: {method: rng.normal(size=(2, 6, 6)) for method in methods}
        for arm in ("scratch", "natural")
    }
    maps["scratch"]["grad_cam"][0] = 0  # as Grad-CAM may be
    figure = figures.saliency_maps(
        rng.random((2, 6, 6, 1)), ["ground_glass", "$x_1$"], maps,
        {"scratch": np.array([0.25, 1]), "natural": np.array([0.5, 0])}, FAILED,
    )  # fmt: skip
    found = texts(figure)
    for word in ("guided\nbackprop†", "Grad-\nCAM‡", "gradient\n× input", "0.25",
                 "ground glass", "† Maps", "‡ Maps"):  # fmt: skip
        assert word in found
    assert len(pictures(figure)) == 2 * (1 + 2 * 3)
    for image in pictures(figure):
        low, high = image.get_clim()
        assert high > 0
        assert low == (-high if image.get_cmap().name == "RdBu_r" else 0)


def test_curves_are_the_numbers_and_random_order_is_beside_them():
    rng = np.random.default_rng(0)
    methods = ("guided", "occlusion", "random_order")
    checked = {
        kind: {
            arm: {method: {"curve": rng.random(17)} for method in methods}
            for arm in ("scratch", "natural")
        }
        for kind in ("deletion", "insertion")
    }
    figure = figures.deletion_insertion(checked, FAILED)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("guided backprop†", "occlusion")
    assert len(second.lines) == 8
    drawn = second.lines[5]
    np.testing.assert_array_equal(drawn.get_xdata(), SHARES)
    np.testing.assert_array_equal(
        drawn.get_ydata(), checked["deletion"]["natural"]["occlusion"]["curve"]
    )
    assert drawn.get_color() == arm_style("natural")["color"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["scratch", "natural", "deletion", "insertion", "random order"]


def test_maps_that_turn_round_stay_in_the_picture():
    one = {
        "steps": ["head", "conv1"],
        "correlation": {"guided": [-0.8, None]},
        "magnitudes": {},
    }
    figure = figures.randomisation({"scratch": one}, {})
    assert figure.axes[0].get_ylim()[0] < -0.8


def test_magnitudes_of_maps_with_signs_are_drawn_as_well():
    one = {
        "steps": ["head", "conv1"],
        "correlation": {"guided": [0.4, 0.2], "occlusion": [0.1, -0.1]},
        "magnitudes": {"occlusion": [0.9, 0.8]},
    }
    figure = figures.randomisation({"scratch": one}, {})
    guided, occlusion = (axes.lines[1:] for axes in figure.axes)
    assert len(guided) == 1
    np.testing.assert_array_equal(occlusion[1].get_ydata(), [1, 0.9, 0.8])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["scratch", "magnitudes"]


def test_randomisation_starts_at_one_and_leaves_out_what_is_not_known(tmp_path):
    one = {
        "steps": ["head", "conv1"],
        "correlation": {"guided": [0.9, 0.7], "grad_cam": [None, 0.2]},
        "magnitudes": {},
    }
    figure = figures.randomisation({"scratch": one}, FAILED)
    lines = [axes.lines[1].get_ydata() for axes in figure.axes]
    np.testing.assert_array_equal(lines[0], [1, 0.9, 0.7])
    np.testing.assert_array_equal(lines[1], [1, np.nan, 0.2])
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["none", "head", "conv1"]
    assert "† Maps" in texts(figure) and "‡ Maps" in texts(figure)
    for path in save(figure, tmp_path / "randomisation"):
        assert path.stat().st_size > 1000
