"""DICOM files to pixels, through pydicom: windowed, upright, in 8 bits, and refused when they name a patient."""

import re
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mmkit.data.images import DamagedImage
from mmkit.errors import MmkitError, unknown

# Of the patient's group (0010) all but these identifies, and so does every person's name.
HARMLESS = {"PatientSex", "PatientAge", "PatientSize", "PatientWeight"}
# Places, and what people type freely, which often holds a name (DICOM PS3.15, annex E)
FREE = re.compile(
    r"AccessionNumber|Institution(Name|alDepartmentName)|\w*(Address|Comments?|History|TelephoneNumbers)|ReasonFor\w+"
    r"|\w*(Description|PatientLocation)|ProtocolName|PatientState|RequestingService|(Unformatted)?Text(Value|String)"
)
FAR = 1e12  # beyond every window
PIXELS = {"PixelData", "FloatPixelData", "DoubleFloatPixelData"}


def read_dicom(path: Path, *, window: tuple[float, float] | None = None, identifiers: str = "refuse") -> np.ndarray:
    """A DICOM file as (H, W, 3) uint8 RGB: rescaled, seen through its first window, MONOCHROME1 inverted, upright.

    Upright is: the patient's head above, facing you. An attribute that is there but empty counts as absent, and so do a
    window of width 0 and a slope of 0. window: centre and width in the file's units (Hounsfield for CT) in place of its
    own; a file without window or table goes from its least to its largest value, padding aside. identifiers: "refuse"
    a file that names a patient, or may in its free texts, and is not marked as de-identified; or "drop" all but the
    pixels. Raises MmkitError for identifiers, in the header or burnt into the pixels (which is believed of the header:
    the pixels are not searched for text); DamagedImage for a file without (readable) pixels, with more of them than
    Pillow's size limit, with many frames, with a palette or deep colours, and for a deflated one.
    """
    path = Path(path)
    if identifiers not in ("refuse", "drop"):
        raise unknown("identifiers", identifiers, ("refuse", "drop"))
    if window is not None and not window[1] > 0:
        raise MmkitError(f"window={window} has no width: give the centre and a width above 0")
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DamagedImage("its data set is deflated and of unknown size: export it without compression")
        data = pydicom.dcmread(path)
        _require_nameless(data, path.name, identifiers)
        for element in [element for element in data if element.is_empty and element.keyword not in PIXELS]:
            del data[element.tag]
        _require_plain_pixels(data)
        pixels = data.pixel_array if data.SamplesPerPixel == 3 else _grey(data, window)
        if pixels.shape[:2] != (data.Rows, data.Columns) or pixels.ndim > 3 - (data.SamplesPerPixel == 1):
            raise DamagedImage(f"its pixels are {pixels.shape}, its header says {data.Rows} x {data.Columns}")
        if not np.isfinite(pixels).all():
            raise DamagedImage("its rescaling or its window is no number")
        rows, columns = _towards(data)
    except (MmkitError, DamagedImage):
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise DamagedImage("not a DICOM file") from error
    except Exception as error:  # a stranger's bytes make decoders fail in every way there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImage(f"its pixels cannot be read: {reason}") from error
    pixels = pixels[:: -1 if columns in "HA" else 1, :: -1 if rows == "R" else 1]
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2), dtype=np.uint8)


def identifying(data: pydicom.Dataset) -> list[str]:
    """Keywords of the filled attributes that identify a person, or may; none where that is said to be removed."""
    if data.get("PatientIdentityRemoved") == "YES":
        return []
    found = set()
    for element in data.iterall():
        patients = element.tag.group == 0x0010 and element.keyword not in HARMLESS
        telling = element.VR == "PN" or patients or FREE.fullmatch(element.keyword)
        if element.keyword and element.value and telling:
            found.add(element.keyword)
        elif element.tag.is_private and not element.tag.is_private_creator and _is_text(element.value):
            found.add("private attributes")
    return sorted(found)


def _is_text(value: object) -> bool:
    """Whether a value of an unknown attribute has two letters in a row, as a name has."""
    return re.search(r"[^\W\d_]{2}", value.decode("latin-1") if isinstance(value, bytes) else str(value)) is not None


def _require_nameless(data: pydicom.Dataset, name: str, identifiers: str) -> None:
    if data.get("BurnedInAnnotation") == "YES":
        problem = "has text burnt into its pixels (BurnedInAnnotation is YES), which may name the patient"
        raise MmkitError(f"{name} {problem}: mask it and say NO there, or leave the file out")
    named = identifying(data)
    if named and identifiers == "refuse":
        remedy = "make a de-identified copy first (DICOM PS3.15, annex E)"
        drop = "read its pixels alone with identifiers='drop' (mmkit data add --identifiers drop)"
        raise MmkitError(f"{name} identifies a patient ({', '.join(named)}): {remedy}, or {drop}")


def _require_plain_pixels(data: pydicom.Dataset) -> None:
    """Raises DamagedImage for pixels that are not one plain grey or RGB image, before any of them is decoded."""
    if not PIXELS & {element.keyword for element in data}:
        raise DamagedImage("it holds no pixel data: a report or a list, not an image")
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise DamagedImage(f"it holds {data.NumberOfFrames} frames: export the one you want")
    if data.Rows * data.Columns > Image.MAX_IMAGE_PIXELS:
        raise DamagedImage(
            f"its {data.Rows} x {data.Columns} pixels are beyond the limit of {Image.MAX_IMAGE_PIXELS:,}"
        )
    colours, bits = data.PhotometricInterpretation, data.BitsAllocated
    if colours == "PALETTE COLOR" or (data.SamplesPerPixel == 3 and bits != 8):
        raise DamagedImage(f"its colours ({colours}, {bits} bits) are not read here: export it as 8-bit RGB")


def _grey(data: pydicom.Dataset, window: tuple[float, float] | None) -> np.ndarray:
    """Shades of grey (H, W), 0 to 255."""
    stored = data.pixel_array
    data.RescaleSlope, data.RescaleIntercept = data.get("RescaleSlope") or 1, data.get("RescaleIntercept") or 0
    values, inside = apply_modality_lut(stored, data), stored != data.get("PixelPaddingValue")
    if window is not None:
        data.WindowCenter, data.WindowWidth = window
        data.VOILUTFunction = "LINEAR"
    if "WindowCenter" in data and np.ravel(data.get("WindowWidth", 0))[0] > 0:
        *seen, low, high = apply_windowing(np.append(values.astype(np.float64), [-FAR, FAR]), data)
        values = np.reshape(seen, stored.shape)
    elif data.get("VOILUTSequence"):
        values, low, high = apply_voi(values, data), 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        low, high = values[inside].min(initial=values.max()), values[inside].max(initial=values.min())
    shade = np.round((np.asarray(values, np.float64) - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
    return 255 - shade if data.PhotometricInterpretation == "MONOCHROME1" else shade


def _towards(data: pydicom.Dataset) -> tuple[str, str]:
    """Where rows and columns run: to the patient's Left, Right, Anterior, Posterior, Head or Feet.

    As a radiologist looks at it, when the file does not say.
    """
    if data.get("PatientOrientation"):
        rows, columns = (str(letters)[:1] or "-" for letters in data.PatientOrientation)
        return rows, columns
    along = np.reshape(data.get("ImageOrientationPatient") or [1, 0, 0, 0, 0, -1], (2, 3)).astype(float)
    axes = np.abs(along).argmax(axis=1)
    return tuple(("LPH" if way[axis] > 0 else "RAF")[axis] for way, axis in zip(along, axes, strict=True))
