"""A short run of the study in the local engine, in which hospitals are killed and come back, watched from outside.

Hospitals are small, of phantoms whose gradients vanish (`silence`), so that what the global model does from round to
round is noise. What the auditor notes is what travels, and what stands on the hospitals' disks.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from client.budget import training_cost
from client.site import result_path
from client.site_file import SiteFile, read_site
from client.site_journal import read_journal
from client.site_result import SiteResult
from privacy.accounting import TrainingCost
from privacy.journal import RUN, SPENT, Entry
from privacy.ledger import Ledger, LedgerRun
from server.receipts import Receipts
from server.result import Result
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext, TooFewSitesError
from shared_models.augmentation import Augmentation
from shared_models.messages import Answer, Evaluate, Train, decode_reply, decode_request
from shared_models.study import Model, Study
from simulations.audit.release import Doubles, clipping_bound, opening_of
from simulations.faults import FaultyExchange
from simulations.one_process import OneProcessExchange
from simulations.preparation.hospitals import prepare
from simulations.preparation.phantom_hospitals import LABEL_COLUMN, NEGATIVE, POSITIVE
from simulations.preparation.sources import PhantomSource
from simulations.scenario import Fault
from simulations.work_folder import enrol, write_site

ROUNDS, _RESUMED = 6, 3
VANISHING = 1e-30
"""Weight of positive images in the loss, which float32 takes for zero: their gradients vanish."""
_RUN, _SIZE, _PATIENTS = "audit", 32, 20


class WatchedExchange(OneProcessExchange):
    """Notes what the server sends for training, what comes back, and what is charged on disk by then.

    After each answer the request of the round before is sent to the same hospital once more.
    """

    def __init__(self, site_files: Mapping[str, Path]) -> None:
        super().__init__(site_files)
        self._files_read = {name: read_site(path) for name, path in site_files.items()}
        self._last: dict[str, tuple[bytes, bytes]] = {}
        self.weights: dict[int, Doubles] = {}
        self.rounds = {name: list[int]() for name in site_files}
        self.uncharged = 0
        self.repeated = 0

    def ask(self, site: str, message: bytes) -> bytes:
        """Hand one site a request, note what happens, and return its reply."""
        request, payload = decode_request(message)
        if isinstance(request, Train | Evaluate):
            self.weights[request.round] = np.frombuffer(payload, dtype="<f4").astype(np.float64)
        answer = super().ask(site, message)
        if isinstance(request, Train) and isinstance(decode_reply(answer)[0], Answer):
            self.rounds[site].append(request.round)
            charged = [entry.body["round"] for entry in _entries(self._files_read[site], SPENT)]
            self.uncharged += charged.count(request.round) != 1
            self._repeat(site)
            self._last[site] = message, answer
        return answer

    def _repeat(self, site: str) -> None:
        if site in self._last:
            message, before = self._last[site]
            answer = super().ask(site, message)
            self.repeated += isinstance(decode_reply(answer)[0], Answer) and answer != before


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAfter:
    """What stands on one hospital's disk after the run, and what the auditor saw of it.

    Attributes:
        trained: rounds in which it answered with a vector.
        entries: of its journal: the run's opening and its charges.
        ledger_cost: what the hospital's own ledger says of the run.
        result: the hospital's own report.
    """

    name: str
    trained: tuple[int, ...]
    opened: LedgerRun
    charged: tuple[tuple[int, int], ...]
    ledger_cost: TrainingCost | None
    result: SiteResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortRun:
    """What was seen.

    Attributes:
        study: that was run.
        sites: after it.
        updates: by which the global weights changed, in claimed standard deviations, shape (rounds, num_weights).
        num_restarts: hospitals that were killed and came back.
        uncharged: vectors that left a hospital whose disk did not hold just one charge for them.
        repeated: requests of an earlier round that were answered by something new.
    """

    study: Study
    sites: tuple[SiteAfter, ...]
    updates: Doubles
    num_restarts: int
    uncharged: int
    repeated: int

    @classmethod
    def of(cls, study: Study) -> Self:
        """Run it in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="collegium-audit-") as folder:
            return cls._in(Path(folder), short_study(study))

    @classmethod
    def _in(cls, folder: Path, study: Study) -> Self:
        files = _hospitals(folder, study)
        roster = enrol(folder / "server", list(files.values()), study)
        exchange = WatchedExchange(files)
        checkpoint = checkpoint_path(folder / "server" / "state", _RUN)
        context = RunContext(
            study=study,
            run_id=_RUN,
            exchange=FaultyExchange(exchange, _faults(tuple(files))),
            federation=federation_of(study, _RUN, roster),
            checkpoint=checkpoint,
            receipts=Receipts(checkpoint.parent / "receipts"),
            patience_seconds=0.0,
            start_seconds=0.0,
        )
        result = _finish(context)
        sites = tuple(_after(read_site(path), tuple(exchange.rounds[name])) for name, path in files.items())
        return cls(
            study=study,
            sites=sites,
            updates=_updates(
                study, exchange.weights, sites, {entry.round: entry.survivors for entry in result.rounds}
            ),
            num_restarts=len(exchange.restarted),
            uncharged=exchange.uncharged,
            repeated=exchange.repeated,
        )


