"""Which decoder reads which transfer syntax: one each, chosen by measurement (docs/decisions/0024-decoders.md)."""

import copy
import importlib
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.codestream import stream_size
from client.dicom_file import Unusable, name_of
from client.reasons import Reason

DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")
"""Deflated Image Frame Compression, younger than pydicom 3.0. Source: DICOM PS3.5 section A.4.13."""

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm>=3.2",)}
"""The form in which pydicom asks a plugin what it decodes: this module is one, for 12-bit JPEG."""

PLUGINS: Mapping[UID, str] = MappingProxyType(
    {
        JPEGBaseline8Bit: "pillow",
        JPEGExtended12Bit: "gdcm-12-bit",
        JPEGLossless: "gdcm",
        JPEGLosslessSV1: "gdcm",
        JPEGLSLossless: "pyjpegls",
        JPEGLSNearLossless: "pyjpegls",
        JPEG2000Lossless: "pylibjpeg",
        JPEG2000: "pylibjpeg",
        HTJ2KLossless: "pylibjpeg",
        HTJ2KLosslessRPCL: "pylibjpeg",
        HTJ2K: "pylibjpeg",
        RLELossless: "pylibjpeg",
    }
)
"""Names of pydicom's plugins. Syntaxes that compress no pixels need none."""


def is_native(transfer_syntax: UID) -> bool:
    """Whether pixel data lie there as they are, all frames together. Raises ValueError where it is no such syntax."""
    return transfer_syntax != DEFLATED_FRAMES and not transfer_syntax.is_encapsulated


def plugin_for(transfer_syntax: UID, bits_stored: int) -> str:
    """Return the name of pydicom's plugin for this syntax, empty where it compresses no pixels.

    Raises:
        Unusable: none of our decoders reads it.
    """
    if transfer_syntax == DEFLATED_FRAMES or is_native(transfer_syntax):
        return ""
    if transfer_syntax not in PLUGINS:
        raise Unusable(Reason.UNSUPPORTED_TRANSFER_SYNTAX, name_of(transfer_syntax))
    if transfer_syntax == JPEGExtended12Bit:
        if bits_stored == 8:
            return "pillow"
        decoder = get_decoder(transfer_syntax)
        if "gdcm-12-bit" not in decoder.available_plugins:
            decoder.add_plugin("gdcm-12-bit", (__name__, "decode_12_bit"))
    return PLUGINS[transfer_syntax]


def check_stream(dataset: FileDataset, frame: int) -> None:
    """Refuse a compressed frame that says of itself that it has another size than the header says.

    A decoder reserves what the stream claims.

    Raises:
        Unusable: undecodable.
    """
    if dataset.file_meta.TransferSyntaxUID == RLELossless:  # it does not tell its size
        return
    found = stream_size(_stream_of(dataset, frame))
    if found is None:
        raise Unusable(Reason.UNDECODABLE, "Its compressed data have no header.")
    if found != (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)):
        raise Unusable(Reason.UNDECODABLE, "Its compressed data have another size than its header says.")


def inflated_frame(dataset: FileDataset, frame: int) -> FileDataset:
    """The same with one frame that is not deflated any more; never more than the header says is inflated.

    Raises:
        Unusable: the frame is too short.
        zlib.error: it is damaged.
    """
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    needed = (pixels * int(dataset.BitsAllocated) + 7) // 8
    plain = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(_stream_of(dataset, frame), needed)
    if len(plain) < needed:
        raise Unusable(Reason.TRUNCATED, f"{needed} bytes of pixel data expected.")
    single = copy.copy(dataset)
    single.file_meta = copy.copy(dataset.file_meta)
    single.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    single.NumberOfFrames = 1
    single.PixelData = plain + b"\0" * (needed % 2)
    return single


def _stream_of(dataset: FileDataset, frame: int) -> bytes:
    """One frame as it is compressed, its fragments put together. Source: DICOM PS3.5 section A.4."""
    offsets = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    return get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=(offsets[0], offsets[1]) if all(offsets) else None,
    )


def is_available(uid: str) -> bool:
    """Whether this module, as a plugin of pydicom, decodes a syntax."""
    return uid == JPEGExtended12Bit


def decode_12_bit(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame of JPEG Extended (Process 4) with GDCM, which pydicom 3.0 does not let do it.

    Args:
        stream: one frame, SOI to EOI.
        runner: pydicom's description of the frame.

    Returns:
        (rows, columns) unsigned 16-bit values, little endian, of 12 bits.

    Raises:
        ValueError: GDCM cannot decode it.
    """
    gdcm = importlib.import_module("gdcm")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    bitmap = gdcm.Image()
    bitmap.SetNumberOfDimensions(2)
    bitmap.SetDimensions((runner.columns, runner.rows, 1))
    bitmap.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(runner.photometric_interpretation)
    bitmap.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str(runner.transfer_syntax))
    bitmap.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = runner.bits_stored
    bitmap.SetPixelFormat(
        gdcm.PixelFormat(
            runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation
        )
    )
    decoded = bitmap.GetBuffer()  # text whose surrogates are bytes
    if decoded is None:
        raise ValueError("GDCM cannot decode it")
    return bytes(decoded.encode("utf-8", "surrogateescape"))
