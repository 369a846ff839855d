"""One hospital's site: it decides on each request by itself and answers with a vector or a refusal."""

import hashlib
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.admission import objections
from client.approvals import Approvals
from client.budget import open_in_ledger
from client.device import prepare_torch
from client.dicom_index import Index
from client.features import with_features
from client.ingestion import DataRefused
from client.labels import LabelsError
from client.local_round import OpenRun, local_round, local_test
from client.membership import read_membership
from client.own_receipt import check_own_receipt
from client.roles import Role
from client.secret import SiteSecret
from client.secure_session import NoBatch, SecureSession
from client.site_data import SiteData
from client.site_file import SiteFile
from client.site_journal import Record, check_secret, open_journal
from client.site_result import SiteResult, SiteRound
from client.training import Machine
from client.withdrawal import remember_patients, withdrawn
from privacy.clipping import check_supported
from privacy.journal import Journal, JournalError, JournalOlder
from privacy.ledger import AlreadySpentError, Ledger
from privacy.randomness import CryptographicGenerator
from privacy.secure_aggregation.context import Federation
from privacy.secure_aggregation.refusals import RosterDiffers, SecureAggregationError
from privacy.secure_aggregation.site_setup import Membership
from shared_models.architectures import build_model
from shared_models.initial_weights import WeightsError
from shared_models.layouts import carries_average, final_layout, training_layout
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
from shared_models.study import Study
from shared_models.tasks.registry import task_of

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
        identity: the site's private identity key.
        roster: the sites of the consortium, as this hospital pinned it.
        journal: the site's; it knows which studies somebody at the hospital approved.
    """

    def __init__(
        self, site_file: SiteFile, *, identity: Ed25519PrivateKey, roster: Roster, journal: Journal
    ) -> None:
        prepare_torch(site_file.compute)
        self._file = site_file
        self._identity = identity
        self._roster = roster
        self._secret = SiteSecret.load(site_file.state)
        self._journal = journal
        check_secret(journal, self._secret)
        self._record = Record(journal)
        self._approvals = Approvals(journal, site_file.state)
        self._ledger = Ledger(journal)
        self._machine = Machine.of(site_file.compute)
        self._data = SiteData(site_file, self._secret)
        self._run: OpenRun | None = None
        self._session: SecureSession | None = None
        self._replies: dict[str, tuple[bytes, bytes]] = {}
        self._result: SiteResult | None = None
        self._doing = "waiting"

    def status(self) -> dict[str, str]:
        """What the local command line shows."""
        run = self._run  # once: a request in another thread may end it meanwhile
        about = {"study": run.study.name, "run": run.run_id} if run else {"study": "none", "run": "none"}
        return {"site": self._file.name, **about, "doing": self._doing}

    def handle(self, message: bytes) -> bytes:
        """Return the encoded reply to an encoded request. Never raises: a refusal is a reply.

        Steps of secure aggregation run once: the identical request gets the identical reply, as long as its batch
        and round last, and any other request is refused. Request, decision and reply stand in the journal before the
        reply is returned; where that cannot be, the site does nothing more for the run.
        """
        digest = hashlib.sha256(message).digest()
        decoded, unreadable = _decoded(message)
        request = decoded[0] if decoded else None
        try:
            number = self._record.request(request, digest=digest, num_bytes=len(message))
            if decoded is None:
                return self._refuse(number, None, RequestRefused("failed", unreadable))
            return self._reply(number, *decoded, digest)
        except (JournalError, OSError):
            log.exception("the journal cannot be used; nothing is done for any run until it can")
            self._forget_run()
            return encode(Refusal(run_id=request.run_id if request else "unknown", reason="journal"))

    def _reply(self, number: int, request: Request, payload: bytes, digest: bytes) -> bytes:
        """Decide on request *number* of the journal, record what leaves, and return the encoded reply."""
        try:
            self._check_approved(request)
            stored = self._replies.get(request.kind, (b"", b""))
            again = stored[0] == digest
            reply = stored[1] if again else self._answer(request, payload, digest)
        except RequestRefused as refusal:
            return self._refuse(number, request, refusal)
        released = hashlib.sha256(reply).digest()
        self._record.released(number, request, digest=released, num_bytes=len(reply), again=again)
        if request.kind not in ("open", "close"):
            for ended in ENDED_BY.get(request.kind, ()):
                self._replies.pop(ended, None)
            self._replies[request.kind] = digest, reply
        return reply

    def _refuse(self, number: int, request: Request | None, refusal: RequestRefused) -> bytes:
        asked, run_id = (request.kind, request.run_id) if request else ("a message", "unknown")
        log.warning("%s of run %s refused (%s): %s", asked, run_id, refusal.reason, refusal)
        self._record.refused(number, request, reason=refusal.reason, detail=str(refusal))
        return encode(Refusal.model_validate({"run_id": run_id, "reason": refusal.reason}))

    def _answer(self, request: Request, payload: bytes, digest: bytes) -> bytes:
        """Return the encoded answer. Raises RequestRefused, JournalError or OSError."""
        self._doing = request.kind
        try:
            return encode(*self._decide(request, payload, digest))
        except (RequestRefused, JournalError):
            raise
        except Exception as error:  # what went wrong stays at the site
            log.exception("%s of run %s failed", request.kind, request.run_id)
            self._forget_run()  # the server asks to open the run again, which builds everything anew
            raise RequestRefused("failed", f"{type(error).__name__}; see the agent's log") from error
        finally:
            self._doing = "waiting"

    def _decide(self, request: Request, payload: bytes, digest: bytes) -> tuple[Reply, bytes]:
        if isinstance(request, Open):
            self._open(request, self._approvals.study(request.study_hash), payload)
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
                return session.confirm(request.round, payload, journal_head=self._journal.head)
            case Unmask():
                body, receipts = session.unmask(request.round, payload)
                self._record.receipts(receipts)
                return body
            case Close():
                return self._close(run)
            case Open():
                raise RuntimeError("opening is not a step of an opened run")

    def _opened(self, request: Request) -> tuple[OpenRun, SecureSession]:
        if self._run is None or self._session is None or self._run.run_id != request.run_id:
            raise RequestRefused("not-open", "the run is not open here (the agent may have been restarted)")
        if self._run.study.hash != request.study_hash:
            raise RequestRefused("study-not-approved", f"run {request.run_id} is open for another study")
        return self._run, self._session

    def _check_approved(self, request: Request) -> None:
        """Check that the study, and this run of it, are approved now; leave a run that no longer is.

        Raises:
            RequestRefused: never approved, refused, or an approval was taken back.
        """
        standing = self._approvals.standing(request.study_hash, request.run_id)
        if refused := next((one for one in standing if one is not None and one.verdict == "refused"), None):
            if self._run is not None and self._run.run_id == request.run_id:
                self._forget_run()
            what = f"run {refused.run_id} of study" if refused.run_id else "study"
            raise RequestRefused(
                "study-not-approved",
                f"{what} {refused.study_hash[:12]} was refused here on {refused.time} by {refused.by}",
            )
        if standing[0] is None:
            raise RequestRefused(
                "study-not-approved",
                f"the server asks for study {request.study_hash[:12]}, which nobody at this site has approved; ask the "
                "coordinator for its proposal, and review it: collegium-client review",
            )

    def _forget_run(self) -> None:
        """Leave the run as after a restart: nothing of its secure aggregation stays in memory."""
        if self._session is not None:
            self._session.erase()
        self._run, self._session = None, None
        self._replies.clear()

    # Opening: every refusal that concerns data, policy or budget happens here, before anything is trained.

    def _open(self, request: Open, study: Study, payload: bytes) -> None:
        self._journal.verify()
        try:
            check_own_receipt(payload, self._journal)
        except JournalOlder as error:
            raise RequestRefused("journal", str(error)) from error
        if self._run is not None and self._run.run_id == request.run_id:
            if self._run.study.hash != study.hash:
                raise RequestRefused("budget", f"run {request.run_id} is open for another study")
            return
        if request.roster_hash != self._roster.hash.hex():
            raise RequestRefused(
                "roster-differs",
                f"the server has another roster than this site, whose version is {self._roster.version}: ask the "
                "coordinator which version is the newest, and join with it",
            )
        try:
            model = build_model(study, self._file.weights)
        except WeightsError as error:
            raise RequestRefused("model-differs", str(error)) from error
        if Manifest.of(model).hash != request.manifest_hash:
            raise RequestRefused("model-differs", "the server's model has other weights; versions differ")
        if study.privacy.mode != "none":
            check_supported(model, image_shape=study.image.shape)
        if against := objections(self._file, self._ledger, study, run_id=request.run_id):
            raise RequestRefused(against[0].reason, "; ".join(one.words for one in against))
        if self._file.policy.ask_each_run and not self._approvals.is_approved(study.hash, request.run_id):
            raise RequestRefused(
                "awaiting-approval",
                f"policy.ask_each_run: approve this run with collegium-client review --run {request.run_id}",
            )

        begun = time.perf_counter()
        try:
            index, patients = self._data.read(study, withdrawn(self._journal))
        except (DataRefused, LabelsError) as error:
            raise RequestRefused("data", str(error)) from error
        model.to(self._machine.device)
        training_set = with_features(
            model, patients[Role.TRAIN], training=study.training, machine=self._machine
        )
        seconds = time.perf_counter() - begun

        entry = open_in_ledger(
            self._ledger, study, run_id=request.run_id, exact_count=len(patients[Role.TRAIN])
        )
        remember_patients(result_path(self._file.state, request.run_id).parent, patients)
        self._forget_run()
        self._session = self._session_of(study, request.run_id)
        self._run = OpenRun(
            run_id=request.run_id,
            study=study,
            task=task_of(study),
            model=model,
            patients={**patients, Role.TRAIN: training_set},
            num_patients=entry.noised_count,
            cost=self._ledger.planned_cost(request.run_id, num_steps=study.num_steps),
            evaluation_deviation=entry.evaluation_deviation,
            machine=self._machine,
        )
        self._result = self._result_of(self._run, index, seconds)
        self._write_result()
        log.info("run %s opened with %d training patients", request.run_id, len(patients[Role.TRAIN]))

    def _session_of(self, study: Study, run_id: str) -> SecureSession:
        federation = Federation.of(
            study_hash=study.hash,
            run_id=run_id,
            roster=self._roster,
            constants=study.aggregation,
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
        number, last = request.round, run.study.training.num_rounds
        if number > last:
            raise RequestRefused("budget", f"round {number} is beyond the study's {last} rounds")
        if request.reductions > (most := run.study.most_reductions(number)):
            raise RequestRefused(
                "policy",
                f"the server says that the learning rate was reduced {request.reductions} times before round {number}; "
                f"the study's validations can have led to {most} at most",
            )
        both = carries_average(run.study, number)
        weights, *average = _weights(payload, run, num=2 if both else 1)
        layout = training_layout(run.study, number, num_weights=len(weights))
        session.begin(number, request.round_set, request_hash=digest, length=layout.length)
        done = local_round(
            run,
            number,
            weights,
            average=average[0] if average else None,
            spend=lambda: self._spend(run, number, num_steps=run.study.training.local_steps),
            generator=self._generator(run, number),
            mask=session.mask,
            reductions=request.reductions,
        )
        if self._result is not None:
            cost = self._ledger.training_cost(run.run_id)
            steps = None if cost is None else cost.num_steps
            self._result.rounds.append(SiteRound(round=number, num_steps=steps, seconds=done.seconds))
            if done.validation is not None:
                self._result.validation[number - 1] = done.validation
            self._write_result()
        return done.message

    def _evaluate(
        self, run: OpenRun, session: SecureSession, request: Evaluate, payload: bytes, digest: bytes
    ) -> bytes:
        """Final test, and the validation of the last round where the study names it."""
        number, layout = run.study.test_round, final_layout(run.study)
        if request.round != number:
            raise RequestRefused("budget", f"the final test is round {number}, not {request.round}")
        (weights,) = _weights(payload, run)
        session.begin(number, request.round_set, request_hash=digest, length=layout.length)
        done = local_test(
            run,
            weights,
            spend=lambda: self._spend(run, number, num_steps=0),
            generator=self._generator(run, number),
            mask=session.mask,
        )
        if self._result is not None:
            if done.validation is not None:
                self._result.validation[run.study.training.num_rounds] = done.validation
            self._result.epsilon = self._epsilon(run)
            self._result.test = done.tested.metrics
            self._result.test_statistics = tuple(done.tested.exact.tolist())
            self._write_result()
        return done.message

    def _close(self, run: OpenRun) -> bytes:
        if self._result is not None:
            self._result.epsilon = self._epsilon(run)
        self._write_result()
        self._forget_run()
        self._result = None
        log.info("run %s closed", run.run_id)
        return b""

    def _generator(self, run: OpenRun, number: int) -> CryptographicGenerator:
        """A fresh one each round; repeatable only in simulations without privacy."""
        if self._file.testing is None:
            return CryptographicGenerator.from_operating_system()
        text = f"{self._file.testing.sampling_seed}|{self._file.name}|{run.study.hash}|{number}"
        return CryptographicGenerator(hashlib.sha256(text.encode()).digest())

    def _epsilon(self, run: OpenRun) -> float | None:
        cost, delta = self._ledger.training_cost(run.run_id), run.study.privacy.delta
        return None if cost is None or delta is None else cost.epsilon(delta)

    def _spend(self, run: OpenRun, number: int, *, num_steps: int) -> OpenRun:
        """Charge a round; return the run with the patients who are in it: those who had not withdrawn by then.

        Nobody can withdraw between the look and the charge. The noised count stays.

        Raises:
            RequestRefused: too few patients are left; nothing was spent.
            AlreadySpentError: the round was begun before.
        """
        with self._journal.exclusive():
            gone = withdrawn(self._journal)
            patients = {role: part.without(gone) for role, part in run.patients.items()}
            if any(len(patients[role]) < len(run.patients[role]) for role in patients):
                left, least = len(patients[Role.TRAIN]), self._file.policy.min_patients
                needed = max(least, run.study.patients.min_training)
                if left < needed:
                    raise RequestRefused(
                        "data",
                        f"{left} training patients are left, who did not withdraw; wanted are {needed}",
                    )
                run = self._run = replace(run, patients=patients)
            self._ledger.begin_round(run.run_id, number, num_steps=num_steps)
        return run

    def _result_of(self, run: OpenRun, index: Index, seconds: float) -> SiteResult:
        """The run's result so far, or a new one: opening a run again loses nothing."""
        earlier = SiteResult.read(result_path(self._file.state, run.run_id))
        if earlier is not None and earlier.study_hash == run.study.hash:
            return earlier
        patients = run.patients
        return SiteResult(
            site=self._file.name,
            run_id=run.run_id,
            study_hash=run.study.hash,
            privacy=run.study.privacy.mode,
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


def _decoded(message: bytes) -> tuple[tuple[Request, bytes] | None, str]:
    """Header and payload of a request; None, and why, where it is none."""
    try:
        return decode_request(message), ""
    except MessageError as error:
        return None, f"not a request: {error}"


def _answer_to(request: Request) -> Answer:
    number = request.round if isinstance(request, Train | Evaluate | Confirm | Unmask) else 0
    return Answer(to=request.kind, run_id=request.run_id, round=number)


def _weights(payload: bytes, run: OpenRun, *, num: int = 1) -> tuple[FloatVector, ...]:
    """The *num* models of the payload, one behind the other. Raises RequestRefused."""
    expected = num * 4 * Manifest.of(run.model).num_weights
    if len(payload) != expected:
        raise RequestRefused("failed", f"the models have {len(payload)} bytes, the study's have {expected}")
    weights = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(weights).all():
        raise RequestRefused("failed", "the global model holds values that are not finite")
    return tuple(np.split(weights, num))


def open_site(site_file: SiteFile) -> Site:
    """Return the site of ``site.toml``.

    Raises:
        MembershipError: the site is not in the roster, or its keys are not there.
        JournalError: its journal is missing, older than it should be, or not what the site wrote.
        SecretError: its secret cannot be used.
    """
    identity, roster = read_membership(site_file)
    return Site(site_file, identity=identity, roster=roster, journal=open_journal(site_file, identity))
