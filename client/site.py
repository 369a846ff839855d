"""One hospital's site: it decides on each request by itself and answers with a vector or a refusal."""

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client.budget import BudgetExceeded, check_lifetime, check_runs, open_in_ledger
from client.device import prepare_torch
from client.dicom_index import Index
from client.ingestion import DataRefused, Ingested, check_policy, ingest
from client.labels import LabelsError
from client.local_round import OpenRun, evaluate_role, local_round
from client.patients import PatientSet
from client.policy import PolicyRefused, check_study
from client.reply_store import ReplyStore
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import SiteFile
from client.site_result import SiteResult, SiteRound
from client.training import Machine
from privacy.clipping import check_supported
from privacy.ledger import AlreadySpentError, Ledger
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.manifest import FloatVector, Manifest, unflatten
from shared_models.messages import (
    Answer,
    Close,
    Evaluate,
    MessageError,
    Open,
    Refusal,
    Reply,
    Request,
    Train,
    decode_reply,
    decode_request,
    encode,
)
from shared_models.study import Study, read_study
from shared_models.tasks import task_of
from shared_models.vector import VectorLayout, to_bytes

log = logging.getLogger("collegium.site")


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
    """

    def __init__(self, site_file: SiteFile, study: Study) -> None:
        site_file.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        prepare_torch(site_file.compute)
        self._file = site_file
        self._study = study
        self._secret = SiteSecret.load_or_create(site_file.state)
        self._ledger = Ledger(site_file.state / "ledger.sqlite")
        self._machine = Machine.of(site_file.compute)
        self._ingested: Ingested | None = None
        self._run: OpenRun | None = None
        self._result: SiteResult | None = None
        self._doing = "waiting"

    def status(self) -> dict[str, str]:
        """What the local command line shows."""
        run = self._run.run_id if self._run else "none"
        return {"site": self._file.name, "study": self._study.name, "run": run, "doing": self._doing}

    def handle(self, message: bytes) -> bytes:
        """Return the encoded reply to an encoded request. Never raises: a refusal is a reply."""
        try:
            request, payload = decode_request(message)
        except MessageError as error:
            log.warning("a message was refused: %s", error)
            return encode(Refusal(run_id="unknown", reason="failed"))
        if not isinstance(request, Train | Evaluate):
            return self._answer(request, payload)
        replies = ReplyStore(result_path(self._file.state, request.run_id).with_name("last.reply"))
        try:
            stored = replies.get(message)
        except OSError:
            log.exception("the stored reply cannot be read")
            stored = None
        if stored is not None:
            return stored
        reply = self._answer(request, payload)
        if isinstance(decode_reply(reply)[0], Answer):
            try:
                replies.put(message, reply)
            except OSError:
                log.exception("the reply cannot be stored; it is sent, and cannot be sent again")
        return reply

    def _answer(self, request: Request, payload: bytes) -> bytes:
        self._doing = request.kind
        try:
            header, body = self._decide(request, payload)
        except RequestRefused as refusal:
            log.warning(
                "%s of run %s refused (%s): %s", request.kind, request.run_id, refusal.reason, refusal
            )
            return encode(Refusal.model_validate({"run_id": request.run_id, "reason": refusal.reason}))
        except AlreadySpentError as error:
            log.warning("%s of run %s refused: %s", request.kind, request.run_id, error)
            return encode(Refusal(run_id=request.run_id, reason="round-already-attempted"))
        except Exception:  # the reply always goes; what went wrong stays at the site
            log.exception("%s of run %s failed", request.kind, request.run_id)
            self._run = None  # the server asks to open the run again, which builds everything anew
            return encode(Refusal(run_id=request.run_id, reason="failed"))
        finally:
            self._doing = "waiting"
        return encode(header, body)

    def _decide(self, request: Request, payload: bytes) -> tuple[Reply, bytes]:
        if request.study_hash != self._study.hash:
            raise RequestRefused(
                "study-not-approved",
                f"the server asks for study {request.study_hash[:12]}, this site agreed to {self._study.hash[:12]} "
                f"({self._file.study}); ask the coordinator for the study file and review it",
            )
        match request:
            case Open():
                self._open(request)
                return Answer(run_id=request.run_id, round=0), b""
            case Train():
                return self._train(self._opened(request), request.round, _weights(payload))
            case Evaluate():
                return self._evaluate(self._opened(request), _weights(payload))
            case Close():
                return self._close(self._opened(request))

    def _opened(self, request: Request) -> OpenRun:
        if self._run is None or self._run.run_id != request.run_id:
            raise RequestRefused("not-open", "the run is not open here (the agent may have been restarted)")
        return self._run

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

    # The run itself.

    def _train(self, run: OpenRun, number: int, weights: FloatVector) -> tuple[Reply, bytes]:
        if number > self._study.training.num_rounds:
            raise RequestRefused(
                "budget", f"round {number} is beyond the study's {self._study.training.num_rounds} rounds"
            )
        done = local_round(run, number, weights, ledger=self._ledger, generator=self._generator(number))
        if self._result is not None:
            epsilon = self._epsilon(run)
            self._result.rounds.append(SiteRound(round=number, epsilon=epsilon, seconds=done.seconds))
            self._result.epsilon = epsilon
            if done.validation is not None:
                self._result.validation[number - 1] = done.validation
            self._write_result()
        return Answer(run_id=run.run_id, round=number), to_bytes(done.vector)

    def _evaluate(self, run: OpenRun, weights: FloatVector) -> tuple[Reply, bytes]:
        """Final test, and the validation of the last round where the study names it."""
        unflatten(weights, run.model)
        last = self._study.training.num_rounds
        self._ledger.begin_round(run.run_id, last + 1, num_steps=0)
        generator = self._generator(last + 1)
        parts = []
        if last in self._study.evaluation.validation_rounds:
            validated = evaluate_role(run, Role.VALIDATION, generator=generator)
            parts.append(validated.statistics)
            if self._result is not None:
                self._result.validation[last] = validated.metrics
        tested = evaluate_role(run, Role.TEST, generator=generator)
        statistics = np.concatenate([*parts, tested.statistics])
        layout = VectorLayout.of_study(self._study.aggregation, num_weights=0, num_statistics=len(statistics))
        if self._result is not None:
            self._result.test = tested.metrics
            self._result.test_statistics = tuple(tested.exact.tolist())
            self._write_result()
        vector = layout.encode(update=None, weight=1, statistics=statistics)
        return Answer(run_id=run.run_id, round=last + 1), to_bytes(vector)

    def _close(self, run: OpenRun) -> tuple[Reply, bytes]:
        self._write_result()
        self._run, self._result = None, None
        log.info("run %s closed", run.run_id)
        return Answer(run_id=run.run_id, round=0), b""

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


def _weights(payload: bytes) -> FloatVector:
    if len(payload) % 4:
        raise RequestRefused("failed", f"the model's payload has {len(payload)} bytes, not a multiple of 4")
    weights = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(weights).all():
        raise RequestRefused("failed", "the global model holds values that are not finite")
    return weights


def open_site(site_file: SiteFile) -> Site:
    """Return the site of ``site.toml``. Raises ConfigurationError where its study file is wrong."""
    return Site(site_file, read_study(site_file.study))