def _finish(context: RunContext) -> Result:
    """Run to the end. Where each hospital is needed, one that was killed stops the run, and it is resumed."""
    for attempt in range(_RESUMED):
        try:
            return run_study(context, engine="local", resume=attempt > 0)
        except TooFewSitesError:
            continue
    return run_study(context, engine="local", resume=True)


def short_study(study: Study) -> Study:
    """The study with few rounds, phantoms as patients, and gradients that vanish; privacy and cohort are as they were.

    Hospitals and server make plain steps: what comes after the noise is left out. The learning rate is such that no
    update is cut.
    """
    aggregation = study.aggregation.model_copy(
        update={
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
            "server_momentum": 0.0,
            "rounds_per_batch": 1,
            "max_patients": None if study.aggregation.max_patients is None else 1000,
        }
    )
    training = study.training.model_copy(
        update={
            "num_rounds": ROUNDS,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "optimizer": "sgd",
            "schedule": "constant",
            "plateau_factor": 0.5,
            "plateau_patience": 1,
            "early_stopping": None,
            "warmup_rounds": 0,
            "ema_decay": 0.0,
            "positive_weight": VANISHING,
            "augmentation": Augmentation(),
        }
    )
    task = {
        "kind": "binary-classification",
        "label": LABEL_COLUMN,
        "positive": [POSITIVE, NEGATIVE],
        "negative": ["-"],
    }
    patients = {"roles": "hash", "min_training": 5, "validation_fraction": 0.1, "test_fraction": 0.1}
    image = {
        "modalities": ["CR", "DX"],
        "channels": 1,
        "rows": _SIZE,
        "columns": _SIZE,
        "intensity": "percentiles",
    }
    evaluation = {**study.evaluation.model_dump(), "validation_rounds": ()}
    values = {
        "task": task,
        "model": _small(study.model),
        "patients": patients,
        "image": image,
        "evaluation": evaluation,
        "aggregation": aggregation.model_dump(),
        "training": training.model_dump(),
    }
    short = Study.model_validate({**study.model_dump(), **values})
    cost = training_cost(short)
    if cost is None:
        raise RuntimeError("a study without privacy has nothing to watch")
    loudest = 10.0 * cost.noise_multiplier * clipping_bound(short) * training.local_steps**0.5
    rate = 0.5 * aggregation.update_bound / loudest * training.sample_rate * short.patients.min_training
    training = short.training.model_copy(update={"learning_rate": rate})
    return short.model_copy(update={"training": training})


def _hospitals(folder: Path, study: Study) -> dict[str, Path]:
    """One more than a sum needs, where the study allows that."""
    aggregation = study.aggregation
    num = min(aggregation.min_sites_in_sum + 1, aggregation.num_sites_max)
    source = PhantomSource(num_hospitals=num, patients_per_hospital=(_PATIENTS,), image_size=_SIZE)
    made = prepare(source, folder / "hospitals", 1)
    return {
        hospital.name: write_site(folder / "sites" / hospital.name, hospital, study, seed=1)
        for hospital in made
    }


def _faults(names: tuple[str, ...]) -> tuple[Fault, ...]:
    """Two hospitals are killed: one after it has trained, the other before it helps to open the sum."""
    return (
        Fault(site=names[0], round=2, exchange="train", when="after", restart=True),
        Fault(site=names[1], round=4, exchange="unmask", when="before", restart=True),
    )


def _entries(file: SiteFile, kind: str) -> tuple[Entry, ...]:
    entries = read_journal(file).entries(kind)
    return tuple(entry for entry in entries if entry.body["run_id"] == _RUN)


def _after(file: SiteFile, trained: tuple[int, ...]) -> SiteAfter:
    journal = read_journal(file)
    (opened,) = _entries(file, RUN)
    return SiteAfter(
        name=file.name,
        trained=trained,
        opened=LedgerRun(**opened.body),  # type: ignore[arg-type]
        charged=tuple(
            (int(str(entry.body["round"])), int(str(entry.body["num_steps"])))
            for entry in _entries(file, SPENT)
        ),
        ledger_cost=Ledger(journal).training_cost(_RUN),
        result=SiteResult.read(result_path(file.state, _RUN)),
    )


def _updates(
    study: Study,
    weights: Mapping[int, Doubles],
    sites: tuple[SiteAfter, ...],
    survivors: Mapping[int, tuple[str, ...]],
) -> Doubles:
    """Changes of the global weights in rounds that ended with a sum, in claimed standard deviations."""
    counts = {site.name: site.opened.noised_count for site in sites}
    opening = opening_of(study, training_cost(study))
    return np.stack(
        [
            (weights[number + 1] - weights[number])
            / opening.update_deviation([counts[name] for name in inside])
            for number, inside in survivors.items()
            if inside
        ]
    )


def _small(model: Model) -> dict[str, object]:
    """The model where it takes small plane images, else a small CNN."""
    values = model.model_dump()
    if model.architecture in ("small-cnn", "scattering"):
        return {**values, "weights": None}
    return {"architecture": "small-cnn", "seed": model.seed}
