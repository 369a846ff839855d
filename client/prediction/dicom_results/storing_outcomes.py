"""What became of a result that was to be stored in the PACS: each outcome with its sentence and its remedy."""

from enum import Enum

from client.fetch_reasons import NotFetched, Outcome


class Storing(Enum):
    """What became of one file. ``fatal``: it concerns all files, so that the others are not tried."""

    STORED = ("stored", "The PACS has it.", "Nothing to do.", "stored")
    CHANGED = (
        "stored-changed",
        "The PACS has it, and says that it changed or left out some attributes.",
        "Nothing to do; the code tells the PACS team which.",
        "stored",
    )
    KIND_REFUSED = (
        "kind-refused",
        "The PACS takes no objects of this kind from this site.",
        "Have the PACS team allow the kind that is named, or leave it out.",
        "",
    )
    OBJECT_REFUSED = (
        "object-refused",
        "The PACS refused this object.",
        "Give the code to the PACS team.",
        "",
    )
    NO_ROOM = (
        "no-room",
        "The PACS says that it has no room or no means left.",
        "Tell the PACS team; store the files again when it is solved.",
        "",
    )
    TIMEOUT = (
        "time-out",
        "The PACS did not answer within pacs.timeout_seconds.",
        "Store the files again; if it stays so, raise pacs.timeout_seconds.",
        "",
    )
    CONNECTION_LOST = (
        "connection-lost",
        "The connection to the PACS ended in the middle.",
        "Store the files again: the PACS knows by their UIDs what it has already.",
        "",
    )
    PACS_ERROR = (
        "pacs-error",
        "The PACS answered with an error, or with something that cannot be understood.",
        "Give the code to the PACS team.",
        "",
    )
    NOT_READABLE = (
        "not-readable",
        "The file cannot be read, or is no DICOM file.",
        "Name the files that were written, and check who may read them.",
        "",
    )
    NO_SERVICE = (
        "no-service",
        "Nothing at the address in site.toml stores objects.",
        "Check pacs.dicomweb.url, and ask the PACS team whether it offers STOW-RS there.",
        "fatal",
    )
    UNREACHABLE = (
        "unreachable",
        "Nothing answers at the address of the PACS.",
        "Check host and port, or the address, in site.toml, and the firewall between; then: collegium-client doctor.",
        "fatal",
    )
    REFUSED = (
        "refused",
        "The PACS does not let this site in.",
        "Have the PACS team register this site's AE title and address, or its user, with the right to store; compare "
        "both AE titles.",
        "fatal",
    )

    def __init__(self, code: str, sentence: str, remedy: str, kind: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy
        self.is_stored = kind == "stored"
        self.fatal = kind == "fatal"


_OF_CONNECTIONS = {
    Outcome.UNREACHABLE: Storing.UNREACHABLE,
    Outcome.REFUSED: Storing.REFUSED,
    Outcome.TIMEOUT: Storing.TIMEOUT,
    Outcome.CONNECTION_LOST: Storing.CONNECTION_LOST,
}


class NotStored(Exception):
    """A file was not stored. The detail holds codes of the protocol and names of kinds, never an identifier."""

    def __init__(self, outcome: Storing, detail: str = "") -> None:
        super().__init__(f"{outcome.sentence} {detail}".rstrip())
        self.outcome = outcome
        self.detail = detail

    @classmethod
    def of(cls, trouble: NotFetched) -> "NotStored":
        """The same trouble with a connection, as storing tells it."""
        return cls(_OF_CONNECTIONS.get(trouble.outcome, Storing.PACS_ERROR), trouble.detail)


def refused_with(code: int, kind: str) -> NotStored:
    """What a PACS means by a status or failure reason (PS3.4 table B.2-1, PS3.7 annex C, PS3.18 table I.2-2).

    Args:
        code: the status.
        kind: name of the SOP class.
    """
    told = f"(code {code:04X})"
    if code in (0x0122, 0x0112):
        return NotStored(Storing.KIND_REFUSED, f"({kind}, code {code:04X})")
    if code == 0x0124:
        return NotStored(Storing.REFUSED, told)
    if code & 0xFF00 == 0xA700:
        return NotStored(Storing.NO_ROOM, told)
    return NotStored(Storing.OBJECT_REFUSED, told)
