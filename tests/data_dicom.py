"""DICOM files as a hospital sends them, for the tests."""

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from mmkit.data import read_dicom

RAMP = np.array([[0, 1000, 2000], [3000, 4000, 5000]], np.uint16)


def write_dicom(path, pixels, **attributes):
    """A digital X-ray as a hospital would send it, without identifiers."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID, data.file_meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian,
        DigitalXRayImageStorageForPresentation,
    )
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.Modality, data.PatientSex, data.PatientAge, data.PatientName, data.PatientID = "DX", "F", "054Y", "", ""
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        data.PlanarConfiguration = 0
        data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def grey(path, **options):
    pixels = read_dicom(path, **options)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()
