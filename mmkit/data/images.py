"""Image files to pixels: one RGB convention for every format, and damage that is noticed."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from mmkit.errors import MmkitError

DICOM = (".dcm", ".dicom")
# The decoders that a file's name allows, so that no content brings in another (an EPS would run Ghostscript). Pictures
# from the web are often named after another format of the web.
WEB = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
FORMATS = dict.fromkeys((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"), WEB) | {
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
}
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and detectors deliver
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedImage(Exception):
    """A file that is not a whole image; its text is the reason."""


class ScaledImage(UserWarning):
    """A grey picture whose depth no one declared: its values were scaled by what they are."""


def require_size(size: int) -> None:
    """Refuse an edge length, in pixels, that no encoder here can use."""
    if isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 512:
        raise MmkitError(f"size={size!r} is out of range: pass a whole number of pixels, 16 <= size <= 512")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or without a suffix of another picture by DICM at byte 128."""
    if (suffix := Path(path).suffix.lower()) in (*DICOM, *FORMATS):
        return suffix in DICOM
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_image(path: Path, *, size: int | None = None, identifiers: str = "refuse") -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB: grey in all channels, upright by its EXIF tag, transparency on white.

    Whole numbers of more than 8 bits are scaled by the smallest of 8, 10, 12, 14 and 16 bits that holds them; signed,
    larger and broken ones from the least to the largest. A file that does not fill 16 bits is warned of (ScaledImage).
    Of colours, and of grey with transparency, of 16 bits the upper 8 are read; those that do not fill them are refused.
    DICOM is read by `read_dicom`, which gets identifiers. size: squash to (size, size), without keeping the aspect
    ratio, so that nothing at the border is lost; None keeps the size. Raises DamagedImage for a truncated file, a file
    that is no image of the kind its name says, and one beyond Pillow's size limit.
    """
    if is_dicom(path):
        from mmkit.data.dicom import read_dicom

        image = Image.fromarray(read_dicom(path, identifiers=identifiers))
    else:
        image = _opened(Path(path))
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=None)
    return np.asarray(image)


def _opened(path: Path) -> Image.Image:
    formats = FORMATS.get(path.suffix.lower())
    if formats is None:
        raise DamagedImage(f"{path.suffix or 'a file without suffix'} is not read here: convert it to PNG or JPEG")
    if path.exists() and not path.is_file():
        raise DamagedImage("it is a folder, a pipe or a device, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                deep = ";16" in str(image.tile) and not image.mode.startswith("I")
                image.load()
                if deep and max(high for _, high in image.convert("RGB").getextrema()) < 128:
                    raise ValueError("its colours have 16 bits and do not fill them: convert it to 8 bits a colour")
                return _rgb(_upright(image), path.name)
    except Exception as error:  # a stranger's bytes make decoders fail in every way there is
        raise DamagedImage(str(error).replace(str(path), path.name) or type(error).__name__) from error


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # cameras and editors break EXIF in many ways, and the pixels are sound all the same
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(np.asarray(image, dtype=np.float64), name, whole=image.mode != "F")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray, name: str, *, whole: bool) -> Image.Image:
    if not np.isfinite(grey).all():
        raise ValueError("it holds values that are no numbers (NaN or infinite)")
    low, high = grey.min(), grey.max()
    bits = next((bits for bits in DEPTHS if whole and low >= 0 and high < 2**bits), None)
    if bits is not None:
        low, high = 0, 2**bits - 1
    if bits != 16:
        said = f"as {bits} bits" if bits else f"from {low:g} to {high:g}"
        warnings.warn(f"{name}: values scaled {said}, no depth being declared", ScaledImage, stacklevel=2)
    return Image.fromarray(np.round((grey - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8))
