"""Whole runs with real sites: sums are those of plain integers, and all that the server saw says nothing more.

The sites are `client.site.Site` in this process; the server is the real round loop. What the sites would have sent
without masks is computed again by twins of them, with the same patients and the same generators.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from journals import journal_in
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import stats
from studies import make_study

from client.local_round import final_vector, training_vector
from client.membership import read_membership
from client.secure_session import SecureSession
from client.site import Site, result_path
from client.site_file import read_site
from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import sign
from privacy.secure_aggregation.messages import MaskedVector
from privacy.secure_aggregation.site_round import SENTINEL, Begun, Uploaded
from server.aggregation import GlobalModel
from server.checkpoint import read_checkpoint
from server.exchange import SiteReply
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.architectures import build_model
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import Manifest, flatten, unflatten
from shared_models.messages import (
    Answer,
    Evaluate,
    Open,
    Request,
    Train,
    decode_reply,
    decode_request,
    encode,
)
from shared_models.study import Study
from shared_models.vector import IntVector
from simulations.preparation.hospitals import prepare
from simulations.preparation.sources import PhantomSource
from simulations.work_folder import enrol, write_site

RUN, SEED = "run-1", 3
STUDY = make_study(
    {
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "min_training = 1": "min_training = 5",
        'weights = "equal"': 'weights = "patients"\nmax_patients = 100\nserver_momentum = 0.5',
        "num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 3",
        "learning_rate = 0.1": "learning_rate = 0.5",
    }
)
EVERYBODY = ("hospital-1", "hospital-2", "hospital-3")
FALSE_ALARM = 1e-12
"""Of one check; a few hundred of them stay far below one in a million, also where a tail is only near its formula."""
TAIL = float(stats.norm.isf(FALSE_ALARM / 2))


class OpenSession(SecureSession):
    """Leaves the masks off: what the tests below have to find."""

    def mask(self, vector: IntVector) -> bytes:
        begun = self._round
        assert isinstance(begun, Begun)
        bare = np.append(vector, np.uint32(SENTINEL)).astype("<u4")
        vector_hash = statements.vector_hash(bare.tobytes())
        seat = begun.seat
        signature = sign(
            seat.membership.identity, statements.VECTOR, seat.position, begun.round_ctx, vector_hash
        )
        begun.secrets.erase_seeds()
        self._round = Uploaded(begun=begun, vector_hash=vector_hash)
        return MaskedVector(signature=signature, vector=bare).to_bytes()


class OpenSite(Site):
    """A site without masks."""

    def _session_of(self, study: Study, run_id: str) -> SecureSession:
        session = super()._session_of(study, run_id)
        return OpenSession(session._membership, last_round=0)


@dataclass
class Seen:
    """An exchange of sites in this process that keeps everything the server gets, and what lies on its disk."""

    study_sites: Mapping[str, Site]
    folder: Path
    absent: Callable[[str, Request], bool] = lambda site, request: False
    replies: list[tuple[str, Request, bytes]] = field(default_factory=list)
    payloads: dict[int, bytes] = field(default_factory=dict)
    files: set[bytes] = field(default_factory=set)

    def known_sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.study_sites))

    def sites(self) -> tuple[str, ...]:
        return self.known_sites()

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for site, message in requests.items():
            self.look()
            request, payload = decode_request(message)
            if self.absent(site, request):
                continue
            if isinstance(request, Train | Evaluate):
                self.payloads[request.round] = payload
            reply = self.study_sites[site].handle(message)
            self.replies.append((site, request, reply))
            yield SiteReply(site=site, message=reply)

    def look(self) -> None:
        self.files |= {path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def everything(self) -> bytes:
        """All bytes that the server got or kept."""
        self.look()
        return b"|".join([reply for _, _, reply in self.replies] + sorted(self.files))

    def vectors(self) -> dict[tuple[str, int], NDArray[np.uint32]]:
        """What each site sent as its vector, by site and round, without the sentinel."""
        found = {}
        for site, request, reply in self.replies:
            header, payload = decode_reply(reply)
            if isinstance(request, Train | Evaluate) and isinstance(header, Answer):
                message = MaskedVector.from_bytes(payload, length=(len(payload) - 64) // 4 - 1)
                found[site, request.round] = message.vector[:-1]
        return found


@dataclass(frozen=True, kw_only=True)
class Consortium:
    """The files of three hospitals and their roster."""

    work: Path
    sites: tuple[Path, ...]

    def start(self, name: str, kind: type[Site] = Site) -> dict[str, Site]:
        """The sites as on their first day, with state folders of this name."""
        started = {}
        for path in self.sites:
            file = read_site(path)
            state = path.parent / name
            state.mkdir()
            (state / "site.secret").write_bytes((file.state / "site.secret").read_bytes())
            (state / "site.secret").chmod(0o600)
            identity, roster = read_membership(file)
            started[file.name] = kind(
                file.model_copy(update={"state": state}),
                identity=identity,
                roster=roster,
                journal=journal_in(state, identity, site=file.name),
            )
            started[file.name]._approvals.decide(STUDY, "approved", by="somebody")
        return started

    def run(self, seen: Seen) -> Path:
        """Run the study to its end; return the server's folder of the run."""
        checkpoint = checkpoint_path(seen.folder, RUN)
        roster = read_membership(read_site(self.sites[0]))[1]
        run_study(
            RunContext(
                study=STUDY,
                run_id=RUN,
                exchange=seen,
                federation=federation_of(STUDY, RUN, roster),
                checkpoint=checkpoint,
                patience_seconds=0.0,
                start_seconds=0.0,
            ),
            engine="local",
        )
        return checkpoint.parent


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    work = tmp_path_factory.mktemp("consortium")
    source = PhantomSource(num_hospitals=3, patients_per_hospital=(40, 30, 30), image_size=48)
    hospitals = prepare(source, work / "hospitals", SEED)
    paths = tuple(
        write_site(work / "sites" / hospital.name, hospital, STUDY, seed=SEED) for hospital in hospitals
    )
    enrol(work / "server", paths, STUDY)
    return Consortium(work=work, sites=paths)


