"""HRCT phantoms of diffuse lung disease, and their DICOM files.

A phantom patient consists of a few axial sections, some centimetres apart as in
high-resolution protocols, with one to three diseases at their true size and HU, and their
masks. Patients differ in build, lung density, scanner, and extent and severity of disease;
mild disease resembles normal lung. Drawing a section takes about 0.2 s.

Phantoms are for trying and testing the program. They do not show how well it performs on
patients.
"""

import dataclasses
import pathlib

import numpy as np
import pydicom
import scipy
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from twostage_jax.ct.phantom_anatomy import (
    TEXTURES,
    Body,
    Grid,
    Lung,
    chest,
    draw,
    points_mm,
    tree,
)

# Manufacturer, name of the kernel, point spread (mm), edge gain, noise (HU at a thickness
# of 1 mm), and spatial frequency at which the noise falls (cycles per mm), of one soft, one
# medium and two sharp kernels.
KERNELS = (
    ("GE MEDICAL SYSTEMS", "STANDARD", 0.55, 0.0, 16, 0.28),
    ("GE MEDICAL SYSTEMS", "LUNG", 0.42, 0.5, 30, 0.42),
    ("TOSHIBA", "FC17", 0.5, 0.1, 22, 0.33),
    ("SIEMENS", "B70f", 0.38, 0.7, 36, 0.5),
)


CLASS_NAMES = ("normal", *TEXTURES)

# Each disease occurs in 4 of 12 patients, so that each part of a split can have it.
DISEASES = (
    ("honeycombing", "reticular"),
    ("ground_glass", "consolidation"),
    ("emphysema",),
    ("nodular", "ground_glass"),
    ("reticular", "ground_glass"),
    ("emphysema", "honeycombing"),
    ("consolidation", "nodular"),
    ("honeycombing", "reticular", "ground_glass"),
    ("nodular", "emphysema"),
    ("consolidation", "nodular"),
    ("honeycombing", "consolidation"),
    ("reticular", "emphysema"),
)

