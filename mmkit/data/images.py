"""Image files to pixels: one RGB convention for every format, and damage that is noticed."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmkit.errors import MmkitError

DICOM = (".dcm", ".dicom")


class DamagedImage(Exception):
    """A file that is not a whole image; its text is the reason."""


def require_size(size: int) -> None:
    """Refuse an edge length, in pixels, that no encoder here can use."""
    if isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 512:
        raise MmkitError(f"size={size!r} is out of range: pass a whole number of pixels, 16 <= size <= 512")


def read_image(path: Path, *, size: int | None = None) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB: grey in all channels, upright by its EXIF tag, transparency on white, 16-bit grey scaled to 8; DICOM by `read_dicom`.

    size: squash to (size, size), without keeping the aspect ratio, so that nothing at the border is lost; None keeps the size.
    Raises DamagedImage for a truncated file, a file that is no image, and one beyond Pillow's size limit.
    """
    if Path(path).suffix.lower() in DICOM:
        from mmkit.data.dicom import read_dicom

        image = Image.fromarray(read_dicom(path))
    else:
        image = _opened(path)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=None)
    return np.asarray(image)


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DamagedImage(str(error).replace(str(path), Path(path).name)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise ValueError("it holds values that are no numbers (NaN or infinite)")
        low, high = (0, 65535) if image.mode.startswith("I") else (grey.min(), grey.max())
        image = Image.fromarray(np.round((grey - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
