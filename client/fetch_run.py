"""Fetching: question by question, study by study, so that what fails at one costs that one only.

For each study the PACS lists series and images; those that are in the folder already are not asked for again. A study
is complete when every listed image is there. Whatever ends the process, the next call goes on from what is there.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from client.fetch_limits import Hours, Pace
from client.fetch_reasons import NotFetched, Outcome
from client.fetch_record import FOUND, FetchRecord, Line, line_of
from client.fetch_store import ImageStore, StudyFolder
from client.pacs_query import FoundInstance, FoundStudy, PacsConnection, StudyQuery, Wanted
from shared_models.visible_text import visible

MOST_BACKOFF_SECONDS = 300.0
NOT_TRIED_AGAIN = (
    Outcome.TOO_LARGE,
    Outcome.UNKNOWN_ACCESSION,
    Outcome.UNKNOWN_STUDY,
    Outcome.EMPTY_STUDY,
    Outcome.DISK_FULL,
    Outcome.NOT_WRITABLE,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How a fetch goes about it.

    Args:
        connections: to the PACS, at the same time.
        attempts: how often a study is tried in one call.
        backoff_seconds: before the second attempt; doubled with each further one, up to 300 s.
        hours: outside of which no study begins.
        wait: whether to wait for the hours, rather than to end.
        again: whether studies that are complete are asked for again.
    """

    connections: int
    attempts: int
    backoff_seconds: float
    hours: Hours | None = None
    wait: bool = True
    again: bool = False


@dataclass(slots=True)
class Tally:
    """Counts of one call, for the terminal: nothing in it names a patient.

    ``outcomes``: of studies, and of lines of a list without one. ``stopped`` is what ended the call early.
    """

    queries: int = 0
    queries_done: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    known: int = 0
    images: int = 0
    num_bytes: int = 0
    stopped: NotFetched | None = None

    @property
    def failed(self) -> int:
        """Studies, or lines, with which something is left to do."""
        return sum(number for outcome, number in self.outcomes.items() if not outcome.settled)