# Preferred location of a disease: depth under the pleura over which it fades, mm (0:
# uniform), and tendency towards the back, in standard deviations per 100 mm.
HABITS = {
    "consolidation": (0, 1.0),
    "ground_glass": (0, 0.4),
    "honeycombing": (14, 0.8),
    "reticular": (18, 0.5),
    "emphysema": (0, -0.4),
    "nodular": (0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Scanner:
    """Scanner and protocol of a patient.

    Attributes:
      manufacturer: Name as in `KERNELS`, which determines how HU are stored.
      kernel: Name of the convolution kernel, as DICOM gives it.
      blur: Standard deviation of the point spread, mm.
      edge: Gain of the kernel's edge enhancement.
      noise: Standard deviation of the noise, HU.
      grain: Spatial frequency at which the noise's spectrum falls, cycles per mm.
      thickness: Slice thickness, mm.
      gap: Distance between sections, mm.
      field: Field of view as a fraction of the body's width.
    """

    manufacturer: str
    kernel: str
    blur: float
    edge: float
    noise: float
    grain: float
    thickness: float
    gap: float
    field: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Scanner":
        """Returns a random scanner and protocol."""
        manufacturer, kernel, *quality = KERNELS[rng.integers(len(KERNELS))]
        blur, edge, noise, grain = quality
        thickness = rng.choice([1.0, 1.0, 1.25, 1.5, 2.5])
        return cls(
            manufacturer=manufacturer,
            kernel=kernel,
            # A thicker section blurs oblique walls more.
            blur=float(np.hypot(blur, 0.18 * thickness)) * rng.uniform(0.95, 1.2),
            edge=edge,
            noise=noise * rng.uniform(0.8, 1.8) / thickness**0.5,
            grain=grain,
            thickness=float(thickness),
            gap=float(rng.choice([10.0, 15.0, 20.0])),
            field=rng.uniform(0.98, 1.12),
        )

    def image(self, rng, grid: Grid, hu: np.ndarray) -> np.ndarray:
        """Returns the scanned image `[H, W]` int16 of the true HU `[H, W]`."""
        hu = grid.blur(np.maximum(hu, -1000), self.blur)
        if self.edge:
            hu = hu + self.edge * (hu - grid.blur(hu, 0.9))
        white = rng.standard_normal(grid.shape, dtype=np.float32)
        down = np.fft.fftfreq(grid.matrix, grid.spacing)[:, None]
        across = np.fft.rfftfreq(grid.matrix, grid.spacing)[None]
        frequency = np.hypot(down, across).astype(np.float32)
        # Filtered back-projection has a ramp, which the kernel cuts off.
        ramp = frequency * np.exp(-((frequency / self.grain) ** 2))
        noise = scipy.fft.irfft2(scipy.fft.rfft2(white) * ramp, grid.shape)
        hu = hu + noise * (self.noise / noise.std())
        return np.clip(np.round(hu), -1024, 3071).astype(np.int16)

    def dicom(
        self,
        hu: np.ndarray,
        patient_id: str,
        seed: int,
        index: int,
        spacing: float,
    ) -> pydicom.Dataset:
        """Returns one section as a CT image.

        GE files are signed, rescale with -1024, and pad outside a round field with a
        tagged -2000; TOSHIBA files are signed, rescale with 0, and pad with an untagged
        -2048; SIEMENS files are unsigned, rescale with -1024, and have a square field.

        Args:
          hu: Hounsfield units, `[H, W]` int16, -1024 to 3071.
          patient_id: PatientID.
          seed: Seed that distinguishes patients with the same id.
          index: Number of the section from the top, from 0.
          spacing: Pixel size, mm.
        """
        image = _empty(patient_id, seed, index)
        image.Manufacturer = self.manufacturer
        image.ConvolutionKernel = self.kernel
        image.SliceThickness = f"{self.thickness:g}"
        image.PixelSpacing = [f"{spacing:g}"] * 2
        rows, columns = image.Rows, image.Columns = hu.shape
        corner = [-(n - 1) / 2 * spacing for n in (columns, rows)]
        image.ImagePositionPatient = [f"{v:.4f}" for v in (*corner, -index * self.gap)]
        image.SliceLocation = f"{-index * self.gap:.4f}"
        intercept = 0 if self.manufacturer == "TOSHIBA" else -1024
        image.RescaleIntercept, image.RescaleSlope = str(intercept), "1"
        image.PixelRepresentation = int(self.manufacturer != "SIEMENS")
        stored = hu - np.int16(intercept)
        outside = ~round_field(hu.shape)
        if self.manufacturer == "GE MEDICAL SYSTEMS":
            image.PixelPaddingValue = -2000
            stored[outside] = -2000
        elif self.manufacturer == "TOSHIBA":
            stored[outside] = -2048
        image.PixelData = stored.astype("<i2").tobytes()
        return image


def round_field(shape: tuple[int, int]) -> np.ndarray:
    """Returns the round field of view of a scanner, `[H, W]` bool."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    middle = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    reach = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
    return reach <= (min(shape) / 2) ** 2


def _empty(patient_id: str, seed: int, index: int) -> pydicom.Dataset:
    """Returns a CT image without pixels and without the scanner's attributes."""

    def uid(*parts) -> str:
        return generate_uid(entropy_srcs=[patient_id, str(seed), *map(str, parts)])

    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, uid("image", index)
    image.StudyInstanceUID, image.SeriesInstanceUID = uid("study"), uid("series")
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = uid("frame"), ""
    image.PatientID = patient_id
    image.PatientName = patient_id.replace("-", "^")
    image.PatientBirthDate = image.PatientSex = ""
    image.StudyDate, image.StudyTime, image.StudyID = "20000101", "120000", "1"
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.Modality, image.PatientPosition = "CT", "HFS"
    image.SyntheticData = "YES"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SeriesNumber, image.AcquisitionNumber = 1, 1
    image.InstanceNumber, image.KVP = index + 1, "120"
    image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.RescaleType = "HU"
    image.WindowCenter, image.WindowWidth = "-600", "1500"
    return image


@dataclasses.dataclass(frozen=True)
class Phantom:
    """Phantom patient.

    Attributes:
      patient: Number of the patient.
      hu: Hounsfield units, `[Z, H, W]` int16, from the apex of the lungs to the base.
      labels: Label mask, `[Z, H, W]` uint8: 0 outside all regions, 1 + class index
        inside.
      lungs: Lung mask, `[Z, H, W]` bool.
      spacing: Pixel size, mm.
      scanner: Scanner and protocol.
    """

    patient: int
    hu: np.ndarray
    labels: np.ndarray
    lungs: np.ndarray
    spacing: float
    scanner: Scanner


def phantom_slices(
    patient: int, *, seed: int = 0, slices: int = 3, matrix: int = 448
) -> Phantom:
    """Draws one patient.

    Args:
      patient: Number of the patient, which determines the diseases; see `DISEASES`.
      seed: Seed of everything else.
      slices: Number of axial sections.
      matrix: Pixels per side. The field of view is fitted to the body, as in practice;
        448 pixels give a spacing of 0.65 to 0.9 mm.
    """
    rng = np.random.default_rng([seed, patient])
    body, scanner = Body.sample(rng), Scanner.sample(rng)
    grid = Grid(matrix, round(2 * body.half_width * scanner.field / matrix, 4))
    diseases = DISEASES[patient % len(DISEASES)]
    density = rng.uniform(-885, -820)
    traits = {name: (rng.uniform(0.05, 1), rng.uniform(0.6, 1)) for name in diseases}
    top = rng.uniform(0.22, 0.4)
    levels = np.linspace(top, top + rng.uniform(0.3, 0.45), slices)
    sections = []
    for level in levels.tolist():
        hu, lungs, hila = chest(body, level, grid, rng)
        lung = _healthy(rng, grid, lungs, hila, density)
        severity = {
            name: float(np.clip(mean + rng.normal(0, 0.1), 0, 1))
            for name, (mean, _) in traits.items()
        }
        regions = _regions(rng, grid, lungs, {k: v[1] for k, v in traits.items()})
        inner = _diseased(rng, lung, regions, severity)
        image = scanner.image(rng, grid, np.where(lungs, inner, hu))
        sections.append((image, _label_map(grid, lungs, regions), lungs))
    stacks = [np.stack(parts) for parts in zip(*sections, strict=True)]
    return Phantom(patient, *stacks, grid.spacing, scanner)


def _healthy(rng, grid: Grid, lungs, hila, density: float) -> Lung:
    """Returns healthy lung, denser towards the back, with vessels and bronchi."""
    _, y = grid.coordinates()
    air = density + 0.22 * y + 11 * grid.noise(rng, 13) + 10 * grid.noise(rng, 45)
    air = air.astype(np.float32)
    vessels = np.zeros(grid.shape, np.float32)
    for hilum in hila:
        x = grid.coordinates()[0]
        side = lungs & ((x < 0) == (hilum[0] < 0))
        if side.sum() < 50:
            continue
        tips = points_mm(rng, grid, side, int(side.sum() * grid.spacing**2 / 95))
        branches = tree(rng, tips, hilum, 0.3)
        # Branches leave the section and return.
        column, row = (branches[:, :2] / grid.spacing + grid.matrix / 2).astype(int).T
        branches = branches[grid.noise(rng, 22)[row, column] > -0.35]
        across = points_mm(rng, grid, side, len(tips) // 2)
        size = rng.lognormal(np.log(0.65), 0.4, len(across))
        dots = np.column_stack([across, across, size])
        vessels = np.maximum(vessels, draw(grid, np.concatenate([branches, dots])))
        accompanied = (branches[:, 4] > 0.9) & (rng.uniform(size=len(branches)) < 0.5)
        large = branches[accompanied]
        large[:, :4] += np.tile(large[:, 4:5] * rng.choice([-1.9, 1.9]), 4)
        wall, lumen = draw(grid, large, 0.5), draw(grid, large, -0.2)
        vessels = np.maximum(vessels, 0.8 * wall) * (1 - lumen)
    fissure = np.abs(y + 0.45 * np.abs(grid.coordinates()[0]) - rng.uniform(20, 60))
    fissure = np.exp(-((fissure + 3 * np.abs(grid.noise(rng, 40))) ** 2))
    return Lung(grid, air, np.maximum(vessels, 0.2 * fissure), hila)


def _regions(rng, grid: Grid, lungs, extents: dict[str, float]) -> dict:
    """Returns the disjoint regions of the diseases, `[H, W]` bool."""
    _, y = grid.coordinates()
    # Depth counts from the chest wall, not the heart: each row is filled between lungs.
    cavity = (
        np.maximum.accumulate(lungs, 1)
        & np.maximum.accumulate(lungs[:, ::-1], 1)[:, ::-1]
    )
    depth = scipy.ndimage.distance_transform_edt(cavity) * grid.spacing
    free, regions = lungs.copy(), {}
    most = 0.75 / len(extents) if len(extents) > 1 else 0.5
    for name, extent in extents.items():
        fade, back = HABITS[name]
        wish = 0.8 * grid.noise(rng, 55) + 0.25 * grid.noise(rng, 20) + back * y / 100
        if fade:
            wish = 0.5 * wish - depth / fade
        fraction = np.clip(extent * most * lungs.sum() / max(1, free.sum()), 0, 0.95)
        chosen = free & (wish > np.quantile(wish[free], 1 - fraction))
        regions[name] = free & (grid.blur(chosen, 2.5) > 0.5)
        free &= ~regions[name]
    return regions


def _diseased(rng, lung: Lung, regions: dict, severity: dict) -> np.ndarray:
    """Returns HU `[H, W]` of the lungs with every disease in its region."""
    hu = lung.filled(lung.air)
    for name, where in regions.items():
        if where.any():
            texture = TEXTURES[name](rng, lung, severity[name], where)
            weight = np.clip(2 * lung.grid.blur(where, 1.6), 0, 1)
            hu = hu + weight * (texture - hu)
    return hu


def _label_map(grid: Grid, lungs, regions: dict) -> np.ndarray:
    """Returns labels `[H, W]` uint8; normal lung within 5 mm of disease is unmarked."""
    diseased = np.zeros(grid.shape, bool)
    labels = np.zeros(grid.shape, np.uint8)
    for name, where in regions.items():
        labels[where] = 1 + CLASS_NAMES.index(name)
        diseased |= where
    far = grid.blur(diseased, 2.5) < 0.02
    labels[lungs & far] = 1 + CLASS_NAMES.index("normal")
    return labels


def write_patient(folder: pathlib.Path, phantom: Phantom, *, seed: int = 0) -> None:
    """Writes one patient: `folder/IM-0001.dcm` ..., `folder/rois/`, `folder/lungs/`.

    Masks are 8-bit PNG files named after SOPInstanceUIDs. The PatientID of patient 7 is
    PHANTOM-007. The same phantom and seed give the same files.
    """
    for name in ("rois", "lungs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    name = f"PHANTOM-{phantom.patient:03d}"
    for index, hu in enumerate(phantom.hu):
        image = phantom.scanner.dicom(hu, name, seed, index, phantom.spacing)
        path = folder / f"IM-{index + 1:04d}.dcm"
        image.save_as(path, enforce_file_format=True)
        for kind, masks in (("rois", phantom.labels), ("lungs", phantom.lungs)):
            mask = Image.fromarray(masks[index].astype(np.uint8))
            mask.save(folder / kind / f"{image.SOPInstanceUID}.png")
