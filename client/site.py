"""One hospital's site: it decides on each request by itself and answers with a vector or a refusal."""

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.budget import BudgetExceeded, check_lifetime, check_runs, open_in_ledger
from client.device import prepare_torch
from client.dicom_index import Index
from client.ingestion import DataRefused, Ingested, check_policy, ingest
from client.labels import LabelsError
from client.local_round import OpenRun, local_round, local_test
from client.membership import read_membership
from client.patients import PatientSet
from client.policy import PolicyRefused, check_study
from client.roles import Role
from client.secret import SiteSecret
from client.secure_session import NoBatch, SecureSession
from client.site_file import SiteFile
from client.site_result import SiteResult, SiteRound
from client.training import Machine
from privacy.clipping import check_supported
from privacy.ledger import AlreadySpentError, Ledger
from privacy.randomness import CryptographicGenerator
from privacy.secure_aggregation.context import Federation
from privacy.secure_aggregation.refusals import RosterDiffers, SecureAggregationError
from privacy.secure_aggregation.site_setup import Membership
from shared_models.architectures import build_model
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import FloatVector, Manifest
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    MessageError,
    Open,
    Refusal,
    Reply,
    Request,
    Share,
    Train,
    Unmask,
    decode_request,
    encode,
)
from shared_models.roster import Roster
from shared_models.study import Study, read_study
from shared_models.tasks import task_of

log = logging.getLogger("collegium.site")

SETUP, ROUND = ("advertise", "share", "escrow"), ("train", "evaluate", "confirm", "unmask")
ENDED_BY = {"advertise": (*SETUP, *ROUND), "train": ROUND, "evaluate": ROUND}
"""Stored replies that are over once a request of this kind was answered."""


