"""Fetching without a network: queries, limits, the record, and what each failure of a PACS becomes."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from dicom_files import SECRET, dataset, gradient, write
from pydantic import ValidationError
from pydicom import dcmread

from client.fetch_command import exit_code
from client.fetch_limits import Hours, Pace
from client.fetch_reasons import NotFetched, Outcome
from client.fetch_record import FetchRecord, Line
from client.fetch_run import Fetch, FetchOptions, Tally
from client.fetch_store import ImageStore
from client.pacs_file import DicomWeb, Dimse, Pacs
from client.pacs_query import (
    FoundInstance,
    FoundSeries,
    FoundStudy,
    Receive,
    StudyQuery,
    Wanted,
    read_accessions,
    read_studies,
)
from client.pacs_web import WebConnection, web_access
from shared_models.configuration import ConfigurationError

# Queries


def test_a_query_asks_for_what_is_given_and_nothing_else() -> None:
    assert StudyQuery(accession="A 1").keys() == {"AccessionNumber": "A 1"}
    assert StudyQuery(study="1.2").keys() == {"StudyInstanceUID": "1.2"}
    day = StudyQuery(day=date(2024, 2, 29), modality="CT")
    assert day.keys() == {"StudyDate": "20240229", "ModalitiesInStudy": "CT"}


def test_answers_that_do_not_fit_the_question_are_not_taken() -> None:
    """A service that does not know a key returns everything."""
    query = StudyQuery(accession="A1")
    assert query.fits(FoundStudy(study="1", accession="A1"))
    assert not query.fits(FoundStudy(study="1", accession="A2"))
    assert not query.fits(FoundStudy(study="1"))
    assert not StudyQuery(study="1").fits(FoundStudy(study="2"))
    assert not StudyQuery(day=date(2024, 1, 1)).fits(FoundStudy(study="1", day="20240102"))


def test_days_are_asked_one_by_one_and_each_modality_for_itself() -> None:
    wanted = Wanted(modalities=("CR", "CT"), first=date(2024, 2, 28), last=date(2024, 3, 1))
    asked = [(query.day, query.modality) for query in wanted.queries()]
    assert asked == [(date(2024, 2, 28) + timedelta(days=n), m) for n in range(3) for m in ("CR", "CT")]
    assert wanted.num_queries == 6


def test_lists_are_asked_line_by_line_and_days_and_modalities_narrow_them() -> None:
    wanted = Wanted(accessions=("A", "B"), studies=("1.2",), first=date(2024, 1, 1), last=date(2024, 1, 31))
    assert [query.keys() for query in wanted.queries()] == [
        {"AccessionNumber": "A"},
        {"AccessionNumber": "B"},
        {"StudyInstanceUID": "1.2"},
    ]
    assert wanted.admits_day("20240131")
    assert not wanted.admits_day("20240201")
    assert not wanted.admits_day("")
    assert Wanted(studies=("1",), modalities=("CT",)).admits_modality("CT")
    assert not Wanted(studies=("1",), modalities=("CT",)).admits_modality("SR")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "what is to be fetched"),
        ({"modalities": ("CT",)}, "what is to be fetched"),
        ({"first": date(2024, 1, 1)}, "belong together"),
        ({"first": date(2024, 1, 2), "last": date(2024, 1, 1)}, "later"),
        ({"studies": ("1",), "modalities": ("C\\T",)}, "no modality"),
    ],
)
def test_a_question_for_the_whole_archive_or_for_nothing_is_refused(values: dict, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Wanted(**values)


def test_lists_are_read_and_a_bad_line_is_named_by_its_number_only(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeff# numbers\nACC 1\n\n  ACC2  \nACC 1\n", encoding="utf-8")
    assert read_accessions(path) == ("ACC 1", "ACC2")
    path.write_text("1.2.3\n1.2.840.10008\n")
    assert read_studies(path) == ("1.2.3", "1.2.840.10008")
    for text in ("SECRET*", "SECRET?", "SECRET\\X", "SECRET\x07", "SECRET" * 20):
        path.write_text(f"ACC1\n{text}\n")
        with pytest.raises(ConfigurationError, match="line 2 holds no accession number") as told:
            read_accessions(path)
        assert "SECRET" not in str(told.value)
    for text in ("1.2/../x", "1..2", "a.b", "1." * 40 + "1"):
        path.write_text(f"{text}\n")
        with pytest.raises(ConfigurationError, match="line 1 holds no Study Instance UID"):
            read_studies(path)
    path.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="holds no accession number"):
        read_accessions(path)


# Hours and pace


@pytest.mark.parametrize(
    ("text", "at", "seconds"),
    [
        ("19:00-06:00", "18:59", 60),
        ("19:00-06:00", "19:00", 0),
        ("19:00-06:00", "23:59", 0),
        ("19:00-06:00", "05:59", 0),
        ("19:00-06:00", "06:00", 13 * 3600),
        ("06:30-18:00", "06:29", 60),
        ("06:30-18:00", "17:59", 0),
        ("06:30-18:00", "18:00", 12.5 * 3600),
        ("00:00-23:59", "23:59", 60),
    ],
)
def test_hours(text: str, at: str, seconds: float) -> None:
    now = datetime.fromisoformat(f"2024-03-10 {at}")
    hours = Hours.of(text)
    assert hours.seconds_to_wait(now) == seconds
    assert hours.open_at(now) == (seconds == 0)
    if seconds:
        assert hours.open_at(now + timedelta(seconds=seconds))


class Clock:
    def __init__(self) -> None:
        self.now, self.naps = 100.0, []

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        self.now += seconds


def test_studies_begin_evenly_spread_and_a_late_one_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(30.0, None, clock=lambda: clock.now, sleep=clock.sleep)
    begun = []
    for _ in range(4):
        pace.study()
        begun.append(clock.now)
    assert begun == [100, 102, 104, 106]
    clock.now += 60
    for _ in range(3):
        pace.study()
        begun.append(clock.now)
    assert begun[4:] == [166, 168, 170]


def test_bytes_stay_below_their_rate_whatever_the_sizes() -> None:
    clock = Clock()
    pace = Pace(1e9, 1000.0, clock=lambda: clock.now, sleep=clock.sleep)
    total = 0
    for size in (1, 500, 100_000, 3, 2000, 2000):
        pace.study()
        pace.received(size)
        total += size
    pace.study()
    assert clock.now - 100.0 >= total / 1000.0 - 1e-6
    clock = Clock()
    pace = Pace(1e9, 1000.0, clock=lambda: clock.now, sleep=clock.sleep)
    pace.received(100_000)
    assert clock.naps == [2.0], "within a study no pause is longer, so that no connection times out"


# site.toml

DIMSE = {"host": "h", "port": 104, "called_ae_title": "A"}


@pytest.mark.parametrize(
    ("model", "values", "told"),
    [
        (Dimse, {**DIMSE, "called_ae_title": "much too long a title"}, "AE title"),
        (Dimse, {**DIMSE, "called_ae_title": " "}, "AE title"),
        (Dimse, {**DIMSE, "retrieve": "move"}, "listen_host"),
        (Dimse, {**DIMSE, "listen_port": 1}, "move"),
        (Dimse, {**DIMSE, "ca_certificate": "x"}, "tls is false"),
        (Dimse, {**DIMSE, "tls": True, "client_key": "x"}, "belong together"),
        (DicomWeb, {"url": "ftp://h/"}, "http"),
        (DicomWeb, {"url": "https://user:word@h/"}, "credentials_file"),
        (DicomWeb, {"url": "https://h/?x=1"}, "root only"),
        (DicomWeb, {"url": "https://h", "authentication": "basic"}, "credentials_file"),
        (DicomWeb, {"url": "https://h", "credentials_file": "x"}, "authentication"),
        (DicomWeb, {"url": "http://h", "authentication": "bearer", "credentials_file": "x"}, "in clear"),
        (DicomWeb, {"url": "http://h", "ca_certificate": "x"}, "https"),
        (Pacs, {}, "one of both"),
        (Pacs, {"dimse": DIMSE, "dicomweb": {"url": "https://h"}}, "one of both"),
        (Pacs, {"dimse": DIMSE, "hours": "19-6"}, "HH:MM"),
        (Pacs, {"dimse": DIMSE, "hours": "25:00-06:00"}, "time of day"),
        (Pacs, {"dimse": DIMSE, "hours": "06:00-06:00"}, "empty"),
        (Pacs, {"dimse": DIMSE, "connections": 9}, "less than or equal to 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(model: type, values: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        model.model_validate(values)


def test_credentials_come_from_a_private_file_or_the_environment_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def header(**values: object) -> str | None:
        service = DicomWeb.model_validate({"url": "https://h", **values})
        return web_access(Pacs(dicomweb=service), service).authorization

    path = tmp_path / "credentials"
    path.write_text("me:w0rd\n")
    path.chmod(0o600)
    assert header(authentication="basic", credentials_file=str(path)) == "Basic bWU6dzByZA=="
    monkeypatch.setenv("PACS_TOKEN", "t0ken")
    assert header(authentication="bearer", credentials_variable="PACS_TOKEN") == "Bearer t0ken"
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        header(authentication="basic", credentials_file=str(path))
    path.chmod(0o600)
    for text in ("w0rd", "a:w0rd\nb:w0rd", "a:w0rdé"):
        path.write_text(text)
        with pytest.raises(ConfigurationError) as told:
            header(authentication="basic", credentials_file=str(path))
        assert "w0rd" not in str(told.value)


# The record


def test_the_record_survives_a_line_cut_off_and_the_last_line_of_a_study_counts(tmp_path: Path) -> None:
    record = FetchRecord(tmp_path)
    record.add(Line(accession="A", outcome="found", number=2))
    record.add(Line(accession="A", study="1", outcome="time-out"))
    assert record.of_accession("A") is None, "one of two studies is not known yet"
    record.add(
        Line(accession="A", study="1", outcome="complete", number=3),
        Line(accession="A", study="2", outcome="complete", number=1),
    )
    assert record.path.stat().st_mode & 0o777 == 0o600
    with record.path.open("ab") as file:
        file.write(b"A,2,,time-o")
    again = FetchRecord(tmp_path)
    line = again.of_study("2")
    assert line is not None
    assert (line.outcome, line.number) == ("complete", 1)
    assert sorted(line.study for line in again.of_accession("A") or []) == ["1", "2"]
    assert len(record.path.read_text().splitlines()) == 4, "written anew, without what no longer counts"


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_the_record_can_be_read_wherever_it_was_cut(tmp_path: Path, cut: int) -> None:
    record = FetchRecord(tmp_path)
    for number in range(4):
        record.add(Line(accession=f"A\n{number}", study=f"1.{number}", outcome="complete", number=number))
    whole = record.path.read_bytes()
    record.path.write_bytes(whole[:cut])
    lines = [FetchRecord(tmp_path).of_study(f"1.{number}") for number in range(4)]
    there = [line.number for line in lines if line is not None]
    assert there == list(range(len(there)))


# A PACS that fails


@dataclass
class FakePacs:
    """Studies as files; each failure is raised once for each time it is listed."""

    studies: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[str, list[NotFetched]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sends: Callable[[str, Path], bytes] = lambda study, path: path.read_bytes()
    connections: int = 0

    def connect(self) -> "FakeConnection":
        self.connections += 1
        return FakeConnection(self)

    def fail(self, step: str) -> None:
        self.asked.append(step)
        if self.failures.get(step):
            raise self.failures[step].pop(0)


class FakeConnection:
    def __init__(self, pacs: FakePacs) -> None:
        self.pacs = pacs

    def studies(self, query: StudyQuery) -> list[FoundStudy]:
        self.pacs.fail(f"find {query.accession or query.study or query.day}")
        return [
            FoundStudy(study=study, accession=f"A{study}", patient=f"P{study}", day="20240101")
            for study in self.pacs.studies
        ]

    def series(self, study: str) -> list[FoundSeries]:
        self.pacs.fail(f"series {study}")
        return [FoundSeries(series=f"{study}.1", modality="CR")]

    def instances(self, study: str, series: str) -> list[FoundInstance]:
        return [FoundInstance(instance=uid_of(path)) for path in self.pacs.studies[study]]

    def retrieve(
        self, study: str, series: str, instances: Sequence[FoundInstance], receive: Receive, *, whole: bool
    ) -> None:
        wanted = {one.instance for one in instances}
        for path in self.pacs.studies[study]:
            if uid_of(path) in wanted:
                self.pacs.fail(f"image {study}")
                with receive() as incoming:
                    data = self.pacs.sends(study, path)
                    incoming.write(data[:100])
                    incoming.write(data[100:])
                    incoming.accept()

    def close(self) -> None:
        pass


def uid_of(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


class Site:
    """A fake PACS of three studies with two images each, and a site that fetches from it."""

    def __init__(self, folder: Path) -> None:
        self.images, self.state = folder / "images", folder / "state"
        self.images.mkdir()
        self.state.mkdir(mode=0o700)
        self.pacs = FakePacs()
        for study in ("1", "2", "3"):
            self.pacs.studies[study] = [
                write(
                    folder / f"{study}-{image}.dcm",
                    dataset(gradient(), patient=study, image=image, StudyInstanceUID=study),
                )
                for image in ("1", "2")
            ]

    def fetch(self, *accessions: str, **options: object) -> Tally:
        wanted = options.pop("wanted", None) or Wanted(accessions=accessions or ("A1", "A2", "A3"))
        store = ImageStore(
            self.images,
            SECRET,
            min_free_bytes=int(options.pop("min_free_bytes", 1)),
            max_object_bytes=int(options.pop("max_object_bytes", 1 << 20)),
        )
        clock = Clock()
        return Fetch(
            wanted,
            FetchOptions(**{"connections": 1, "attempts": 2, "backoff_seconds": 0.0, **options}),
            connect=self.pacs.connect,
            store=store,
            record=FetchRecord(self.state),
            pace=Pace(1e9, None, clock=lambda: clock.now, sleep=clock.sleep),
            is_withdrawn=lambda patient: patient == "Pgone",
            now=lambda: datetime(2024, 3, 10, 12, 0),
        ).run()

    def counts(self, *accessions: str, **options: object) -> dict[str, int]:
        return {
            outcome.code: number for outcome, number in self.fetch(*accessions, **options).outcomes.items()
        }

    @property
    def num_files(self) -> int:
        assert not list(self.images.rglob("*.part"))
        return sum(path.is_file() for path in self.images.rglob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_everything_comes_once(site: Site) -> None:
    assert site.counts() == {"complete": 3}
    assert site.num_files == 6
    assert all(path.stat().st_mode & 0o007 == 0 for path in (site.images / "pacs").rglob("*")), (
        "others see nothing"
    )
    before = list(site.pacs.asked)
    tally = site.fetch()
    assert (tally.known, tally.images, exit_code(tally)) == (3, 0, 0)
    assert site.pacs.asked == before, "the PACS is not asked again"
    assert site.counts(again=True) == {"complete": 3}
    assert [step for step in site.pacs.asked[len(before) :] if step.startswith("image")] == []


@pytest.mark.parametrize(
    "outcome", [Outcome.TIMEOUT, Outcome.CONNECTION_LOST, Outcome.PACS_ERROR, Outcome.WRONG_OBJECT]
)
def test_a_failure_in_the_middle_is_tried_again_with_a_new_connection(site: Site, outcome: Outcome) -> None:
    site.pacs.failures = {"image 2": [NotFetched(outcome)]}
    assert site.counts() == {"complete": 3}
    assert site.pacs.connections == 2
    assert site.num_files == 6


def test_a_failure_that_stays_costs_its_study_only_and_the_next_call_tries_it_again(site: Site) -> None:
    site.pacs.failures = {"series 2": [NotFetched(Outcome.TIMEOUT) for _ in range(2)]}
    tally = site.fetch()
    assert tally.outcomes == {Outcome.COMPLETE: 2, Outcome.TIMEOUT: 1}
    assert exit_code(tally) == 3
    assert site.num_files == 4
    tally = site.fetch()
    assert (tally.known, tally.outcomes) == (2, {Outcome.COMPLETE: 1})
    assert site.num_files == 6


def test_whatever_a_library_raises_costs_one_study_and_its_text_is_not_written_down(site: Site) -> None:
    site.pacs.failures = {"series 2": [ValueError("SECRET"), KeyError("SECRET")]}  # type: ignore[list-item]
    assert site.counts() == {"complete": 2, "pacs-error": 1}
    text = (site.state / "fetch.csv").read_text()
    assert "(KeyError)" in text
    assert "SECRET" not in text


def test_an_unknown_number_and_an_empty_study_are_listed(site: Site) -> None:
    site.pacs.studies["2"] = []
    assert site.counts("A1", "A2", "nobody", "A3") == {
        "complete": 2,
        "empty-study": 1,
        "unknown-accession": 1,
    }
    text = (site.state / "fetch.csv").read_text()
    assert "nobody,,,unknown-accession" in text
    assert "A2,2,,empty-study" in text


def test_fewer_images_than_listed_is_incomplete_and_what_came_is_kept(site: Site) -> None:
    lost = site.pacs.studies["3"][1]
    site.pacs.sends = lambda study, path: path.read_bytes()
    connection = FakeConnection.retrieve

    class Forgetful(FakeConnection):
        def retrieve(self, study, series, instances, receive, *, whole) -> None:  # type: ignore[no-untyped-def]
            some = [one for one in instances if one.instance != uid_of(lost)]
            connection(self, study, series, some, receive, whole=False)

    site.pacs.connect = lambda: Forgetful(site.pacs)  # type: ignore[method-assign]
    assert site.counts() == {"complete": 2, "incomplete": 1}
    assert "(1 of 2 images lack)" in (site.state / "fetch.csv").read_text()
    assert site.num_files == 5


def test_what_is_not_what_was_asked_for_is_not_put_in_place(site: Site) -> None:
    other = site.pacs.studies["1"][0].read_bytes()
    wrong: dict[str, bytes] = {"2": other, "3": b"<html>login</html>"}
    site.pacs.sends = lambda study, path: wrong.get(study, path.read_bytes())
    assert site.counts() == {"complete": 1, "wrong-object": 2}
    assert site.num_files == 2
    text = (site.state / "fetch.csv").read_text()
    assert "(of another study)" in text
    assert "(not-dicom)" in text


def test_an_image_beyond_the_limit_is_refused(site: Site) -> None:
    site.pacs.sends = lambda study, path: path.read_bytes() + (b"\0" * 5000 if study == "2" else b"")
    assert site.counts(max_object_bytes=4000) == {"complete": 2, "too-large": 1}
    assert site.num_files == 4


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.REFUSED, 4), (Outcome.UNREACHABLE, 4)])
def test_a_pacs_that_lets_nobody_in_ends_the_call_and_every_study_is_listed(
    site: Site, outcome: Outcome, code: int
) -> None:
    site.pacs.failures = {"find A2": [NotFetched(outcome, "(told)") for _ in range(2)]}
    tally = site.fetch()
    assert tally.outcomes == {Outcome.COMPLETE: 1, outcome: 2}
    assert exit_code(tally) == code
    assert (site.state / "fetch.csv").read_text().count(f",{outcome.code},0,(told)") == 2
    tally = site.fetch()
    assert (tally.known, tally.outcomes) == (1, {Outcome.COMPLETE: 2})


def test_a_full_disk_and_a_missing_folder_are_told_before_anything_is_asked(site: Site) -> None:
    tally = site.fetch(min_free_bytes=1 << 60)
    assert (tally.outcomes, exit_code(tally)) == ({Outcome.DISK_FULL: 3}, 1)
    site.images.joinpath("pacs").rmdir()
    site.images.rmdir()
    tally = site.fetch()
    assert (tally.outcomes, exit_code(tally)) == ({Outcome.NOT_WRITABLE: 3}, 1)
    assert site.pacs.asked == []


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_asked(site: Site) -> None:
    """For root a disk that is mounted read-only; for others the folder's mode."""
    if os.geteuid() != 0:
        site.images.chmod(0o500)
        assert site.counts() == {"not-writable": 3}
    else:
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(site.images)]
        mounted = subprocess.run(mount, capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            assert site.counts() == {"not-writable": 3}
        finally:
            subprocess.run(["umount", str(site.images)], check=True)
    assert site.pacs.asked == []
    assert (site.state / "fetch.csv").read_text().count(",not-writable,") == 3


def test_patients_who_withdrew_are_not_fetched(site: Site) -> None:
    site.pacs.studies["gone"] = site.pacs.studies.pop("2")
    assert site.counts("A1", "Agone", "A3") == {"complete": 2, "withdrawn": 1}
    assert not [step for step in site.pacs.asked if step in ("series gone", "image gone")]


def test_outside_the_hours_nothing_is_asked(site: Site) -> None:
    tally = site.fetch(hours=Hours.of("19:00-06:00"), wait=False)
    assert (tally.outcomes, exit_code(tally)) == ({Outcome.OUTSIDE_HOURS: 3}, 5)
    assert site.pacs.asked == []
    assert site.counts(hours=Hours.of("11:00-13:00"), wait=False) == {"complete": 3}


def test_days_outside_and_other_modalities_of_a_list_are_not_wanted(site: Site) -> None:
    wanted = Wanted(accessions=("A1",), first=date(2025, 1, 1), last=date(2025, 1, 2))
    assert site.counts(wanted=wanted) == {"not-wanted": 1}
    assert site.counts(wanted=Wanted(accessions=("A1",), modalities=("CT",))) == {"not-wanted": 1}
    assert site.counts(wanted=Wanted(accessions=("A1",), modalities=("CR",))) == {"complete": 1}
    assert site.counts("A1") == {"complete": 1}, "asked for all modalities, it is asked again"
    assert site.fetch("A1").known == 1


def test_several_connections_bring_each_study_once(site: Site) -> None:
    wanted = Wanted(accessions=("A1", "A2", "A3"), studies=("1", "2", "3"))
    before = set(threading.enumerate())
    tally = site.fetch(wanted=wanted, connections=4)
    assert (tally.outcomes, tally.images) == ({Outcome.COMPLETE: 3}, 6)
    assert site.num_files == 6
    assert set(threading.enumerate()) == before


def test_what_was_left_half_written_is_taken_away(site: Site) -> None:
    site.fetch("A1")
    folder = next(path for path in (site.images / "pacs").iterdir())
    (folder / ".0123456789abcdef.part").write_bytes(b"half")
    assert site.counts("A2") == {"complete": 1}
    assert site.num_files == 4


# DICOMweb answers


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> WebConnection:
    service = DicomWeb(url="http://127.0.0.1:9/root")
    connection = WebConnection(web_access(Pacs(dicomweb=service), service))
    connection._client = httpx.Client(transport=httpx.MockTransport(handler))
    return connection


def entry(number: int) -> dict[str, object]:
    return {"0020000D": {"vr": "UI", "Value": [f"1.{number}"]}, "00080050": {"vr": "SH", "Value": ["A"]}}


def test_an_accession_number_is_escaped_and_pages_are_followed_to_their_end() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        offset = int(request.url.params["offset"])
        some = [entry(number) for number in range(offset, min(offset + 3, 7))]
        headers = {"Warning": '299 pacs "there are more"'} if offset + 3 < 7 else {}
        return httpx.Response(200, headers=headers, content=json.dumps(some))

    found = answering(answer).studies(StudyQuery(accession="A&B=/ü"))
    assert [study.study for study in found] == [f"1.{number}" for number in range(7)]
    assert len(asked) == 3
    assert "AccessionNumber=A%26B%3D%2F%C3%BC&" in asked[0]


def test_a_service_that_ignores_paging_does_not_go_round_for_ever() -> None:
    full = json.dumps([entry(number) for number in range(200)])
    found = answering(lambda request: httpx.Response(200, content=full)).studies(StudyQuery(accession="A"))
    assert len(found) == 200


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (httpx.Response(401), Outcome.REFUSED),
        (httpx.Response(403), Outcome.REFUSED),
        (httpx.Response(500), Outcome.PACS_ERROR),
        (httpx.Response(302, headers={"Location": "http://127.0.0.1/login"}), Outcome.PACS_ERROR),
        (httpx.Response(504), Outcome.TIMEOUT),
        (httpx.Response(200, content=b"<html>"), Outcome.PACS_ERROR),
        (httpx.Response(200, content=b"{}"), Outcome.PACS_ERROR),
        (httpx.Response(200, content=b"[" * 100_000), Outcome.PACS_ERROR),
        (httpx.Response(200, content=b'[{"0020000D": {"Value": ["1/../2"]}}]'), Outcome.PACS_ERROR),
        (httpx.Response(200, content=b'[{"0020000D": 7}]'), Outcome.PACS_ERROR),
    ],
)
def test_answers_that_are_none_are_told_and_hold_nothing_of_the_question(
    response: httpx.Response, outcome: Outcome
) -> None:
    with pytest.raises(NotFetched) as told:
        answering(lambda request: response).studies(StudyQuery(accession="SECRET"))
    assert told.value.outcome is outcome
    assert "SECRET" not in str(told.value)


