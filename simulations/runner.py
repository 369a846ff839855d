"""Runs a scenario: hospitals, sites, one of the engines, baselines, and the files that a user looks at."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from client.budget import training_cost
from client.site import result_path
from client.site_file import read_site
from server.assessment import assess, auroc_in_bins, chosen_in
from server.checkpoint import write_atomically
from server.metric_intervals import Noise
from server.receipts import Receipts
from server.result import BaselineMetrics, Baselines, Result, RoundEntry, SiteEntry
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from server.weights_file import bring_weights
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import read_public_key
from shared_models.roster import read_roster
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Audit
from simulations.audit.page import add_to_report
from simulations.baselines import POOLED, BaselineJob, baseline_jobs, kept_figures, run_baselines
from simulations.deployed_engine import run_deployed
from simulations.faults import FaultyExchange, check_names
from simulations.local_exchange import LocalExchange
from simulations.preparation.hospitals import Hospital, prepare, read_hospitals
from simulations.preparation.source_files import open_source
from simulations.report import write_report
from simulations.run_folder import (
    BASELINES,
    RESULT,
    WORK,
    Engine,
    Noted,
    OutputFolderError,
    check_resumable,
    claim,
    held,
    reclaim,
    worth_keeping,
)
from simulations.scenario import Scenario
from simulations.within_sites import auroc_within
from simulations.work_folder import enrol, write_site, write_study

AUDIT = "audit.json"
EPSILONS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """Called as the work goes on: images prepared, rounds done, baselines done, and what happens now."""

    prepared: Callable[[int, int], None]
    rounds: Callable[[int], None]
    baselines: Callable[[int, int], None]
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a scenario is run.

    Attributes:
        out: the run's folder; new, empty, or (with *overwrite*) an earlier run's.
        hospitals: a folder that ``prepare`` filled; None to prepare below *out*.
        compare: also train each hospital alone, and one pooled model.
        pooled: also train one pooled model.
        leave_one_out: also train, for each hospital, one model on all others, and test it there.
        resume: go on with the run in *out*, which was stopped, or add baselines to it. Engine local only.
        num_workers: processes for sites and baselines.
    """

    engine: Engine
    compare: bool
    out: Path
    leave_one_out: bool = False
    pooled: bool = False
    hospitals: Path | None = None
    overwrite: bool = False
    resume: bool = False
    num_workers: int = 2


def run_scenario(scenario: Scenario, options: Options, display: Display) -> Result:
    """Run *scenario* and write ``result.json``, ``report.html`` and ``model.safetensors`` to ``options.out``.

    Ctrl-C before the first round is done removes the folder again: nothing half-written stays. Afterwards it stays, so
    that ``options.resume`` can go on with it. After an error it stays, without results, so that the sites' own reports
    below ``work`` can be read.

    Raises:
        ConfigurationError: the scenario's faults do not fit its hospitals, the engine or a resumption.
        OutputFolderError: the folder holds something that is not an earlier run, or none to go on with.
        CheckpointError: what is to be gone on with is damaged.
        PreparationError, SourceError, TooFewSitesError, ExchangeError: as their names say.
    """
    if scenario.faults and options.engine != "local":
        raise ConfigurationError(
            "[[faults]] are for the local engine: in the deployed engine each hospital is a process of its own, which "
            "can be killed; remove them, or use --engine local"
        )
    if scenario.faults:
        check_names(scenario.faults, _names(scenario, options))
    checkpoint = None
    noted = Noted.of(scenario, options.engine, options.hospitals)
    if options.resume:
        _check_options(scenario, options)
        _tell_of_versions(check_resumable(options.out, noted), noted.versions, display)
    else:
        claim(options.out, noted, overwrite=options.overwrite)
    with held(options.out):
        if options.resume:
            checkpoint = reclaim(options.out)
        try:
            return _run(scenario, options, display, checkpoint)
        except KeyboardInterrupt:
            keep = options.resume or (options.engine == "local" and worth_keeping(options.out, scenario))
            if not keep:
                shutil.rmtree(options.out, ignore_errors=True)
            raise


def _tell_of_versions(before: Mapping[str, str], now: Mapping[str, str], display: Display) -> None:
    changed = [f"{name} {before.get(name, '–')} → {of}" for name, of in now.items() if before.get(name) != of]
    if changed:
        display.say(
            f"the run was begun with other versions ({', '.join(changed)}): what is trained from here on is not bit by "
            "bit what it would have been"
        )


def _check_options(scenario: Scenario, options: Options) -> None:
    if options.engine != "local":
        raise ConfigurationError(
            "--resume is for the local engine; a run of the deployed engine is begun anew with --overwrite"
        )
    if options.overwrite:
        raise ConfigurationError(
            "--resume goes on with the run in --out, --overwrite removes it: give one of them"
        )
    if scenario.faults:
        raise ConfigurationError(
            "a scenario with [[faults]] cannot be gone on with: which of them struck already is not known; begin anew "
            "with --overwrite"
        )