class Twins:
    """The same sites once more, who tell their plain vectors to the test."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        manifest = Manifest.of(build_model(STUDY)).hash
        for site in sites.values():
            roster = site._roster.hash.hex()
            request = encode(
                Open(run_id=RUN, study_hash=STUDY.hash, manifest_hash=manifest, roster_hash=roster)
            )
            assert isinstance(decode_reply(site.handle(request))[0], Answer)

    def vector(self, name: str, number: int, weights: NDArray[np.float32]) -> IntVector:
        site = self.sites[name]
        run = site._run
        assert run is not None
        unflatten(weights, run.model)
        generator = site._generator(run, number)
        if number == STUDY.test_round:
            return final_vector(run, generator=generator).vector
        return training_vector(run, number, weights, generator=generator).vector


def plain_sum(vectors: list[IntVector]) -> IntVector:
    """Of signed integers, no modulus; then as the layout reads it."""
    total = np.sum([vector.view(np.int32).astype(np.int64) for vector in vectors], axis=0)
    assert np.abs(total).max() < 2**31
    return total.astype(np.int32).view(np.uint32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(None, id="all there"),
        pytest.param(2, id="one missing in round 2"),
        pytest.param(4, id="one untested", marks=pytest.mark.thorough),
    ],
)
def test_a_masked_run_ends_with_the_very_weights_and_figures_of_plain_integer_sums(
    tmp_path, consortium, missing: int | None
) -> None:
    def absent(site: str, request: Request) -> bool:
        return site == "hospital-2" and isinstance(request, Train | Evaluate) and request.round == missing

    seen = Seen(consortium.start(f"masked-{missing}"), tmp_path, absent=absent)
    folder = consortium.run(seen)
    progress, _ = read_checkpoint(folder / "checkpoint.safetensors", study_hash=STUDY.hash)
    assert [record.burned for record in progress.rounds] == [None] * 3

    twins = Twins(consortium.start(f"plain-{missing}"))
    model, validation = GlobalModel.begin(flatten(build_model(STUDY))), {}
    for number in range(1, STUDY.training.num_rounds + 1):
        names = [name for name in EVERYBODY if (name, number) != ("hospital-2", missing)]
        total = plain_sum([twins.vector(name, number, model.weights) for name in names])
        layout = training_layout(STUDY, number, num_weights=len(model.weights))
        mean, _, validation[number - 1] = layout.decode_sum(total)
        model = model.moved(mean, momentum=STUDY.aggregation.server_momentum, ema_decay=0.0)
    names = [name for name in EVERYBODY if missing != STUDY.test_round or name != "hospital-2"]
    total = plain_sum([twins.vector(name, STUDY.test_round, model.weights) for name in names])
    _, _, statistics = final_layout(STUDY).decode_sum(total)

    kept = load_file(folder / "checkpoint.safetensors")
    np.testing.assert_array_equal(kept["weights"].view(np.uint32), model.weights.view(np.uint32))
    velocity = model.moments["velocity"]
    np.testing.assert_array_equal(kept["velocity"].view(np.uint32), velocity.view(np.uint32))
    assert np.abs(model.weights - flatten(build_model(STUDY))).max() > 0.01, "something was learnt"
    size = len(statistics) // 2
    assert progress.rounds[0].validation == tuple(validation[1].tolist())
    assert progress.rounds[1].validation is None
    assert progress.rounds[2].validation == tuple(statistics[:size].tolist())
    assert progress.test == tuple(statistics[size:].tolist())
    assert progress.tested == tuple(names)


# Everything that the server saw.


NUM_BYTES = 32


def windows(content: bytes) -> set[bytes]:
    """Every run of 32 bytes, wherever it begins."""
    return {content[at : at + NUM_BYTES] for at in range(len(content) - NUM_BYTES + 1)}


def stands_in(values: NDArray[np.int32] | NDArray[np.float64], content: set[bytes]) -> bool:
    """Whether 32 bytes of consecutive values (8 entries, or 4 of the wider types) stand anywhere.

    Runs that say nothing (fewer than two entries other than zero) are left out: zeros stand everywhere.
    """
    integers = np.issubdtype(values.dtype, np.integer)
    for dtype in ("<i4", ">i4", "<i8", ">i8") if integers else ("<f4", "<f8"):
        wide = np.dtype(dtype).itemsize
        entries, raw = NUM_BYTES // wide, values.astype(dtype).tobytes()
        telling = np.convolve(values != 0, np.ones(entries), mode="valid") >= 2
        if any(raw[wide * at : wide * at + NUM_BYTES] in content for at in np.flatnonzero(telling)):
            return True
    return False


def as_text(values: NDArray[np.int32]) -> list[bytes]:
    """As JSON writes a list."""
    return [json.dumps(values.tolist(), separators=(mark, ":"))[1:-1].encode() for mark in (",", ", ")]


def is_uniform(vector: NDArray[np.uint32]) -> bool:
    """Bits are balanced, each place by itself and all together, and bytes are evenly spread (chi-square)."""
    raw = np.frombuffer(vector.astype("<u4").tobytes(), dtype=np.uint8)
    bits = np.unpackbits(raw).reshape(len(vector), 32)
    ones = [(int(column.sum()), len(column)) for column in bits.T] + [(int(bits.sum()), bits.size)]
    if any(stats.binomtest(found, of).pvalue < FALSE_ALARM for found, of in ones):
        return False
    if raw.size < 20 * 256:
        return True  # too few for chi-square; the bits have to do
    expected = raw.size / 256
    statistic = float(((np.bincount(raw, minlength=256) - expected) ** 2 / expected).sum())
    return bool(stats.chi2.isf(FALSE_ALARM, 255) > statistic > stats.chi2.ppf(FALSE_ALARM, 255))


def is_correlated(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Pearson's correlation of the signed entries, and of their lowest bytes, against what chance gives."""
    for first, second in (
        (one.view(np.int32), other.view(np.int32)),
        (one & np.uint32(255), other & np.uint32(255)),
    ):
        a, b = first.astype(np.float64), second.astype(np.float64)
        if a.std() and b.std() and abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) > TAIL:
            return True
    return False


