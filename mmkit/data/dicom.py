"""DICOM files to pixels, through pydicom: windowed, upright, in 8 bits, and refused when they name a patient."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from mmkit.data.images import DamagedImage
from mmkit.errors import MmkitError, unknown

HARMLESS = {
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
}  # all else in the patient's group (0010), and every person's name, identifies
PLACES = {"AccessionNumber", "InstitutionName", "InstitutionAddress"}
FAR = 1e12  # beyond every window


def read_dicom(path: Path, *, window: tuple[float, float] | None = None, identifiers: str = "refuse") -> np.ndarray:
    """A DICOM file as (H, W, 3) uint8 RGB: rescaled, seen through its first window, MONOCHROME1 inverted, the patient upright and facing you.

    window: centre and width in the file's units (Hounsfield for CT) in place of its own; a file without window or table goes from its least
    to its largest value, padding aside. identifiers: "refuse" a file that names a patient and is not marked as de-identified, or "drop" all but the pixels.
    Raises MmkitError for identifiers, in the header or burnt into the pixels (which is believed of the header: the pixels are not searched for text);
    DamagedImage for a file without (readable) pixels, with many frames, with a palette or deep colours.
    """
    if identifiers not in ("refuse", "drop"):
        raise unknown("identifiers", identifiers, ("refuse", "drop"))
    try:
        data = pydicom.dcmread(path)
        named = identifying(data)
        if data.get("BurnedInAnnotation") == "YES":
            raise MmkitError(
                f"{Path(path).name} has text burnt into its pixels (BurnedInAnnotation is YES), which may name the patient: mask it and say NO there, or leave the file out"
            )
        if named and identifiers == "refuse":
            raise MmkitError(
                f"{Path(path).name} identifies a patient ({', '.join(named)}): make a de-identified copy first (DICOM PS3.15, annex E), or read its pixels alone with identifiers='drop'"
            )
        if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {element.keyword for element in data}:
            raise DamagedImage("it holds no pixel data: a report or a list, not an image")
        if int(data.get("NumberOfFrames") or 1) > 1:
            raise DamagedImage(f"it holds {data.NumberOfFrames} frames: export the one you want")
        if data.PhotometricInterpretation == "PALETTE COLOR" or (data.SamplesPerPixel == 3 and data.BitsAllocated != 8):
            raise DamagedImage(
                f"its colours ({data.PhotometricInterpretation}, {data.BitsAllocated} bits) are not read here: export it as 8-bit RGB"
            )
        pixels = data.pixel_array if data.SamplesPerPixel == 3 else _grey(data, window)
        rows, columns = _towards(data)
    except pydicom.errors.InvalidDicomError as error:
        raise DamagedImage("not a DICOM file") from error
    except (
        AttributeError,
        EOFError,
        KeyError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedImage(f"its pixels cannot be read: {' '.join(str(error).split())}") from error
    pixels = pixels[:: -1 if columns in "HA" else 1, :: -1 if rows == "R" else 1]
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2), dtype=np.uint8)


def identifying(data: pydicom.Dataset) -> list[str]:
    """Keywords of the filled attributes that identify a person; none for a file whose maker states that identities were removed."""
    if data.get("PatientIdentityRemoved") == "YES":
        return []
    filled = (element for element in data.iterall() if element.keyword and element.value)
    return sorted(
        {
            e.keyword
            for e in filled
            if e.VR == "PN" or e.keyword in PLACES or (e.tag.group == 0x0010 and e.keyword not in HARMLESS)
        }
    )


def _grey(data: pydicom.Dataset, window: tuple[float, float] | None) -> np.ndarray:
    stored = data.pixel_array
    values, inside = apply_modality_lut(stored, data), stored != data.get("PixelPaddingValue")
    if window is not None:
        data.WindowCenter, data.WindowWidth = window
        data.VOILUTFunction = "LINEAR"
    if "WindowCenter" in data:
        *seen, low, high = apply_windowing(np.append(values.astype(np.float64), [-FAR, FAR]), data)
        values = np.reshape(seen, stored.shape)
    elif data.get("VOILUTSequence"):
        values, low, high = apply_voi(values, data), 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        low, high = values[inside].min(initial=values.max()), values[inside].max(initial=values.min())
    shade = np.round((np.asarray(values, np.float64) - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
    return 255 - shade if data.PhotometricInterpretation == "MONOCHROME1" else shade


def _towards(data: pydicom.Dataset) -> tuple[str, str]:
    """Where rows and columns run: to the patient's Left, Right, Anterior, Posterior, Head or Feet; as a radiologist looks at it when the file does not say."""
    if data.get("PatientOrientation"):
        rows, columns = (str(letters)[:1] or "-" for letters in data.PatientOrientation)
        return rows, columns
    along = np.reshape(data.get("ImageOrientationPatient") or [1, 0, 0, 0, 0, -1], (2, 3)).astype(float)
    return tuple(
        ("LPH" if way[axis] > 0 else "RAF")[axis] for way, axis in zip(along, np.abs(along).argmax(axis=1), strict=True)
    )
