"""The table of scanners: how many of each one's files are used, and what speaks against the others."""

from dataclasses import dataclass

from client.dicom_index import Index
from client.index_tally import ScannerTally
from client.reasons import Reason

MOST_SCANNERS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerRow:
    """A line of the table of scanners."""

    name: str
    num_files: int
    num_used: int
    main_reason: Reason | None

    @classmethod
    def of(cls, name: str, tally: ScannerTally) -> "ScannerRow":
        """The line of one scanner."""
        shown = {"": "(not named)", "?": "(a name with odd characters)"}.get(name, name)
        return cls(
            name=shown, num_files=tally.num_files, num_used=tally.num_used, main_reason=tally.main_reason
        )


def scanner_rows(index: Index) -> tuple[ScannerRow, ...]:
    """The scanners with most files; all others in one line."""
    found = [ScannerRow.of(name, tally) for name, tally in index.tally.scanners.items()]
    shown, rest = found[:MOST_SCANNERS], found[MOST_SCANNERS:]
    if rest:
        shown.append(
            ScannerRow(
                name=f"({len(rest)} others)",
                num_files=sum(row.num_files for row in rest),
                num_used=sum(row.num_used for row in rest),
                main_reason=None,
            )
        )
    return tuple(shown)