def leaks(seen: Seen, twins: Twins) -> set[str]:
    """What can be read of single sites in all that the server saw."""
    found = set()
    vectors = seen.vectors()
    plain = {
        (site, number): twins.vector(site, number, np.frombuffer(seen.payloads[number], dtype="<f4"))
        for site, number in vectors
    }
    everything = seen.everything()
    content, size = windows(everything), len(flatten(build_model(STUDY)))
    for key, masked in vectors.items():
        own = plain[key].view(np.int32)
        if stands_in(own, content):
            found.add("entries of a vector")
        statistics = own
        if key[1] != STUDY.test_round:
            layout = training_layout(STUDY, key[1], num_weights=size)
            update, weight, _ = layout.decode_sum(plain[key])
            statistics = own[size + 1 :]
            if stands_in(update, content):
                found.add("an update")
            if masked[size] == weight:
                found.add("a weight")
        if len(statistics) and any(text in everything for text in as_text(statistics)):
            found.add("statistics as text")
        if len(statistics) and stands_in(statistics, content):
            found.add("statistics")
        if not is_uniform(masked):
            found.add("a vector that is not uniform")
        if is_correlated(masked, plain[key]):
            found.add("a correlation with the plain vector")
        if any(
            is_correlated(masked, other)
            for name, other in vectors.items()
            if name != key and other.shape == masked.shape
        ):
            found.add("a correlation of two vectors")
    return found


@pytest.mark.slow
def test_nothing_of_a_single_site_can_be_read_in_all_that_the_server_saw(tmp_path, consortium) -> None:
    seen = Seen(consortium.start("honest"), tmp_path)
    consortium.run(seen)
    assert len(seen.vectors()) == 3 * (STUDY.training.num_rounds + 1)
    assert leaks(seen, Twins(consortium.start("honest-twins"))) == set()