class RequestRefused(Exception):
    """The site does not do what it was asked. ``reason`` leaves the site, the message stays in its log."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Site:
    """One hospital's data, state and decisions behind `handle`.

    Args:
        site_file: the hospital's own configuration.
        study: the study that the hospital agreed to; requests for any other are refused.
        identity: the site's private identity key.
        roster: the sites of the consortium, as this hospital pinned it.
    """

    def __init__(
        self, site_file: SiteFile, study: Study, *, identity: Ed25519PrivateKey, roster: Roster
    ) -> None:
        site_file.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        prepare_torch(site_file.compute)
        self._file = site_file
        self._study = study
        self._identity = identity
        self._roster = roster
        self._secret = SiteSecret.load_or_create(site_file.state)
        self._ledger = Ledger(site_file.state / "ledger.sqlite")
        self._machine = Machine.of(site_file.compute)
        self._ingested: Ingested | None = None
        self._run: OpenRun | None = None
        self._session: SecureSession | None = None
        self._replies: dict[str, tuple[bytes, bytes]] = {}
        self._result: SiteResult | None = None
        self._doing = "waiting"

    def status(self) -> dict[str, str]:
        """What the local command line shows."""
        run = self._run  # once: a request in another thread may end it meanwhile
        run_id = run.run_id if run else "none"
        return {"site": self._file.name, "study": self._study.name, "run": run_id, "doing": self._doing}

    def handle(self, message: bytes) -> bytes:
        """Return the encoded reply to an encoded request. Never raises: a refusal is a reply.

        Steps of secure aggregation run once: the identical request gets the identical reply, as long as its batch
        and round last, and any other request is refused.
        """
        try:
            request, payload = decode_request(message)
        except MessageError as error:
            log.warning("a message was refused: %s", error)
            return encode(Refusal(run_id="unknown", reason="failed"))
        digest = hashlib.sha256(message).digest()
        stored = self._replies.get(request.kind)
        if stored is not None and stored[0] == digest:
            return stored[1]
        reply, answered = self._answer(request, payload, digest)
        if answered and request.kind not in ("open", "close"):
            for ended in ENDED_BY.get(request.kind, ()):
                self._replies.pop(ended, None)
            self._replies[request.kind] = digest, reply
        return reply

    def _answer(self, request: Request, payload: bytes, digest: bytes) -> tuple[bytes, bool]:
        """Return the encoded reply, and whether it is an answer."""
        self._doing = request.kind
        try:
            header, body = self._decide(request, payload, digest)
        except RequestRefused as refusal:
            log.warning(
                "%s of run %s refused (%s): %s", request.kind, request.run_id, refusal.reason, refusal
            )
            refused = Refusal.model_validate({"run_id": request.run_id, "reason": refusal.reason})
            return encode(refused), False
        except Exception:  # the reply always goes; what went wrong stays at the site
            log.exception("%s of run %s failed", request.kind, request.run_id)
            self._forget_run()  # the server asks to open the run again, which builds everything anew
            return encode(Refusal(run_id=request.run_id, reason="failed")), False
        finally:
            self._doing = "waiting"
        return encode(header, body), True

    def _decide(self, request: Request, payload: bytes, digest: bytes) -> tuple[Reply, bytes]:
        if request.study_hash != self._study.hash:
            raise RequestRefused(
                "study-not-approved",
                f"the server asks for study {request.study_hash[:12]}, this site agreed to {self._study.hash[:12]} "
                f"({self._file.study}); ask the coordinator for the study file and review it",
            )
        if isinstance(request, Open):
            self._open(request)
            return _answer_to(request), b""
        run, session = self._opened(request)
        try:
            body = self._step(run, session, request, payload, digest)
        except NoBatch as error:
            raise RequestRefused("no-batch", str(error)) from error
        except RosterDiffers as error:
            raise RequestRefused("roster-differs", str(error)) from error
        except SecureAggregationError as error:
            raise RequestRefused("protocol", f"{type(error).__name__}: {error}") from error
        except AlreadySpentError as error:
            session.drop_round()
            raise RequestRefused("round-already-attempted", str(error)) from error
        return _answer_to(request), body

    def _step(  # noqa: PLR0911 - one for each kind
        self, run: OpenRun, session: SecureSession, request: Request, payload: bytes, digest: bytes
    ) -> bytes:
        """Do what an opened run is asked for; return the answer's payload."""
        match request:
            case Advertise():
                return session.advertise(payload)
            case Share():
                return session.share(payload)
            case Escrow():
                return session.escrow(payload)
            case Train():
                return self._train(run, session, request, payload, digest)
            case Evaluate():
                return self._evaluate(run, session, request, payload, digest)
            case Confirm():
                return session.confirm(request.round, payload)
            case Unmask():
                return session.unmask(request.round, payload)
            case Close():
                return self._close(run)
            case Open():
                raise RuntimeError("opening is not a step of an opened run")

    def _opened(self, request: Request) -> tuple[OpenRun, SecureSession]:
        if self._run is None or self._session is None or self._run.run_id != request.run_id:
            raise RequestRefused("not-open", "the run is not open here (the agent may have been restarted)")
        return self._run, self._session

    def _forget_run(self) -> None:
        """Leave the run as after a restart: nothing of its secure aggregation stays in memory."""
        if self._session is not None:
            self._session.erase()
        self._run, self._session = None, None
        self._replies.clear()

    # Opening: every refusal that concerns data, policy or budget happens here, before anything is trained.

    def _open(self, request: Open) -> None:
        if self._run is not None and self._run.run_id == request.run_id:
            return
        model = build_model(self._study)
        if Manifest.of(model).hash != request.manifest_hash:
            raise RequestRefused("model-differs", "the server's model has other weights; versions differ")
        if self._study.privacy.mode != "none":
            check_supported(model)
        try:
            check_study(self._file, self._study)
            check_runs(self._ledger, self._file.policy, self._study, run_id=request.run_id)
            check_lifetime(self._ledger, self._file.policy, self._study, run_id=request.run_id)
        except PolicyRefused as error:
            raise RequestRefused("policy", str(error)) from error
        except BudgetExceeded as error:
            raise RequestRefused("budget", str(error)) from error

        begun = time.perf_counter()
        index, patients = self._data()
        seconds = time.perf_counter() - begun

        entry = open_in_ledger(
            self._ledger, self._study, run_id=request.run_id, exact_count=len(patients[Role.TRAIN])
        )
        self._forget_run()
        self._session = self._session_of(request.run_id)
        self._run = OpenRun(
            run_id=request.run_id,
            study=self._study,
            task=task_of(self._study),
            model=model.to(self._machine.device),
            patients=patients,
            num_patients=entry.noised_count,
            cost=self._ledger.planned_cost(request.run_id, num_steps=self._study.num_steps),
            evaluation_deviation=entry.evaluation_deviation,
            machine=self._machine,
        )
        self._result = self._result_of(request.run_id, index, patients, seconds)
        self._write_result()
        log.info("run %s opened with %d training patients", request.run_id, len(patients[Role.TRAIN]))

    def _data(self) -> tuple[Index, Mapping[Role, PatientSet]]:
        """The index and the patients, read once; raises RequestRefused where they are not fit for the study."""
        try:
            if self._ingested is None:
                self._ingested = ingest(self._file, self._study, self._secret)
            index, patients = self._ingested.index, self._ingested.patients
            check_policy(index, self._file.policy)
        except (DataRefused, LabelsError) as error:
            self._ingested = None
            raise RequestRefused("data", str(error)) from error
        needed = self._study.patients.min_training
        if len(patients[Role.TRAIN]) < needed:
            self._ingested = None
            raise RequestRefused(
                "data",
                f"{index.num_patients(Role.TRAIN)} training patients, the study asks for at least {needed}",
            )
        return index, patients

    def _session_of(self, run_id: str) -> SecureSession:
        federation = Federation.of(
            study_hash=self._study.hash,
            run_id=run_id,
            roster=self._roster,
            constants=self._study.aggregation,
        )
        membership = Membership(
            federation=federation,
            name=self._file.name,
            identity=self._identity,
            floor=self._file.policy.min_cohort,
        )
        begun = [entry.round for entry in self._ledger.rounds(run_id)]
        return SecureSession(membership, last_round=max(begun, default=0))

    # The run itself.

    def _train(
        self, run: OpenRun, session: SecureSession, request: Train, payload: bytes, digest: bytes
    ) -> bytes:
        number = request.round
        if number > self._study.training.num_rounds:
            raise RequestRefused(
                "budget", f"round {number} is beyond the study's {self._study.training.num_rounds} rounds"
            )
        weights = _weights(payload, run)
        layout = training_layout(self._study, number, num_weights=len(weights))
        session.begin(number, request.round_set, request_hash=digest, length=layout.length)
        done = local_round(
            run,
            number,
            weights,
            ledger=self._ledger,
            generator=self._generator(number),
            mask=session.mask,
        )
        if self._result is not None:
            epsilon = self._epsilon(run)
            self._result.rounds.append(SiteRound(round=number, epsilon=epsilon, seconds=done.seconds))
            self._result.epsilon = epsilon
            if done.validation is not None:
                self._result.validation[number - 1] = done.validation
            self._write_result()
        return done.message

    def _evaluate(
        self, run: OpenRun, session: SecureSession, request: Evaluate, payload: bytes, digest: bytes
    ) -> bytes:
        """Final test, and the validation of the last round where the study names it."""
        number, layout = self._study.test_round, final_layout(self._study)
        if request.round != number:
            raise RequestRefused("budget", f"the final test is round {number}, not {request.round}")
        weights = _weights(payload, run)
        session.begin(number, request.round_set, request_hash=digest, length=layout.length)
        done = local_test(
            run, weights, ledger=self._ledger, generator=self._generator(number), mask=session.mask
        )
        if self._result is not None:
            if done.validation is not None:
                self._result.validation[self._study.training.num_rounds] = done.validation
            self._result.test = done.tested.metrics
            self._result.test_statistics = tuple(done.tested.exact.tolist())
            self._write_result()
        return done.message

    def _close(self, run: OpenRun) -> bytes:
        self._write_result()
        self._forget_run()
        self._result = None
        log.info("run %s closed", run.run_id)
        return b""

    def _generator(self, number: int) -> CryptographicGenerator:
        """A fresh one each round; repeatable only in simulations without privacy."""
        if self._file.testing is None:
            return CryptographicGenerator.from_operating_system()
        text = f"{self._file.testing.sampling_seed}|{self._file.name}|{self._study.hash}|{number}"
        return CryptographicGenerator(hashlib.sha256(text.encode()).digest())

    def _epsilon(self, run: OpenRun) -> float | None:
        cost, delta = self._ledger.training_cost(run.run_id), self._study.privacy.delta
        return None if cost is None or delta is None else cost.epsilon(delta)

    def _result_of(
        self, run_id: str, index: Index, patients: Mapping[Role, PatientSet], seconds: float
    ) -> SiteResult:
        """The run's result so far, or a new one: opening a run again loses nothing."""
        earlier = SiteResult.read(result_path(self._file.state, run_id))
        if earlier is not None and earlier.study_hash == self._study.hash:
            return earlier
        return SiteResult(
            site=self._file.name,
            run_id=run_id,
            study_hash=self._study.hash,
            privacy=self._study.privacy.mode,
            epsilon=None,
            patients_found=index.num_patients_found,
            patients_used=sum(len(part) for part in patients.values()),
            patients_by_role={role.value: len(part) for role, part in patients.items()},
            images_used=sum(len(part.images) for part in patients.values()),
            files_found=index.num_files,
            left_out=dict(index.left_out_counts),
            prepare_seconds=seconds,
        )

    def _write_result(self) -> None:
        """A local report never costs a release that was charged: a full disk is logged, and the run goes on."""
        if self._result is not None:
            try:
                self._result.write(result_path(self._file.state, self._result.run_id))
            except OSError:
                log.exception("the site's own result cannot be written")


def result_path(state: Path, run_id: str) -> Path:
    """Where a site keeps its own result of a run."""
    return state / "runs" / run_id / "site_result.json"


def _answer_to(request: Request) -> Answer:
    number = request.round if isinstance(request, Train | Evaluate | Confirm | Unmask) else 0
    return Answer(to=request.kind, run_id=request.run_id, round=number)


def _weights(payload: bytes, run: OpenRun) -> FloatVector:
    expected = 4 * Manifest.of(run.model).num_weights
    if len(payload) != expected:
        raise RequestRefused("failed", f"the model has {len(payload)} bytes, the study's has {expected}")
    weights = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(weights).all():
        raise RequestRefused("failed", "the global model holds values that are not finite")
    return weights


def open_site(site_file: SiteFile) -> Site:
    """Return the site of ``site.toml``.

    Raises:
        ConfigurationError: its study file or roster is wrong.
        MembershipError: the site is not in the roster, or its keys are not there.
    """
    identity, roster = read_membership(site_file)
    return Site(site_file, read_study(site_file.study), identity=identity, roster=roster)