class Fetch:
    """One call of ``collegium-client fetch``.

    Args:
        connect: makes a connection; it need not reach the PACS yet.
        store: where images go.
        record: what became of each study.
        pace: spreads studies over time.
        is_withdrawn: whether a patient, by Patient ID, withdrew.
        progress: called with the counts after each step.
        now: local time.
    """

    def __init__(
        self,
        wanted: Wanted,
        options: FetchOptions,
        *,
        connect: Callable[[], PacsConnection],
        store: ImageStore,
        record: FetchRecord,
        pace: Pace,
        is_withdrawn: Callable[[str], bool] = lambda patient: False,
        progress: Callable[[Tally], None] = lambda tally: None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._wanted, self._options = wanted, options
        self._connect, self._store, self._record, self._pace = connect, store, record, pace
        self._is_withdrawn, self._progress, self._now = is_withdrawn, progress, now
        self._modalities = " ".join(sorted(wanted.modalities))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._seen: set[str] = set()
        self._crash: BaseException | None = None
        self._tally = Tally(queries=wanted.num_queries)

    def run(self) -> Tally:
        """Fetch everything that is wanted and not there yet; return the counts.

        Raises:
            OSError: the record cannot be written.
        """
        try:
            self._store.prepare()
        except NotFetched as trouble:
            self._end(trouble)
        queries = self._wanted.queries()
        lines = [
            _Reconnecting(self._connect) for _ in range(min(self._options.connections, self._tally.queries))
        ]
        workers = [threading.Thread(target=self._work, args=(queries, line), daemon=True) for line in lines]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        except KeyboardInterrupt:
            self._stop.set()
            for line in lines:
                line.close()  # in the middle of an answer: nothing may keep the process from ending
            raise
        if self._crash is not None:
            raise self._crash
        self._list_the_rest(queries)
        return self._tally

    def _work(self, queries: Iterator[StudyQuery], line: "_Reconnecting") -> None:
        """One connection's life."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    query = next(queries, None)
                if query is None:
                    return
                self._answer(query, line)
                with self._lock:
                    self._tally.queries_done += 1
                self._progress(self._tally)
        except BaseException as error:  # noqa: BLE001 - the thread that waits for this one tells it
            self._crash = error
            self._stop.set()
        finally:
            line.close()

    def _answer(self, query: StudyQuery, line: "_Reconnecting") -> None:
        """Ask one question, and fetch each study of the answer."""
        if self._is_known(query):
            return
        try:
            self._begin()
            found = self._tried(line, lambda connection: connection.studies(query))
        except NotFetched as trouble:
            self._note(trouble, accession=query.accession, study=query.study)
            return
        found = list({study.study: study for study in found if query.fits(study)}.values())
        if not found and query.day is None:
            unknown = Outcome.UNKNOWN_ACCESSION if query.accession else Outcome.UNKNOWN_STUDY
            self._note(NotFetched(unknown), accession=query.accession, study=query.study)
        if not query.accession:
            found = [replace(study, accession=_shown(study.accession)) for study in found]
        elif found:
            self._record.add(Line(accession=query.accession, outcome=FOUND, number=len(found)))
        for number, study in enumerate(found):
            if self._stop.is_set():
                self._list_not_begun(found[number:])
                return
            self._study(study, line, first=number == 0)

    def _is_known(self, query: StudyQuery) -> bool:
        """Whether every study of the question is settled already, so that the PACS need not be asked."""
        if self._options.again or query.day is not None:
            return False
        if query.study:
            line = self._record.of_study(query.study)
            lines = [line] if line is not None else []
        else:
            lines = self._record.of_accession(query.accession) or []
        if not lines or not all(self._is_settled(line) for line in lines):
            return False
        with self._lock:
            fresh = [line for line in lines if line.study not in self._seen]
            self._seen.update(line.study for line in fresh)
            self._tally.known += len(fresh)
        return True

    def _is_settled(self, line: Line) -> bool:
        """Whether nothing is left to do for a study: it was wanted in the same way, and its images are still there."""
        if not line.settled or line.modalities not in ("", self._modalities):
            return False
        if line.outcome == Outcome.NOT_WANTED.code:
            return False  # which days are wanted may have changed
        return (
            line.outcome != Outcome.COMPLETE.code or self._store.study(line.study).num_images >= line.number
        )

    def _study(self, found: FoundStudy, line: "_Reconnecting", *, first: bool) -> None:
        """Fetch one study, and write down what became of it."""
        with self._lock:
            if found.study in self._seen:
                return
            self._seen.add(found.study)
        known = self._record.of_study(found.study)
        if known is not None and not self._options.again and self._is_settled(known):
            with self._lock:
                self._tally.known += 1
            return
        try:
            self._check_wanted(found)
            if not first:
                self._begin()
            self._store.check_room()
            number = self._tried(line, lambda connection: self._bring(connection, found.study))
        except NotFetched as trouble:
            self._note(trouble, accession=found.accession, study=found.study)
            return
        self._write(Outcome.COMPLETE, accession=found.accession, study=found.study, number=number)

    def _check_wanted(self, found: FoundStudy) -> None:
        if not self._wanted.admits_day(found.day):
            raise NotFetched(Outcome.NOT_WANTED)
        if found.patient and self._is_withdrawn(found.patient):
            raise NotFetched(Outcome.WITHDRAWN)

    def _bring(self, connection: PacsConnection, study: str) -> int:
        """Bring what lacks of a study; return how many images it has. Raises NotFetched."""
        series = connection.series(study)
        wanted = [one for one in series if self._wanted.admits_modality(one.modality)]
        if series and not wanted:
            raise NotFetched(Outcome.NOT_WANTED)
        listed = {one.series: connection.instances(study, one.series) for one in wanted}
        expected = {one.instance for instances in listed.values() for one in instances}
        if not expected:
            raise NotFetched(Outcome.EMPTY_STUDY)
        folder = self._store.study(study, expected)
        try:
            for name, instances in listed.items():
                missing = _missing(folder, instances)
                if missing:
                    whole = len(missing) == len(instances)
                    connection.retrieve(study, name, missing, folder.incoming, whole=whole)
        finally:
            with self._lock:
                self._tally.images += folder.num_new
                self._tally.num_bytes += folder.num_new_bytes
        lacking = sum(len(_missing(folder, instances)) for instances in listed.values())
        if lacking:
            raise NotFetched(Outcome.INCOMPLETE, f"({lacking} of {len(expected)} images lack)")
        return len(expected)

    def _tried(self, line: "_Reconnecting", step: Callable[[PacsConnection], T]) -> T:
        """Do a step, again on a new connection after a growing pause where it fails. Raises NotFetched."""
        for attempt in range(self._options.attempts):
            try:
                return _understood(step, line.connection())
            except NotFetched as trouble:
                line.close()
                settled = trouble.outcome.settled or trouble.outcome in NOT_TRIED_AGAIN
                if settled or self._stop.is_set() or attempt + 1 == self._options.attempts:
                    raise
            self._stop.wait(min(self._options.backoff_seconds * 2**attempt, MOST_BACKOFF_SECONDS))
        raise RuntimeError("attempts is at least 1")

    def _begin(self) -> None:
        """Wait for the turn of a study, and for the hours. Raises NotFetched where they are not waited for."""
        self._pace.study()
        hours = self._options.hours
        while hours is not None and not self._stop.is_set():
            seconds = hours.seconds_to_wait(self._now())
            if seconds <= 0:
                return
            if not self._options.wait:
                raise NotFetched(Outcome.OUTSIDE_HOURS)
            self._stop.wait(min(seconds, 60.0))  # in short naps: the clock may be set

    def _note(self, trouble: NotFetched, *, accession: str = "", study: str = "") -> None:
        """Write down what was not fetched; end the call where it concerns all studies."""
        if accession or study:
            self._write(trouble.outcome, accession=accession, study=study, detail=trouble.detail)
        else:
            with self._lock:
                self._tally.outcomes[trouble.outcome] += 1
        if trouble.outcome.fatal or trouble.outcome is Outcome.OUTSIDE_HOURS:
            self._end(trouble)

    def _write(
        self, outcome: Outcome, *, accession: str = "", study: str = "", number: int = 0, detail: str = ""
    ) -> None:
        self._record.add(
            line_of(
                outcome,
                accession=accession,
                study=study,
                modalities=self._modalities,
                number=number,
                detail=detail,
            )
        )
        with self._lock:
            self._tally.outcomes[outcome] += 1
        self._progress(self._tally)

    def _end(self, trouble: NotFetched) -> None:
        with self._lock:
            self._tally.stopped = self._tally.stopped or trouble
        self._stop.set()

    def _list_not_begun(self, found: Sequence[FoundStudy]) -> None:
        """Give studies that were found, and whose turn did not come, the reason for which the call ended."""
        stopped = self._tally.stopped
        if stopped is None:
            return
        for study in found:
            line = self._record.of_study(study.study)
            if line is None or not self._is_settled(line):
                self._write(
                    stopped.outcome, accession=study.accession, study=study.study, detail=stopped.detail
                )

    def _list_the_rest(self, queries: Iterator[StudyQuery]) -> None:
        """Give every question that was not asked the reason for which the call ended."""
        stopped = self._tally.stopped
        if stopped is None:
            return
        lines = []
        for query in queries:
            if self._is_known(query):
                continue
            self._tally.outcomes[stopped.outcome] += 1
            if query.accession or query.study:
                lines.append(
                    line_of(
                        stopped.outcome,
                        accession=query.accession,
                        study=query.study,
                        modalities=self._modalities,
                        detail=stopped.detail,
                    )
                )
        self._record.add(*lines)


class _Reconnecting:
    """One worker's connection, made anew after it was closed."""

    def __init__(self, connect: Callable[[], PacsConnection]) -> None:
        self._connect = connect
        self._current: PacsConnection | None = None

    def connection(self) -> PacsConnection:
        """The connection."""
        if self._current is None:
            self._current = self._connect()
        return self._current

    def close(self) -> None:
        """Close it, where it is open."""
        current, self._current = self._current, None
        if current is not None:
            current.close()


def _understood(step: Callable[[PacsConnection], T], connection: PacsConnection) -> T:
    """Do a step; whatever a library raises on what a PACS sends costs one study, and its text is not shown."""
    try:
        return step(connection)
    except NotFetched:
        raise
    except Exception as error:  # noqa: BLE001 - a PACS may send anything
        raise NotFetched(Outcome.PACS_ERROR, f"({type(error).__name__})") from None


def _shown(accession: str) -> str:
    """What the PACS says, for the record, which people read on terminals and in spreadsheets: no formula either."""
    text = visible(accession)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _missing(folder: StudyFolder, instances: Sequence[FoundInstance]) -> list[FoundInstance]:
    return [one for one in instances if not folder.has(one.instance)]


def pace_of(studies_per_minute: float, mib_per_second: float | None) -> Pace:
    """The pace by this machine's clock."""
    rate = None if mib_per_second is None else mib_per_second * (1 << 20)
    return Pace(studies_per_minute, rate, clock=time.monotonic, sleep=time.sleep)


def withdrawn_by(pseudonyms: Collection[str], pseudonym: Callable[[str], str]) -> Callable[[str], bool]:
    """Whether a Patient ID is one of those who withdrew, of whom only pseudonyms are known."""
    return lambda patient: bool(pseudonyms) and pseudonym(patient) in pseudonyms
