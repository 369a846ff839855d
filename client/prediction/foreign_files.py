"""What a file that is no DICOM seems to be, by its first bytes: so that somebody knows what to do with it."""

from pathlib import Path

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "It begins as a PNG does."),
    (b"\xff\xd8\xff", "It begins as a JPEG does."),
    (b"PK\x03\x04", "It begins as a ZIP archive does: unpack it first."),
    (b"\x1f\x8b", "It begins as a gzip file does: unpack it first."),
    (b"%PDF", "It begins as a PDF does."),
    (b"-----BEGIN PGP", "It begins as a file encrypted with OpenPGP does: decrypt it first."),
    (b"age-encryption.org", "It begins as a file encrypted with age does: decrypt it first."),
    (b"Salted__", "It begins as a file encrypted with OpenSSL does: decrypt it first."),
)
_ENVELOPED = bytes.fromhex("06092a864886f70d010703")
"""OID 1.2.840.113549.1.7.3: what a Secure DICOM File holds (PS3.10 section 7.4, CMS)."""
_LOOKED_AT = 256


def seems_to_be(path: Path) -> str:
    """Return a sentence, or nothing where its first bytes say nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:
        return ""
    if not start:
        return "It is empty."
    for begins, sentence in _STARTS:
        if start.startswith(begins):
            return sentence
    if start[:1] == b"\x30" and _ENVELOPED in start:
        return "It is encrypted, as a Secure DICOM File is: decrypt it first."
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return "It is text."
    return "It may be something else, or be encrypted."
