"""The documents say what the code does: fields, keys, reasons, dependencies, commands and links are compared."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import click
import numpy as np
import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import client.command
import server.command
import simulations.command
from client.basic_profile import Kind
from client.fetch_reasons import Outcome
from client.network_file import NetworkFile
from client.pacs_file import Pacs
from client.prediction.dicom_results.numbering import Kind as ResultKind
from client.prediction.dicom_results.storing_outcomes import Storing
from client.quality_file import SiteQuality
from client.reasons import LabelProblem, MaskProblem, Reason
from client.review_sentences import share
from client.site_file import SiteFile
from privacy.interpretation import best_guess
from server.result import Result
from server.server_file import ServerFile
from shared_models.configuration import Frozen, parse_toml
from shared_models.messages import Refusal
from shared_models.proposal import ProposedStudy
from shared_models.quality import Quality
from shared_models.roster import RosterFile
from shared_models.site_request import SiteRequest
from shared_models.study import Study
from simulations.audit.findings import Audit
from simulations.audit.suite import CHECKS
from simulations.plan import Plan
from simulations.preparation.sources import (
    FracturePhantomSource,
    HamSource,
    MedMnistSource,
    NodulePhantomSource,
    PhantomSource,
)
from simulations.scenario import Scenario, built_in_scenarios, read_scenario

ROOT = Path(__file__).parents[1]
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md", *ROOT.glob("README.md")])
COMMANDS = {
    "collegium-server": server.command.app,
    "collegium-client": client.command.app,
    "collegium-simulate": simulations.command.app,
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def first_cells(text: str) -> set[str]:
    """What stands in backticks in the first column of the tables of *text*."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def section(text: str, heading: str) -> str:
    """The lines below a heading, up to the next one of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, flags=re.MULTILINE | re.DOTALL
    )
    assert found, f"no heading {heading!r}"
    return found.group(1)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, tuple, dict, list):
        for part in get_args(annotation):
            yield from models_in(part)


def keys_of(model: type[BaseModel], before: str = "") -> set[str]:
    """Dotted keys of all values of a file model."""
    keys = set()
    for name, field in model.model_fields.items():
        nested = list(models_in(field.annotation))
        if nested:
            keys |= {key for inner in nested for key in keys_of(inner, f"{before}{name}.")}
        else:
            keys.add(f"{before}{name}")
    return keys


# result.md


def nested_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            found |= nested_models(inner)
    return found


@pytest.mark.parametrize("model", sorted(nested_models(Result), key=lambda model: model.__name__))
def test_the_result_page_names_every_field_and_no_other(model: type[BaseModel]) -> None:
    pieces = re.split(r"\(`(\w+)`\)", page("result.md"))
    texts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    described = first_cells(texts[model.__name__].split("## Metrics")[0])
    assert described == {field.alias or name for name, field in model.model_fields.items()}


def test_the_result_page_names_every_metric() -> None:
    from shared_models.tasks.binary import BinaryClassification
    from shared_models.tasks.multi_class import MultiClassClassification
    from shared_models.tasks.multi_label import MultiLabelClassification
    from shared_models.tasks.segmentation import Segmentation

    classes = MultiClassClassification(num_bins=2, names=("CLASS",), weights=(1.0,))
    findings = MultiLabelClassification(num_bins=2, names=("FINDING",), positive_weights=(1.0,))
    for heading, task in (
        ("## Metrics", BinaryClassification(num_bins=2, positive_weight=1.0)),
        ("## Metrics of several classes", classes),
        ("## Metrics of several findings", findings),
        ("## Metrics of several structures", Segmentation(num_bins=2, names=("STRUCTURE",), weights=(1.0,))),
    ):
        told = set(task.metrics(np.zeros(task.num_statistics, dtype=np.int64)))
        told = {name.replace("confusion/CLASS/CLASS", "confusion/TRUE/PREDICTED") for name in told}
        assert first_cells(section(page("result.md"), heading)) == told


# plan.md


@pytest.mark.parametrize("model", sorted(nested_models(Plan), key=lambda model: model.__name__))
def test_the_plan_page_names_every_field_and_no_other(model: type[BaseModel]) -> None:
    pieces = re.split(r"\(`(\w+)`\)", page("plan.md"))
    texts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    cells = re.findall(r"^\| (`[^|]+`) \|", texts[model.__name__], flags=re.MULTILINE)
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert described == {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.slow
def test_the_plan_page_shows_what_the_command_prints() -> None:
    shown = re.search(r"^```text plan demo\n(.*?)^```$", page("plan.md"), flags=re.MULTILINE | re.DOTALL)
    assert shown
    printed = CliRunner().invoke(simulations.command.app, ["plan", "demo"]).stdout
    page_lines, lines = (re.sub(r"hash \w{12}", "hash", one) for one in (shown.group(1), printed))
    assert page_lines.splitlines() == [line.rstrip() for line in lines.splitlines()]


# audit.md


@pytest.mark.parametrize("model", sorted(nested_models(Audit), key=lambda model: model.__name__))
def test_the_audit_page_names_every_field_and_no_other(model: type[BaseModel]) -> None:
    pieces = re.split(r"\(`(\w+)`\)", page("audit.md"))
    texts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    stored = {field.alias or name for name, field in model.model_fields.items()}
    assert first_cells(texts[model.__name__].split("\n### ")[0]) == stored | set(model.model_computed_fields)


def test_the_audit_page_says_what_each_check_claims() -> None:
    table = section(page("audit.md"), "## What each check claims")
    claimed = {cells[0].strip("` "): cells[1].strip() for cells in rows(table)}
    assert claimed == {name: statement.claim for name, statement in CHECKS.items()}


# files.md


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("## study.toml", Study),
        ("## site.toml", SiteFile),
        ("## network.toml", NetworkFile),
        ("## server.toml", ServerFile),
        ("## roster.toml", RosterFile),
        ("## NAME.request.toml", SiteRequest),
    ],
)
def test_the_files_page_names_every_key_and_no_other(heading: str, model: type[BaseModel]) -> None:
    described = first_cells(section(page("files.md"), heading))
    assert described - {"site", "revoked"} == keys_of(model)


def test_the_files_page_names_what_a_proposal_has_besides_the_study() -> None:
    described = first_cells(section(page("files.md"), "## NAME.proposal.toml"))
    assert described == set(ProposedStudy.model_fields) - set(Study.model_fields)


def test_the_figures_of_the_review_page_are_the_reviews() -> None:
    text = section(page("review.md"), "## What it says")
    for epsilon, shown in re.findall(r"^\| ([\d.]+) \| ([\d.]+ %) \|$", text, flags=re.MULTILINE):
        assert share(best_guess(epsilon=float(epsilon), delta=1e-5)) == shown
    assert text.count(" % |") == 6


def test_the_files_page_names_every_key_of_a_scenario_and_every_built_in_one() -> None:
    text = section(page("files.md"), "## Scenario files")
    sources: set[str] = set()
    for source in (PhantomSource, NodulePhantomSource, FracturePhantomSource, MedMnistSource, HamSource):
        sources |= set(source.model_fields) - {"kind"}
        assert f'`hospitals.kind = "{source.model_fields["kind"].default}"`' in text
    assert first_cells(text) == set(Scenario.model_fields) | sources
    assert all(f"`{name}`" in text for name in built_in_scenarios())


def test_the_scenarios_page_says_of_every_built_in_one_its_size_and_privacy() -> None:
    described = {
        cells[0].strip("` "): cells
        for cells in rows(page("scenarios.md").partition("## What they reached")[0])
    }
    assert described.keys() == set(built_in_scenarios())
    of_model = "small CNN, 28 × 28"
    for name, cells in described.items():
        study = read_scenario(name).study
        image, privacy = study.image, study.privacy
        size = (
            [image.rows, image.columns] if image.depth is None else [image.depth, image.rows, image.columns]
        )
        of_model = of_model if cells[3] == "the same" else cells[3]
        assert study.model.architecture == "scattering" or " × ".join(map(str, size)) in of_model, name
        told = privacy.mode if privacy.epsilon is None else f"{privacy.mode}, ε = {privacy.epsilon:g}"
        assert cells[4].strip() == told, name


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("## study.toml", Study),
        ("## site.toml", SiteFile),
        ("## network.toml", NetworkFile),
        ("## server.toml", ServerFile),
        ("## roster.toml", RosterFile),
        ("## NAME.request.toml", SiteRequest),
    ],
)
def test_the_files_page_says_of_exactly_the_required_keys_that_they_have_no_default(
    heading: str, model: type[BaseModel]
) -> None:
    for cells in rows(section(page("files.md"), heading)):
        key = cells[0].strip("` ")
        field, inner = None, [model]
        for part in key.split("."):
            field = next(one.model_fields[part] for one in inner if part in one.model_fields)
            inner = list(models_in(field.annotation))
        assert field is not None
        if cells[2] == "–":
            assert field.is_required(), key
        elif not cells[2].startswith("–"):
            assert not field.is_required(), key


# data.md, two-machines.md


@pytest.mark.parametrize("reason", [*Reason, *LabelProblem], ids=lambda reason: reason.code)
def test_every_reason_stands_in_the_data_page_as_in_the_code(reason: Reason | LabelProblem) -> None:
    assert f"| `{reason.code}` | {reason.sentence} | {reason.remedy} |\n" in page("data.md")


def test_the_data_page_has_no_reason_that_the_code_does_not_have() -> None:
    text = page("data.md")
    for heading, kind in (
        ("## Why a file is left out", Reason),
        ("## What is wrong in the labels file", LabelProblem),
    ):
        assert first_cells(section(text, heading)) == {reason.code for reason in kind}


def test_the_data_page_names_every_problem_of_a_mask_as_in_the_code() -> None:
    text = section(page("data.md"), "## Masks")
    for problem in MaskProblem:
        assert f"| `{problem.code}` | {problem.sentence} | {problem.remedy} |\n" in text
    assert first_cells(text) == {problem.code for problem in MaskProblem}


# quality.md


def test_the_quality_page_explains_every_check_and_no_other() -> None:
    order = list(Reason)
    checks = set(order[order.index(Reason.OTHER_VIEW) : order.index(Reason.TWO_IDS) + 1])
    codes = {reason.code for reason in checks | {Reason.LABEL_CONTRADICTORY}}
    assert first_cells(section(page("quality.md"), "## Each check")) == codes


def test_the_quality_page_names_who_asks_for_each_check_by_keys_that_there_are() -> None:
    for cells in rows(section(page("quality.md"), "## Each check")):
        keys = {"study": Quality, "site": SiteQuality}.get(cells[1].split(":")[0])
        named = re.findall(r"`(\w+)`", cells[1])
        assert bool(named) == (keys is not None), cells[0]
        assert keys is None or set(named) <= set(keys.model_fields), cells[0]
    said = section(page("quality.md"), "## Each check") + section(
        page("quality.md"), "## When the site does not train"
    )
    unsaid = {key for key in Quality.model_fields if f"{key}`" not in said}
    assert not unsaid


def test_the_kinds_of_the_quality_page_are_the_codes() -> None:
    table = section(page("quality.md"), "## What headers still say")
    for kind in Kind:
        assert f"| {kind.title} | {kind.examples} |\n" in table
    assert len(re.findall(r"^\| (?!kind|---)", table, flags=re.MULTILINE)) == len(Kind)


def test_every_refusal_is_explained() -> None:
    words = get_args(Refusal.model_fields["reason"].annotation)
    described = first_cells(section(page("two-machines.md"), "## When something is wrong"))
    assert set(words) <= described


# pacs.md


def test_the_pacs_page_names_every_outcome_as_in_the_code() -> None:
    text = section(page("pacs.md"), "## When something fails")
    for outcome in Outcome:
        assert f"| `{outcome.code}` | {outcome.sentence} | {outcome.remedy} |\n" in text
    assert first_cells(text) == {outcome.code for outcome in Outcome}


def test_the_settings_of_the_pacs_page_are_settings() -> None:
    shown = re.findall(r"^```toml\n(.*?)^```$", page("pacs.md"), flags=re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    for text in shown:
        parse_toml(text, PacsOnly, origin="docs/pacs.md")


class PacsOnly(Frozen):
    pacs: Pacs


# dicom-results.md


def test_every_outcome_of_storing_and_every_kind_of_result_stands_in_the_page() -> None:
    text = page("dicom-results.md")
    described = [tuple(cells) for cells in rows(section(text, "## Storing them"))]
    assert described == [(f"`{one.code}`", one.sentence, one.remedy) for one in Storing]
    kinds = {cells[0].split("`")[1]: int(cells[2]) for cells in rows(section(text, "## The objects"))}
    assert kinds == {kind.word: kind.series_number for kind in ResultKind}


# dependencies.md


def test_every_dependency_stands_in_its_page_with_its_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for heading, group in (
        ("## Runtime", project["dependencies"]),
        ("## For development", project["optional-dependencies"]["dev"]),
    ):
        described = {
            (cells[0].strip("` "), cells[1].strip("`"))
            for cells in rows(section(page("dependencies.md"), heading))
        }
        stated = {re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", entry).groups() for entry in group}  # type: ignore[union-attr]
        assert described == stated
    extras = rows(section(page("dependencies.md"), "## Extras"))
    assert {(cells[0].strip("`"), cells[1].strip("`") + cells[2].strip("`")) for cells in extras} == {
        (extra, entry)
        for extra, group in project["optional-dependencies"].items()
        for entry in group
        if extra != "dev"
    }


# all pages


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_to_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_code_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:client|server|privacy|shared_models|simulations|tests)/[\w/]+\.py)`", text)
    missing = [name for name in named if not (ROOT / name).exists() and name != "client/__init__.py"]
    assert not missing


def groups(app: typer.Typer) -> dict[str, click.Command]:
    command = typer.main.get_command(app)
    assert isinstance(command, click.Group)
    return command.commands


def shown_commands(text: str) -> Iterator[list[str]]:
    """Words of each command of ours in a fenced block or between backticks."""
    joined = text.replace("\\\n", " ")
    fenced = re.findall(r"^```sh[^\n]*\n(.*?)^```$", joined, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r"`(collegium-[^`\n]+)`", re.sub(r"```.*?```", "", joined, flags=re.DOTALL))
    for line in lines:
        for part in re.split(r"[;&|]+", line.split(" #")[0]):
            words = re.sub(r"^\s*runuser -u \S+ -- ", "", part).split()
            names = [word.rsplit("/", 1)[-1] for word in words[:1]]
            if names and names[0] in COMMANDS:
                yield [names[0], *words[1:]]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_that_are_shown_exist(path: Path) -> None:
    for program, *words in shown_commands(path.read_text(encoding="utf-8")):
        if not words:
            continue
        there = groups(COMMANDS[program])
        if words[0].startswith("-"):
            assert words[0] == "--help", words
            continue
        assert words[0] in there, f"{program} {words[0]}"
        command = there[words.pop(0)]
        if isinstance(command, click.Group):
            assert words, f"{program}: which of {sorted(command.commands)}?"
            command = command.commands[words.pop(0)]
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        for word in words:
            name = word.split("=")[0]
            assert not name.startswith("--") or name in options | {"--help"}, (
                f"{program} {command.name} {name}"
            )


def test_the_units_start_commands_that_there_are_and_the_agents_has_no_network() -> None:
    units = dict(
        re.findall(r"^```ini (\S+)\n(.*?)^```$", page("separate-users.md"), re.MULTILINE | re.DOTALL)
    )
    started = {name: re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE) for name, text in units.items()}
    assert set(started) == {"collegium-agent.service", "collegium-connect.service"}
    for (line,) in started.values():
        program, command, option, _ = line.split()
        there = groups(COMMANDS[Path(program).name])
        assert option in {name for known in there[command].params for name in known.opts}
    agent = units["collegium-agent.service"].splitlines()
    assert "RestrictAddressFamilies=AF_UNIX" in agent
    assert "PrivateNetwork=yes" in agent


def test_the_study_of_the_page_is_a_study() -> None:
    found = re.search(
        r"^```toml study\.toml\n(.*?)^```$", page("two-machines.md"), flags=re.MULTILINE | re.DOTALL
    )
    assert found
    study = parse_toml(found.group(1), Study, origin="docs/two-machines.md")
    assert study.privacy.mode == "local"


def test_the_privacy_page_begins_with_what_protects_and_what_does_not() -> None:
    start = page("privacy.md")[:800]
    assert "it says nothing about what a\nsum reveals" in start
    assert 'Under `privacy.mode = "none"` nothing is promised' in start


def test_nothing_says_that_updates_travel_unmasked() -> None:
    texts = [page(path.name) for path in (ROOT / "docs").glob("*.md")]
    texts += [
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "simulations/report.html.jinja")
    ]
    assert not [text[:60] for text in texts if "TLS alone" in text or "TLS only" in text]


# predict.md


def test_the_predict_page_names_every_reason_that_can_be_overridden() -> None:
    from client.prediction.refusals import OVERRIDABLE

    table = section(page("predict.md"), "## What is refused")
    assert [cells[0].strip("`") for cells in rows(table)] == [reason.code for reason in OVERRIDABLE]


def test_the_predict_page_names_the_exit_codes() -> None:
    from client.foreground import INTERRUPTED
    from client.prediction.dicom_results.storing import PACS_STORED_NOTHING
    from client.prediction.summary import ALL, NOTHING, SOME_LEFT_OUT

    table = section(page("predict.md"), "## Exit status")
    told = {int(cells[0].strip("`")) for cells in rows(table)}
    assert told == {ALL, NOTHING, 2, SOME_LEFT_OUT, PACS_STORED_NOTHING, INTERRUPTED}
