"""What a CT scanner makes of a phantom: blur, noise, and a DICOM file."""

import dataclasses

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import fft

from twostage_jax.ct.phantom_anatomy import Grid

# Manufacturer, kernel, point spread (mm), edge gain, noise (HU at 1 mm thickness), and
# spatial frequency at which the noise falls (cycles a mm): one soft, one medium and
# two sharp kernels. Names as these manufacturers write them.
KERNELS = (
    ("GE MEDICAL SYSTEMS", "STANDARD", 0.55, 0.0, 16, 0.28),
    ("GE MEDICAL SYSTEMS", "LUNG", 0.42, 0.5, 30, 0.42),
    ("TOSHIBA", "FC17", 0.5, 0.1, 22, 0.33),
    ("SIEMENS", "B70f", 0.38, 0.7, 36, 0.5),
)


@dataclasses.dataclass(frozen=True)
class Scanner:
    """How a patient was scanned.

    Attributes:
      manufacturer: One of `KERNELS`; it decides how HU are stored.
      kernel: Name of the convolution kernel, as DICOM gives it.
      blur: Standard deviation of the point spread, mm.
      edge: Gain of the kernel's edge enhancement.
      noise: Standard deviation of the noise, HU.
      grain: Spatial frequency at which the noise's spectrum falls, cycles a mm.
      thickness: Slice thickness, mm.
      gap: Distance between sections, mm.
      field: Field of view as a share of the body's width.
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
        manufacturer, kernel, *quality = KERNELS[rng.integers(len(KERNELS))]
        blur, edge, noise, grain = quality
        thickness = rng.choice([1.0, 1.0, 1.25, 1.5, 2.5])
        return cls(
            manufacturer=manufacturer,
            kernel=kernel,
            # Oblique walls smear over a thicker section.
            blur=float(np.hypot(blur, 0.18 * thickness)) * rng.uniform(0.95, 1.2),
            edge=edge,
            noise=noise * rng.uniform(0.8, 1.8) / thickness**0.5,
            grain=grain,
            thickness=float(thickness),
            gap=float(rng.choice([10.0, 15.0, 20.0])),
            field=rng.uniform(0.98, 1.12),
        )

    def image(self, rng, grid: Grid, hu: np.ndarray) -> np.ndarray:
        """Returns what the scanner makes of the true HU `[H, W]`: int16."""
        hu = grid.blur(np.maximum(hu, -1000), self.blur)
        if self.edge:
            hu = hu + self.edge * (hu - grid.blur(hu, 0.9))
        white = rng.standard_normal(grid.shape, dtype=np.float32)
        down = np.fft.fftfreq(grid.matrix, grid.spacing)[:, None]
        across = np.fft.rfftfreq(grid.matrix, grid.spacing)[None]
        frequency = np.hypot(down, across).astype(np.float32)
        # Filtered back-projection: a ramp, cut off by the kernel.
        ramp = frequency * np.exp(-((frequency / self.grain) ** 2))
        noise = fft.irfft2(fft.rfft2(white) * ramp, grid.shape)
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

        GE files are signed, rescale with -1024 and pad outside a round field with a
        tagged -2000; TOSHIBA files are signed, rescale with 0 and pad with -2048
        without saying so; SIEMENS files are unsigned, rescale with -1024 and have a
        square field.

        Args:
          hu: `[H, W]` int16, -1024 to 3071.
          patient_id: PatientID.
          seed: Distinguishes patients of the same id.
          index: Number of the section from the top, from 0.
          spacing: Millimetres a pixel.
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
    """Returns the disc, `[H, W]` bool, that a scanner reconstructs."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    middle = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    reach = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2
    return reach <= (min(shape) / 2) ** 2


def _empty(patient_id: str, seed: int, index: int) -> pydicom.Dataset:
    """A CT image without pixels: what does not depend on the scanner."""

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