@pytest.mark.slow
def test_the_same_look_finds_everything_where_the_masks_are_left_off(tmp_path, consortium) -> None:
    seen = Seen(consortium.start("open", OpenSite), tmp_path)
    consortium.run(seen)
    assert leaks(seen, Twins(consortium.start("open-twins"))) == {
        "entries of a vector",
        "a weight",
        "statistics",
        "a vector that is not uniform",
        "a correlation with the plain vector",
        "a correlation of two vectors",
    }
    progress, model = read_checkpoint(checkpoint_path(tmp_path, RUN), study_hash=STUDY.hash)
    assert all("does not count its survivors" in str(record.burned) for record in progress.rounds)
    np.testing.assert_array_equal(model.weights, flatten(build_model(STUDY)))


@pytest.mark.thorough
def test_one_site_without_masks_is_found_among_the_others(tmp_path, consortium) -> None:
    sites = consortium.start("half") | {"hospital-2": consortium.start("half-open", OpenSite)["hospital-2"]}
    seen = Seen(sites, tmp_path)
    consortium.run(seen)
    assert "entries of a vector" in leaks(seen, Twins(consortium.start("half-twins")))


@pytest.mark.parametrize("seed", range(3))
def test_the_look_itself_calls_random_vectors_uniform_and_faint_patterns_not(seed: int) -> None:
    random = np.random.default_rng(seed)
    uniform = random.integers(0, 2**32, 5000, dtype=np.uint64).astype(np.uint32)
    assert is_uniform(uniform)
    assert is_uniform(uniform[:83])
    other = random.integers(0, 2**32, 5000, dtype=np.uint64).astype(np.uint32)
    assert not is_correlated(uniform, other)
    plain = np.rint(random.normal(0, 2**27, 5000)).astype(np.int64).astype(np.uint32)
    assert not is_correlated(uniform + plain, plain), "one mask hides it"
    assert not is_uniform(uniform & np.uint32(0xFFFFFFF7)), "one bit of 32 is always zero"
    assert not is_uniform(
        np.where(np.arange(5000) % 8 == 0, plain, uniform).astype(np.uint32) & ~np.uint32(1)
    )
    assert is_correlated((uniform >> np.uint32(3)) + plain, plain), "a mask of 29 bits does not"


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4", ">i4", "<i8", ">i8"])
def test_the_look_finds_numbers_in_whatever_form_a_server_would_keep_them(dtype: str) -> None:
    random = np.random.default_rng(1)
    if dtype[1] == "i":
        values = random.integers(-(2**20), 2**20, 100).astype(np.int32)
    else:
        values = random.normal(0, 1e-3, 100)
    kept = random.bytes(1001) + values[40:48].astype(dtype).tobytes() + random.bytes(77)
    assert stands_in(values, windows(kept))
    assert not stands_in(values, windows(random.bytes(5000)))
    assert not stands_in(np.zeros_like(values), windows(bytes(5000))), "zeros say nothing"


def test_the_look_finds_statistics_in_a_report() -> None:
    statistics = np.arange(41, dtype=np.int32) % 5
    for separators in ((", ", ": "), (",", ":")):
        kept = json.dumps({"counts": statistics.tolist()}, separators=separators)
        assert any(text in kept.encode() for text in as_text(statistics))


# What the server writes for people.


@pytest.mark.slow
def test_the_servers_result_has_no_metric_or_count_of_a_single_site(tmp_path, consortium) -> None:
    sites = consortium.start("result")
    seen = Seen(sites, tmp_path)
    folder = consortium.run(seen)
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [site["name"] for site in written["sites"]] == list(EVERYBODY)
    for site in written["sites"]:
        told = {key: value for key, value in site.items() if value is not None}
        assert told == {"name": site["name"], "rounds_asked": 3}
    for entry in written["rounds"]:
        assert set(entry) == {"round", "survivors", "burned", "seconds", "metrics"}
        assert set(entry["seconds"]) == {"setup", "exchange", "confirm", "unmask", "aggregate"}
    assert written["baselines"] is None
    assert written["exact_test"] is None

    own = [
        json.loads(result_path(site._file.state, RUN).read_text(encoding="utf-8")) for site in sites.values()
    ]
    counts = [entry["patients_by_role"]["test"] for entry in own]
    assert len(set(counts)) > 1
    assert written["test"]["num_patients"] == sum(counts)
    numbers = {value for value in leaves(written) if isinstance(value, float) and 0 < value < 1}
    for entry in own:
        single = {value for value in leaves([entry["test"], entry["validation"]]) if isinstance(value, float)}
        assert not {value for value in single if 0 < value < 1 and len(repr(value)) > 8} & numbers


def leaves(value: object) -> Iterator[object]:
    """All values in nested lists and tables."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value
