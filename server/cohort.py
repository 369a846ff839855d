"""The cohort of a round: enough sites that opened the run, and secrets prepared for all of them."""

import logging
import time
from dataclasses import replace

from privacy.secure_aggregation.context import BatchContext
from privacy.secure_aggregation.server_setup import Batch
from server.pending import Attempt
from server.run_state import RunContext, RunState, TooFewSitesError, situation, too_few
from server.secure_rounds import set_up_batch
from shared_models.architectures import build_model
from shared_models.manifest import Manifest
from shared_models.messages import Open, encode

log = logging.getLogger("collegium.server")

LOOK_SECONDS = 0.2
AGAIN_SECONDS = 2.0
"""Pause before a site that did not open the run is asked again."""
OPEN_SECONDS = 600.0
"""Least time that sites get to read their images when a run starts."""
LATER = ("awaiting-approval", "not-open", "failed", "no-batch", "protocol", "no-answer", "bad-reply")
"""Reasons after which a site may be asked again; all others are final."""
REOPEN = ("not-open", "failed")
"""Reasons after which a site has to open the run again."""


def gather(context: RunContext, state: RunState) -> RunState:
    """Wait for the sites and have them open the run, until all known sites have answered or patience ends.

    Opening takes as long as a site needs to read its images; a site that is late joins at a later round.
    """
    begun = time.monotonic()
    while True:
        present, known = set(context.exchange.sites()), set(context.exchange.known_sites())
        impatient = time.monotonic() - begun >= context.patience_seconds
        if present >= known or (impatient and len(present) >= context.least):
            timeout = max(OPEN_SECONDS, context.study.aggregation.round_timeout_seconds)
            state = _open(context, state, sorted(present), timeout_seconds=timeout)
        opened, refused = state.attendance.opened, set(state.attendance.refused)
        seconds = time.monotonic() - begun
        if len(opened) >= context.least and (
            opened | refused >= known or seconds >= context.patience_seconds
        ):
            return replace(state, attendance=state.attendance.with_answered(opened))
        if len(known - refused) < context.least or seconds > context.start_seconds:
            raise TooFewSitesError(too_few(context, state, "the run was opened by"))
        time.sleep(LOOK_SECONDS if not present & (opened | refused) else AGAIN_SECONDS)


def _open(
    context: RunContext, state: RunState, sites: list[str], *, timeout_seconds: float, number: int = 1
) -> RunState:
    """Ask those of *sites* that have not opened the run to do so."""
    attendance = state.attendance
    asked = [site for site in sites if site not in attendance.opened and site not in attendance.refused]
    if not asked:
        return state
    manifest = Manifest.of(build_model(context.study, context.folder))
    request = Open(
        run_id=context.run_id,
        study_hash=context.study.hash,
        manifest_hash=manifest.hash,
        roster_hash=context.federation.roster_hash.hex(),
    )
    requests = {site: encode(request, context.receipts.of(site)) for site in asked}
    for reply in context.talk.ask(requests, request, timeout_seconds=timeout_seconds):
        if reply.refusal is None:
            attendance = attendance.with_opened(reply.site)
        elif reply.refusal in LATER:
            attendance = attendance.with_failed([reply.site], number=number)
        else:
            attendance = attendance.with_refused({reply.site: reply.refusal})
            log.warning("%s takes no part: %s", reply.site, reply.refusal)
    return replace(state, attendance=attendance)


def prepare(context: RunContext, state: RunState, number: int) -> RunState:
    """Have enough sites there, and round secrets for all of them: a round that cannot succeed would cost them.

    Raises:
        TooFewSitesError: they did not come; nobody was asked to train, and the round's number is not used up.
    """
    begun = time.monotonic()
    failure = ""
    while True:
        there = awake(context, state, number)
        state = _open(
            context,
            state,
            there,
            timeout_seconds=context.study.aggregation.round_timeout_seconds,
            number=number,
        )
        cohort = [site for site in there if site in state.attendance.opened]
        if len(cohort) >= context.least:
            if _fits(state.batch, cohort, number, least=context.least):
                return state
            state, failure = _set_up(context, state, cohort, number)
            if not failure:
                return state
        hopeless = len(set(context.exchange.known_sites()) - set(state.attendance.refused)) < context.least
        if hopeless or time.monotonic() - begun > context.patience_seconds:
            if failure:
                raise TooFewSitesError(
                    f"the secrets of round {number} could not be prepared: {failure}; {situation(context, state)}"
                )
            raise TooFewSitesError(too_few(context, state, f"round {number} could ask"))
        time.sleep(AGAIN_SECONDS)


def awake(context: RunContext, state: RunState, number: int) -> list[str]:
    """Sites that may be asked in a round; those that rest as well, where there are too few without them."""
    present = context.exchange.sites()
    rested = state.attendance.awake(present, number=number)
    return rested if len(rested) >= context.least else state.attendance.awake(present)


def _fits(batch: Batch | None, cohort: list[str], number: int, *, least: int) -> bool:
    """Whether the prepared batch serves this round for all of the cohort."""
    return (
        batch is not None
        and number in batch.context.rounds
        and set(cohort[: batch.context.terms.num_sites_max]) <= set(batch.ready)
        and len(batch.round_set(cohort)) >= least
    )


def _set_up(context: RunContext, state: RunState, cohort: list[str], number: int) -> tuple[RunState, str]:
    """Prepare a batch with *cohort*, from round *number* on. Returns why there is none, empty where there is one."""
    chosen = tuple(cohort[: context.federation.terms.num_sites_max])
    attempt = Attempt(batch=state.attempt.batch + 1, round=state.attempt.round)
    context.pending.begin(attempt)
    begun = time.perf_counter()
    batch_context = BatchContext(
        federation=context.federation, number=attempt.batch, first_round=number, cohort=chosen
    )
    done = set_up_batch(
        context.talk, batch_context, timeout_seconds=context.study.aggregation.step_timeout_seconds
    )
    if done.batch is not None:
        context.pending.keep(done.batch)
    final = {site: reason for site, reason in done.refusals.items() if reason not in LATER}
    lost = {site for site, reason in done.refusals.items() if reason in REOPEN}
    attendance = state.attendance.with_refused(final).with_lost(lost)
    attendance = attendance.with_failed(set(done.refusals) - set(final) - lost, number=number)
    seconds = state.setup_seconds + time.perf_counter() - begun
    return (
        replace(state, attempt=attempt, batch=done.batch, attendance=attendance, setup_seconds=seconds),
        done.failure or "",
    )