def test_no_study_is_an_answer() -> None:
    assert answering(lambda request: httpx.Response(204)).studies(StudyQuery(accession="A")) == []


@pytest.mark.slow
def test_a_download_that_ends_early_is_a_lost_connection_and_leaves_no_file(tmp_path: Path) -> None:
    site = Site(tmp_path)
    path = site.pacs.studies["1"][0]
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes()
    kinds = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    store = ImageStore(site.images, SECRET, min_free_bytes=1, max_object_bytes=1 << 20)
    store.prepare()
    folder = store.study("1", {uid_of(path)})
    for content, outcome in (
        (body, Outcome.CONNECTION_LOST),
        (body.replace(b"application/dicom", b"text/html"), Outcome.WRONG_OBJECT),
        (body.replace(b"DICM", b"JUNK") + b"\r\n--x--", Outcome.WRONG_OBJECT),
    ):
        connection = answering(
            lambda request, content=content: httpx.Response(200, headers=kinds, content=content)
        )
        with pytest.raises(NotFetched) as told:
            connection.retrieve(
                "1", "1.1", [FoundInstance(instance=uid_of(path))], folder.incoming, whole=True
            )
        assert told.value.outcome is outcome
        assert site.num_files == 0
    whole = body + b"\r\n--x--"
    connection = answering(lambda request: httpx.Response(200, headers=kinds, content=whole))
    connection.retrieve("1", "1.1", [FoundInstance(instance=uid_of(path))], folder.incoming, whole=True)
    assert site.num_files == folder.num_new == 1
    assert next(site.images.rglob("*.dcm")).read_bytes() == path.read_bytes()