def _run(scenario: Scenario, options: Options, display: Display, checkpoint: Path | None) -> Result:
    """Run it, or go on with what stands in *checkpoint*."""
    out, study = options.out, scenario.study
    hospitals = _hospitals(scenario, options, display)
    write_study(out / "study.toml", study)

    display.say(f"training {study.training.num_rounds} rounds at {len(hospitals)} hospitals")
    if options.engine == "local":
        site_files, folder = _run_local(scenario, hospitals, options, display, checkpoint)
    else:
        site_files, folder = run_deployed(scenario, hospitals, out / WORK, display.rounds)
    result = Result.model_validate_json((folder / "result.json").read_bytes(), strict=False)
    result = _with_site_results(result, study, site_files)

    if options.compare or options.pooled or options.leave_one_out:
        what = ["each hospital alone, and pooled"] if options.compare else ["pooled"] * options.pooled
        what += ["all but one"] * options.leave_one_out
        display.say(f"training the baselines: {'; '.join(what)}")
    if options.compare or options.pooled or options.leave_one_out or options.resume:
        result = result.model_copy(update={"baselines": _compare(scenario, site_files, options, display)})

    shutil.copyfile(folder / "model.safetensors", out / "model.safetensors")
    write_report(out / "report.html", result, study)
    if (out / AUDIT).exists():
        audit = Audit.model_validate_json((out / AUDIT).read_bytes(), strict=False)
        add_to_report(out / "report.html", audit)
    write_atomically(out / RESULT, result.to_json().encode())
    return result


def _names(scenario: Scenario, options: Options) -> tuple[str, ...]:
    """The hospitals' names, before any image is written."""
    if options.hospitals is not None:
        return tuple(hospital.name for hospital in read_hospitals(options.hospitals).hospitals)
    with open_source(scenario.hospitals, scenario.seed) as caseloads:
        return tuple(caseload.name for caseload in caseloads)


def _hospitals(scenario: Scenario, options: Options, display: Display) -> tuple[Hospital, ...]:
    if options.hospitals is not None:
        return read_hospitals(options.hospitals).hospitals
    display.say("preparing the hospitals")
    return prepare(scenario.hospitals, options.out / "hospitals", scenario.seed, display.prepared)


def _run_local(
    scenario: Scenario,
    hospitals: tuple[Hospital, ...],
    options: Options,
    display: Display,
    begun: Path | None,
) -> tuple[tuple[Path, ...], Path]:
    """Run in worker processes, from the checkpoint *begun*; return the site files and the folder with the result."""
    work, study = options.out / WORK, scenario.study
    if begun is None:
        run_id = f"{study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        for hospital in hospitals:
            site = work / "sites" / hospital.name
            write_site(site, hospital, study, seed=scenario.seed, weights=scenario.weights)
    else:
        run_id = begun.parent.name
    paths = tuple(work / "sites" / hospital.name / "site.toml" for hospital in hospitals)
    if begun is None:
        roster = enrol(work / "server", paths, study)
    else:
        _check_same_images(paths, hospitals)
        roster = read_roster(work / "server" / "roster.toml", read_public_key(work / "server" / "root.pub"))
    checkpoint = checkpoint_path(work / "server" / "state", run_id)
    if (checkpoint.parent / "result.json").exists():
        display.rounds(study.training.num_rounds)
        return paths, checkpoint.parent
    bring_weights(study, scenario.weights, checkpoint.parent)
    with LocalExchange([read_site(path) for path in paths], num_workers=options.num_workers) as exchange:
        context = RunContext(
            study=study,
            run_id=run_id,
            exchange=FaultyExchange(exchange, scenario.faults) if scenario.faults else exchange,
            federation=federation_of(study, run_id, roster),
            checkpoint=checkpoint,
            receipts=Receipts(work / "server" / "state" / "receipts"),
            tell=lambda progress: display.rounds(len(progress.rounds)),
        )
        if begun is not None:
            context.pending.forget_batch()
        run_study(context, engine="local", resume=begun is not None)
    return paths, checkpoint.parent


def _check_same_images(site_files: Sequence[Path], hospitals: Sequence[Hospital]) -> None:
    """Raises OutputFolderError where sites that are there already read other images than these hospitals'."""
    for path, hospital in zip(site_files, hospitals, strict=True):
        if not path.exists() or read_site(path).images.folder.resolve() != hospital.images.resolve():
            raise OutputFolderError(
                f"{path.parent}: was begun with other images than {hospital.images}; give the same --hospitals as "
                "before, or begin anew with --overwrite"
            )


