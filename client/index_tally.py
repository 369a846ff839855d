"""What the headers of an images folder add up to: by scanner, by kind of identifier, by size. Counts only."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from client.basic_profile import Kind
from client.file_facts import HeaderFacts
from client.image_conflicts import Identities
from client.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerTally:
    """Of one scanner: files used, and files left out by reason."""

    num_used: int = 0
    left_out: Mapping[Reason, int] = field(default_factory=dict)

    @property
    def num_files(self) -> int:
        """Used or not."""
        return self.num_used + sum(self.left_out.values())

    @property
    def main_reason(self) -> Reason | None:
        """Why most of the others are left out; None where none is."""
        return max(
            sorted(self.left_out, key=lambda reason: reason.code), key=self.left_out.__getitem__, default=None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts over all DICOM files with a readable header, but those of patients who withdrew.

    Attributes:
        num_headers: these files.
        scanners: by scanner, ``?`` where its name holds odd characters, empty where there is none; largest first.
        kinds: files that hold values of each kind of identifying attribute.
        num_removed: files that say that the patient's identity was removed.
        num_to_remove: files with values that the Basic Profile removes.
        num_incomplete: files whose header could not be looked through to its end.
        burned_in: files by what Burned In Annotation says, empty where it says nothing.
        sizes: files used, by rows and columns.
        spacings: files used, by the size of a pixel in mm, to hundredths; None where the header does not say.
        num_contradictory: Patient IDs with contradictory birth dates or sexes.
        num_several_ids: persons who seem to have several Patient IDs.
        num_shared: Patient IDs whose images are there under another one as well.
    """

    num_headers: int = 0
    scanners: Mapping[str, ScannerTally] = field(default_factory=dict)
    kinds: Mapping[Kind, int] = field(default_factory=dict)
    num_removed: int = 0
    num_to_remove: int = 0
    num_incomplete: int = 0
    burned_in: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    spacings: Mapping[tuple[float, float] | None, int] = field(default_factory=dict)
    num_contradictory: int = 0
    num_several_ids: int = 0
    num_shared: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """One file: what its header says, and why it is left out; None where it is used."""

    facts: HeaderFacts
    reason: Reason | None


def tally(files: Iterable[Counted], identities: Identities, shared: Sequence[str]) -> Tally:
    """Add up.

    Args:
        files: all with a readable header.
        identities: of all of them.
        shared: pseudonyms of patients whose images are there under several Patient IDs.
    """
    used: Counter[str] = Counter()
    left_out: dict[str, Counter[Reason]] = {}
    kinds: Counter[Kind] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    spacings: Counter[tuple[float, float] | None] = Counter()
    burned_in: Counter[str] = Counter()
    sums = Counter[str]()
    for file in files:
        facts, identifying = file.facts, file.facts.identifying
        if file.reason is None:
            used[facts.scanner] += 1
            sizes[facts.rows or 0, facts.columns or 0] += 1
            spacings[facts.spacing and (round(facts.spacing[0], 2), round(facts.spacing[1], 2))] += 1
        else:
            left_out.setdefault(facts.scanner, Counter())[file.reason] += 1
        kinds.update(kind for kind in Kind if getattr(identifying, kind.field))
        burned_in[facts.burned_in] += 1
        sums["headers"] += 1
        sums["removed"] += identifying.removed
        sums["to_remove"] += identifying.to_remove > 0
        sums["incomplete"] += not identifying.complete
    scanners = {
        name: ScannerTally(num_used=used[name], left_out=dict(left_out.get(name, {})))
        for name in {*used, *left_out}
    }
    return Tally(
        num_headers=sums["headers"],
        scanners=dict(sorted(scanners.items(), key=lambda item: (-item[1].num_files, item[0]))),
        kinds=dict(kinds),
        num_removed=sums["removed"],
        num_to_remove=sums["to_remove"],
        num_incomplete=sums["incomplete"],
        burned_in=dict(burned_in),
        sizes=dict(sizes),
        spacings=dict(spacings),
        num_contradictory=len(identities.contradictory),
        num_several_ids=len(identities.several_ids),
        num_shared=len(shared),
    )
