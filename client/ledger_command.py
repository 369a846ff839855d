"""``collegium-client ledger``: what the site's patients have spent."""

import json
import math
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from client.options import SITE_FILE, ConfigOption, JsonOption
from client.site_file import SiteFile, read_site
from client.site_journal import read_journal

if TYPE_CHECKING:
    from privacy.ledger import Ledger


out = Console(highlight=False)


def ledger(config: ConfigOption = SITE_FILE, as_json: JsonOption = False) -> None:
    """Show what each run has cost the patients of this site, and what is left of the lifetime budget."""
    from privacy.ledger import Ledger

    site = read_site(config)
    book = Ledger(read_journal(site))
    entries, lifetime = _entries(book), _lifetime(book, site)
    if as_json:
        typer.echo(json.dumps({"runs": entries, "lifetime": lifetime}, indent=2))
        return
    table = Table(title=f"Runs at {site.name}", title_justify="left")
    for column in (
        "run",
        "study",
        "mode",
        "rounds begun",
        "steps",
        "epsilon (PLD)",
        "epsilon (RDP)",
        "delta",
    ):
        left = column in ("run", "study", "mode")
        table.add_column(
            column, justify="left" if left else "right", overflow="fold", no_wrap=column in ("run", "mode")
        )
    for entry in entries:
        mode = entry["mode"] or "not recorded"
        table.add_row(*(_shown(value) for value in {**entry, "mode": mode}.values()))
    out.print(table)
    if entries:
        out.print(
            "Epsilon is what training patients have spent, in all rounds that were begun, whatever came of "
            "them. PLD is the claim of a run; RDP is the same computed another way, as a cross-check, and larger. "
            "Validation and test patients are others: each spends at most the study's evaluation.epsilon, where it has "
            "one. The mode says what epsilon is about: local is each hospital's own update; distributed is the sum of "
            "all, and counts on secure aggregation and on the other hospitals' noise; none promises nothing."
        )
    if lifetime is None:
        out.print("No lifetime budget is set (policy.lifetime_epsilon in site.toml).")
    elif lifetime["spent"] is None:
        out.print(
            "Lifetime: without limit: at least one run had no differential privacy, or exact evaluation, or an earlier "
            "journal was lost.",
            style="red",
        )
    else:
        out.print(
            f"Lifetime: {lifetime['spent']:.3g} of {lifetime['cap']:g} spent at delta {lifetime['delta']:g} "
            "(RDP over all runs, at one order that the cap fixes; evaluations included)"
        )


def _shown(value: str | int | float | None) -> str:
    if value is None:
        return "no privacy"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _entries(entries: "Ledger") -> list[dict[str, str | int | float | None]]:
    """One row a run; both epsilons, by PLD and by RDP, are null where the run had no differential privacy."""
    rows: list[dict[str, str | int | float | None]] = []
    for run in entries.runs():
        cost, rounds, delta = entries.training_cost(run.run_id), entries.rounds(run.run_id), run.delta
        rows.append(
            {
                "run": run.run_id,
                "study": run.study_hash[:12],
                "mode": run.mode,
                "rounds_begun": sum(entry.num_steps > 0 for entry in rounds),
                "steps": sum(entry.num_steps for entry in rounds),
                "epsilon": None if cost is None or delta is None else cost.epsilon(delta),
                "epsilon_rdp": None if cost is None or delta is None else cost.rdp_epsilon(delta),
                "delta": delta,
            }
        )
    return rows


def _lifetime(entries: "Ledger", site: SiteFile) -> dict[str, float | None] | None:
    """The cap and what is spent of it; ``spent`` is null where a run without privacy makes it infinite."""
    cap, delta = site.policy.lifetime_epsilon, site.policy.lifetime_delta
    if cap is None or delta is None:
        return None
    spent = entries.lifetime_epsilon(cap=cap, delta=delta)
    return {"cap": cap, "delta": delta, "spent": spent if math.isfinite(spent) else None}