def _compare(
    scenario: Scenario, site_files: tuple[Path, ...], options: Options, display: Display
) -> Baselines | None:
    """Train what is asked for and was not trained before; return it with all that was. None where that is nothing."""

    def jobs(*, compare: bool, pooled: bool, leave_one_out: bool) -> tuple[BaselineJob, ...]:
        return baseline_jobs(
            site_files,
            seed=scenario.seed,
            compare=compare,
            pooled=pooled,
            leave_one_out=leave_one_out,
            keep_in=options.out / WORK / BASELINES,
        )

    asked = jobs(compare=options.compare, pooled=options.pooled, leave_one_out=options.leave_one_out)
    done: dict[tuple[str, bool], BaselineMetrics] = {}
    for job in jobs(compare=True, pooled=True, leave_one_out=True):
        if (figures := kept_figures(job, scenario.study)) is not None:
            done[job.name, job.left_out] = figures
    missing = [job for job in asked if (job.name, job.left_out) not in done]
    if asked:
        display.baselines(len(asked) - len(missing), len(asked))
    for number, (job, metrics) in enumerate(run_baselines(missing, num_workers=options.num_workers), start=1):
        done[job.name, job.left_out] = metrics
        display.baselines(len(asked) - len(missing) + number, len(asked))
    if not done:
        return None
    pooled = done.pop((POOLED, False), None)
    of_sites = {
        kind: {name: one for (name, left_out), one in sorted(done.items()) if left_out == kind}
        for kind in (False, True)
    }
    return Baselines(alone=of_sites[False], pooled=pooled, left_out=of_sites[True])


def _with_site_results(result: Result, study: Study, site_files: tuple[Path, ...]) -> Result:
    """Add what only the owner of all sites can know: each site's own figures."""
    entries, exact = [], []
    slowest: dict[tuple[int, str], float] = {}
    known = {entry.name: entry for entry in result.sites}
    for path in site_files:
        site = read_site(path)
        entry = known.get(site.name, SiteEntry(name=site.name, epsilon=None, rounds_asked=0))
        own_file = result_path(site.state, result.run_id)
        if own_file.exists():
            own = json.loads(own_file.read_text(encoding="utf-8"))
            entry = _with_own_figures(study, entry, own)
            if own["test_statistics"] is not None:
                exact.append(own["test_statistics"])
            for done in own["rounds"]:
                for phase in ("train", "evaluate"):
                    key = (done["round"], f"{phase}_slowest_site")
                    slowest[key] = max(slowest.get(key, 0.0), done["seconds"][phase])
        entries.append(entry)
    if result.test_burned and len(exact) < len(site_files):
        exact = []  # figures of those hospitals that were done when it was stopped would pass for those of all
    rounds = tuple(_with_seconds(entry, slowest) for entry in result.rounds)
    added: dict[str, object] = {"sites": tuple(entries), "rounds": rounds}
    if exact:
        fine, summed = task_of(study).finely_binned(), np.sum(exact, axis=0)
        points = chosen_in(result.test_assessment)
        added["exact_test"] = dict(fine.metrics(summed))
        added["exact_assessment"] = assess(fine, summed, noise=Noise(), points=points)
        added["exact_auroc_within_sites"] = auroc_within([fine.pairs(np.asarray(own)) for own in exact])
        added["exact_auroc_in_bins"] = auroc_in_bins(fine.pairs(summed), study.evaluation.num_bins)
    return result.model_copy(update=added)


def _with_own_figures(study: Study, entry: SiteEntry, own: dict[str, object]) -> SiteEntry:
    rounds = own["rounds"]
    if not isinstance(rounds, list):
        raise TypeError("a site result holds a list of rounds")
    seconds = {"prepare": own["prepare_seconds"]}
    for phase in ("evaluate", "train", "encode", "mask"):
        seconds[phase] = sum(done["seconds"][phase] for done in rounds)
    values = {
        **entry.model_dump(),
        **{key: own[key] for key in ("patients_used", "patients_found", "patients_by_role")},
        **{key: own[key] for key in ("files_found", "left_out", "test")},
        "epsilon": entry.epsilon if own["epsilon"] is None else own["epsilon"],
        "epsilon_by_round": _epsilon_by_round(study, rounds),
        "seconds": seconds,
    }
    return SiteEntry.model_validate(values)


def _epsilon_by_round(
    study: Study, rounds: Sequence[Mapping[str, Any]]
) -> tuple[tuple[int, float], ...] | None:
    """Epsilon after some of the rounds, the last one among them; each takes a fifth of a second to compute."""
    cost, delta = training_cost(study), study.privacy.delta
    if cost is None or delta is None or not rounds:
        return None
    some = sorted({round(at) for at in np.linspace(0, len(rounds) - 1, EPSILONS_SHOWN)})
    return tuple((rounds[at]["round"], cost.after(rounds[at]["num_steps"]).epsilon(delta)) for at in some)


def _with_seconds(entry: RoundEntry, slowest: dict[tuple[int, str], float]) -> RoundEntry:
    added = {phase: seconds for (number, phase), seconds in slowest.items() if number == entry.round}
    return entry.model_copy(update={"seconds": {**entry.seconds, **added}})


def default_out(name: str) -> Path:
    """``collegium-runs/<scenario>-<time>`` below the current folder."""
    return Path("collegium-runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def default_workers() -> int:
    """As many worker processes as this process may use processors."""
    return len(os.sched_getaffinity(0))
