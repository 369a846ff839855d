"""What became of a study that was to be fetched: each outcome with its sentence and its remedy.

This table is the only place where the outcomes stand; the command's summary and the documents are made from it.
"""

from enum import Enum


class Outcome(Enum):
    """What became of one study, or of one line of a list.

    ``settled``: nothing is left to do, and the next call does not ask again. ``fatal``: it concerns all studies, so
    that the call ends with it.
    """

    COMPLETE = ("complete", "All its images are in the images folder.", "Nothing to do.", "settled")
    NOT_WANTED = (
        "not-wanted",
        "The PACS has it, but nothing of it is of the wanted modality or date.",
        "Nothing to do.",
        "settled",
    )
    WITHDRAWN = ("withdrawn", "Its patient withdrew; it is not fetched.", "Nothing to do.", "settled")
    UNKNOWN_ACCESSION = (
        "unknown-accession",
        "The PACS has no study of this accession number.",
        "Compare the number with the radiology system's; another archive may hold the study.",
        "",
    )
    UNKNOWN_STUDY = (
        "unknown-study",
        "The PACS has no study of this Study Instance UID.",
        "Compare the UID with its source; another archive may hold the study.",
        "",
    )
    EMPTY_STUDY = (
        "empty-study",
        "The PACS lists it without any image.",
        "Ask the PACS team: its images may be in a long-term archive, or may never have arrived.",
        "",
    )
    INCOMPLETE = (
        "incomplete",
        "The PACS sent fewer images than it lists.",
        "Fetch again; if it stays so, ask the PACS team about the images that it does not send.",
        "",
    )
    WRONG_OBJECT = (
        "wrong-object",
        "The PACS sent something that is not the image that was asked for, or no DICOM.",
        "Fetch again; if it stays so, report it to the PACS team.",
        "",
    )
    TOO_LARGE = (
        "too-large",
        "One of its images is larger than pacs.max_object_mib.",
        "Raise pacs.max_object_mib if such images are wanted.",
        "",
    )
    TIMEOUT = (
        "time-out",
        "The PACS did not answer within pacs.timeout_seconds.",
        "Fetch again; if it stays so, raise pacs.timeout_seconds: archives that fetch from tape are slow.",
        "",
    )
    CONNECTION_LOST = (
        "connection-lost",
        "The connection to the PACS ended in the middle.",
        "Fetch again: what has come already is not asked for again.",
        "",
    )
    PACS_ERROR = (
        "pacs-error",
        "The PACS answered with an error, or with something that cannot be understood.",
        "Give the code in the column detail to the PACS team.",
        "",
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
        "Have the PACS team register this site's AE title, address and port, or its user; compare both AE titles.",
        "fatal",
    )
    DISK_FULL = (
        "disk-full",
        "The disk of the images folder is full, or has less than pacs.min_free_mib left.",
        "Make room there, then fetch again.",
        "fatal",
    )
    NOT_WRITABLE = (
        "not-writable",
        "Nothing can be written into the images folder.",
        "Give the user that runs this command the right to write there; check whether it is mounted read-only.",
        "fatal",
    )
    OUTSIDE_HOURS = (
        "outside-hours",
        "The hours of pacs.hours were over before it was its turn.",
        "Start the command again, or leave it waiting.",
        "",
    )

    def __init__(self, code: str, sentence: str, remedy: str, kind: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy
        self.settled = kind == "settled"
        self.fatal = kind == "fatal"


OUTCOMES = {outcome.code: outcome for outcome in Outcome}


class NotFetched(Exception):
    """Something was not fetched. The detail holds codes and numbers of the protocol, never an identifier."""

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(f"{outcome.sentence} {detail}".rstrip())
        self.outcome = outcome
        self.detail = detail
