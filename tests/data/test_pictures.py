"""Pictures of cameras, scanners and microscopes: rotated, inverted, 16-bit."""

import io
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from basics import refused_at
from PIL import Image, ImageOps
from tensorflow_datasets.core.features import image_feature

from twostage_jax.data import image_files, image_folder
from twostage_jax.data import tfds as tfds_sets
from twostage_jax.data.dataset import largest
from twostage_jax.data.store import prepare
from twostage_jax.errors import Notes

# Not symmetric under any of the eight orientations.
MARKED = np.zeros((8, 16), np.uint8)
MARKED[:, 8:], MARKED[:2, :4] = 200, 90
RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


def read(path, channels=1, **measures):
    """Returns the pixels of a file, and the notes on it."""
    notes = Notes()
    image = image_files.read(path, channels, found=measures, notes=notes)
    return np.asarray(image), {note for _, note in notes if note}


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def prepared(root, tmp_path, size=16, **options):
    recipe = image_folder.recipe(path=str(root), size=size, **options)
    return prepare(recipe, tmp_path / "prepared", workers=1)


def two_classes(root, write):
    """Calls `write(path without its ending, number)` for four files of two classes."""
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            write(root / name / str(i), 2 * label + i)
    return root


def upright(orientation):
    """Returns MARKED rotated by Pillow itself, the reference for our rotation."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(MARKED).save(file, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(file)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_as_in_viewers(tmp_path, orientation):
    wanted = upright(orientation)
    # Row 0 and column 0 of the file are, when shown (EXIF 2.32, 4.6.4): see the table.
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)}
    corner |= {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert wanted[corner[orientation]] == 90
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(MARKED)
    image.save(tmp_path / "x.png", exif=exif)
    image.save(tmp_path / "x.webp", exif=exif, lossless=True)
    image.save(tmp_path / "x.jpg", exif=exif, quality=100)
    tag = [(274, "H", 1, orientation, True)]
    for number, compression in enumerate((None, "zlib")):
        options = {"extratags": tag, "compression": compression}
        tifffile.imwrite(tmp_path / f"8_{number}.tif", MARKED, **options)
        deep = MARKED.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / f"16_{number}.tif", deep, **options)
    for path in tmp_path.iterdir():
        pixels, notes = read(path)
        assert np.abs(pixels.astype(int) - wanted).max() <= 2, path.name
        assert (image_files.TURNED in notes) == (orientation > 1)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"x"]
)
def test_damaged_exif_is_ignored(tmp_path, exif):
    save(tmp_path / "x.jpg", MARKED, exif=exif)
    assert read(tmp_path / "x.jpg")[0].shape == MARKED.shape


def test_orientation_that_does_not_exist_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    save(tmp_path / "x.png", MARKED, exif=exif)
    pixels, notes = read(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels, MARKED)
    assert notes == set()


def test_half_of_a_set_turned_by_its_tag_only_is_counted(tmp_path):
    stripes = np.tile(np.repeat([0, 250], 2).astype(np.uint8), (16, 4))

    def write(path, number):
        image, exif = Image.fromarray(stripes), Image.Exif()
        if number % 2:
            exif[0x0112] = 6
            image = image.rotate(90, expand=True)
        image.save(path.with_suffix(".jpg"), quality=100, exif=exif)

    made = prepared(two_classes(tmp_path / "in", write), tmp_path)
    assert np.abs(made.images[..., 0].astype(int) - stripes).max() < 5
    assert made.notes == (f"2 of 4 images {image_files.TURNED}",)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_inverted_tiffs_are_read_correctly(tmp_path, dtype, options):
    full = 1 if dtype is bool else np.iinfo(dtype).max
    shown = (MARKED > 100) if dtype is bool else (MARKED.astype(int) * full // 255)
    stored = (full - shown).astype(dtype)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stored, photometric="miniswhite", **options)
    wanted = np.where(MARKED > 100, 255, 0) if dtype is bool else MARKED
    np.testing.assert_array_equal(read(path)[0], wanted)
    tifffile.imwrite(path, shown.astype(dtype), photometric="minisblack")
    np.testing.assert_array_equal(read(path)[0], wanted)


def test_white_is_zero_of_12_bits_is_inverted_within_them(tmp_path):
    stored = (4095 - 16 * RAMP).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite")
    found = image_files.measure(tmp_path / "x.tif")
    assert found == {image_files.DEPTH: 12}
    np.testing.assert_allclose(read(tmp_path / "x.tif", **found)[0], RAMP, atol=1)


@pytest.mark.parametrize(
    "pixels",
    [
        MARKED.astype(np.int8),
        MARKED.astype(np.int16) - 100,
        MARKED.astype(np.int32),
        MARKED.astype(np.float32),
    ],
    ids=lambda pixels: pixels.dtype.name,
)
def test_signed_and_float_pixels_are_refused_by_name(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "x.tif", pixels)
    with refused_at(tmp_path / "x.tif"):
        read(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("top", "white"), [(4095, 4095), (3000, 4095), (255, 255), (1, 1), (5000, 8191)]
)
def test_16_bit_images_are_read_by_the_bits_that_their_set_uses(tmp_path, top, white):
    values = np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16)

    def write(path, number):
        # All images have the same factor, so that dark images stay dark.
        share = values // 2 if number == 0 else values
        if number % 2:
            return tifffile.imwrite(path.with_suffix(".tif"), share)
        return save(path.with_suffix(".png"), share)

    made = prepared(two_classes(tmp_path / "in", write), tmp_path)
    shown = np.rint(values * (255 / white))
    np.testing.assert_allclose(made.images[1, ..., 0], shown, atol=1)
    darker = np.rint(values // 2 * (255 / white))
    np.testing.assert_allclose(made.images[0, ..., 0], darker, atol=1)
    told = f"4 of 4 images {image_files.USED_BITS.format(white)}"
    assert told in made.notes and f"{white:,}" in told


def test_full_16_bits_and_8_bits_are_not_noted(tmp_path):
    def write(path, number):
        if number % 2:
            return save(path.with_suffix(".png"), RAMP.astype(np.uint8))
        return save(path.with_suffix(".png"), RAMP * 257)

    made = prepared(two_classes(tmp_path / "in", write), tmp_path)
    for image in made.images[..., 0]:
        np.testing.assert_array_equal(image, RAMP)
    assert made.notes == ()


def test_depth_that_a_file_states_is_taken_from_it(tmp_path):
    pgm = b"P5 16 16 4095\n" + (16 * RAMP).astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(pgm)
    pairs = (16 * RAMP).reshape(-1, 2)
    packed = [
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist()
    ]
    (tmp_path / "x.tif").write_bytes(tiff_of_12_bits(b"".join(packed)))
    for path in (tmp_path / "x.pgm", tmp_path / "x.tif"):
        assert image_files.measure(path) == {}
        pixels, notes = read(path, bits=16)
        np.testing.assert_allclose(pixels, RAMP, atol=1)
        assert notes == set()


def tiff_of_12_bits(packed):
    """Returns a little-endian TIFF of 16 x 16 pixels, 12 bits each, packed."""
    tags = [
        (256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1),
        (278, 16), (279, len(packed)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    return header + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_levels_lost_far_from_zero_are_noted(tmp_path):
    # HU + 32768, as DeepLesion stores them.
    values = (RAMP * 8 + 31744).astype(np.uint16)

    def write(path, number):
        save(path.with_suffix(".png"), values + number)

    made = prepared(two_classes(tmp_path / "in", write), tmp_path)
    assert f"4 of 4 images {image_files.LOST_LEVELS}" in made.notes


def test_dark_images_and_deep_colour_are_noted(tmp_path):
    colour = np.dstack([(RAMP * 16).astype(np.uint16)] * 3)
    tifffile.imwrite(tmp_path / "deep.tif", colour, photometric="rgb")
    save(tmp_path / "dark.png", (RAMP >> 4).astype(np.uint8))
    save(tmp_path / "fine.png", RAMP.astype(np.uint8))
    deep = {image_files.DEEP_COLOUR, image_files.DARK_IMAGES}
    assert read(tmp_path / "deep.tif")[1] == deep
    assert read(tmp_path / "dark.png")[1] == {image_files.DARK_IMAGES}
    assert read(tmp_path / "fine.png")[1] == set()


def test_colours_under_transparency_are_used_and_noted(tmp_path):
    alpha = np.full_like(MARKED, 255)
    solid = Image.fromarray(np.dstack([MARKED, alpha]))
    solid.save(tmp_path / "solid.png")
    assert read(tmp_path / "solid.png")[1] == set()
    alpha[:, :4] = 0
    Image.fromarray(np.dstack([MARKED, alpha])).save(tmp_path / "la.png")
    rgba = Image.fromarray(np.dstack([MARKED] * 3 + [alpha]))
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.tif")
    # Otherwise, the writer changes invisible colours.
    rgba.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    save(tmp_path / "grey_key.png", MARKED, transparency=90)
    save(tmp_path / "deep_key.png", MARKED.astype(np.uint16) * 257, transparency=0)
    palette = Image.fromarray(MARKED).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    palette.save(tmp_path / "p.gif", transparency=palette.getpixel((0, 0)))
    for path in set(tmp_path.iterdir()) - {tmp_path / "solid.png"}:
        pixels, notes = read(path)
        np.testing.assert_array_equal(pixels, MARKED, err_msg=path.name)
        assert image_files.TRANSPARENT in notes, path.name


def test_printing_colours_palettes_and_single_bits_keep_their_meaning(tmp_path):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[:8, :8], colour[8:, 8:] = (200, 40, 90), (255, 255, 255)
    image = Image.fromarray(colour)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.quantize(8).save(tmp_path / "palette.png")
    image.quantize(8).save(tmp_path / "palette.gif")
    image.quantize(8).save(tmp_path / "palette.bmp")
    for path in tmp_path.iterdir():
        pixels, notes = read(path, channels=3)
        error = np.abs(pixels.astype(int) - colour)
        assert np.median(error) <= 2 and np.percentile(error, 90) < 12, path.name
        assert notes == set()
    bits = np.eye(16, dtype=bool)
    for name in ("one.tif", "one.png", "one.pbm"):
        options = {"compression": "group4"} if name == "one.tif" else {}
        save(tmp_path / name, bits, **options)
        np.testing.assert_array_equal(read(tmp_path / name)[0], 255 * bits)


def test_broken_files_are_refused_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    files = {"page.png": b"<html>404</html>", "empty.png": b""}
    for name in ("half.jpg", "half.png", "half.tif", "half.webp", "half.gif"):
        whole = save(tmp_path / f"whole_{name}", noise).read_bytes()
        files[name] = whole[: len(whole) // 2]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with refused_at(tmp_path / name):
            read(tmp_path / name)
        assert image_files.measure(tmp_path / name) == {}


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.png", "x.webp"])
def test_several_pages_or_frames_are_refused_by_name(tmp_path, name):
    frames = [Image.fromarray(np.full((8, 8), 60 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with refused_at(tmp_path / name):
        read(tmp_path / name)


def test_measures_are_the_largest_of_all_files():
    assert largest([{"a": 1, "b": 5}, {}, {"a": 3}]) == {"a": 3, "b": 5}


@pytest.fixture
def tfds_set(tmp_path, monkeypatch):
    """Returns a function that writes a TFDS set of encoded images, of two classes."""
    encoders = (image_feature._ImageEncoder, image_feature._FloatImageEncoder)
    for encoder in encoders:
        # Its own encoding of arrays needs TensorFlow.
        monkeypatch.setattr(encoder, "encode_image_or_path", lambda self, data: data)

    def write(encoded, image):
        class Deep(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = None

            def _info(self):
                label = tfds.features.ClassLabel(names=["cat", "dog"])
                features = tfds.features.FeaturesDict({"image": image, "label": label})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i, data in enumerate(encoded):
                    yield i, {"image": data, "label": i % 2}

        Deep(data_dir=tmp_path / "tfds").download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        return image

    return write


def read_tfds(tmp_path, **options):
    recipe = tfds_sets.recipe(
        name="deep", size=16, tfds_dir=str(tmp_path / "tfds"), **options
    )
    return prepare(recipe, tmp_path / "prepared", workers=1)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def float_png(values):
    return png(values.astype("<f4")[..., None].view(np.uint8))


UNIT = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)


@pytest.mark.parametrize("white", [1, 255])
def test_tfds_float_images_are_read_as_numbers(tmp_path, tfds_set, white):
    shares = (1, 0.5, 0.003, 0)
    encoded = [float_png(UNIT * white * share) for share in shares]
    image = tfds.features.Image(shape=(None, None, 1), dtype=np.float32)
    tfds_set(encoded, image)
    # The decoder of TFDS is the reference for the values.
    np.testing.assert_array_equal(
        image.decode_example_np(encoded[1])[..., 0], UNIT * white * 0.5
    )
    made = read_tfds(tmp_path)
    found = sorted(image[..., 0].tobytes() for image in made.images)
    wanted = [
        np.rint(UNIT * white * s * (255 / white)).astype(np.uint8) for s in shares
    ]
    assert found == sorted(image.tobytes() for image in wanted)
    assert read_tfds(tmp_path, channels=3).images.shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    "values", [UNIT - 0.5, UNIT * 3, UNIT * 4095, UNIT * np.nan, UNIT - 1024]
)
def test_tfds_float_images_of_other_ranges_are_refused(tmp_path, tfds_set, values):
    image = tfds.features.Image(shape=(None, None, 1), dtype=np.float32)
    tfds_set([float_png(UNIT), float_png(values)], image)
    with refused_at(tmp_path / "tfds" / "deep" / "1.0.0"):
        read_tfds(tmp_path)


def test_tfds_16_bit_images_are_read_by_the_bits_that_they_use(tmp_path, tfds_set):
    image = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
    tfds_set([png(16 * RAMP), png(8 * RAMP)], image)
    made = read_tfds(tmp_path)
    tops = sorted(made.images.max(axis=(1, 2, 3)).tolist())
    assert tops == [127, 254]
    assert made.notes == (f"2 of 2 images {image_files.USED_BITS.format(4095)}",)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tfds_alpha_channels_are_dropped_and_noted(tmp_path, tfds_set, channels):
    grey = RAMP.astype(np.uint8)
    colours = [grey] * (1 if channels < 3 else 3)
    layers = colours + [grey.T] * (channels % 2 == 0)
    pixels = np.dstack(layers) if channels > 1 else grey
    tfds_set([png(pixels)] * 2, tfds.features.Image(shape=(None, None, channels)))
    made = read_tfds(tmp_path)
    np.testing.assert_array_equal(made.images[0, ..., 0], grey)
    told = (f"2 of 2 images {image_files.TRANSPARENT}",)
    assert made.notes == (told if channels % 2 == 0 else ())


def test_tfds_arrays_that_are_not_images_are_refused_by_name(tmp_path, tfds_set):
    tfds_set([UNIT] * 2, tfds.features.Tensor(shape=(16, 16), dtype=np.float32))
    with refused_at("deep"):
        read_tfds(tmp_path)
