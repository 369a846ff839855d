"""What `collegium-client init` asks a person, and what it does where there is none."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from test_client_command import options
from typer.testing import CliRunner

from client.command import app
from client.site_file import read_site

__all__ = ["options"]


def without(options: list[str], *names: str) -> list[str]:
    """The options but for these, each with its value."""
    kept = []
    for name, value in zip(options[::2], options[1::2], strict=True):
        if name not in names:
            kept += [name, value]
    return kept


def value_of(options: list[str], name: str) -> str:
    return options[options.index(name) + 1]


ASKED = ("--name", "--server", "--ca", "--root", "--images", "--labels", "--key")


@pytest.mark.parametrize("name", ASKED)
def test_without_a_terminal_a_missing_option_is_the_usual_error(
    tmp_path: Path, options: list[str], name: str
) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *without(options, name)])
    assert done.exit_code == 2
    assert f"Missing option '{name}'" in done.output
    assert not (tmp_path / "site").exists()


def test_on_a_terminal_everything_that_is_missing_is_asked_for_until_it_is_right(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.init_questions.on_terminal", lambda: True)
    wrong = {
        "--name": "Nord Klinik",
        "--server": "localhost",
        "--ca": value_of(options, "--labels"),
        "--root": value_of(options, "--ca"),
        "--images": value_of(options, "--labels"),
        "--labels": str(tmp_path / "none.csv"),
        "--key": "PatientName",
    }
    answers = [line for name in ASKED for line in (wrong[name], value_of(options, name))]
    kept = without(options, *ASKED)
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *kept], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, (done.output, done.exception)
    for words in (
        "small letters, digits and hyphens",
        '"localhost" is not HOST:PORT',
        "is not a PEM certificate; it is the coordinator's ca.pem",
        "it is the coordinator's root.pub",
        "is not a folder",
        "none.csv is not a file",
        "one of PatientID, StudyInstanceUID",
    ):
        assert words in done.output
    site = read_site(tmp_path / "site" / "site.toml")
    assert (site.name, site.labels.key) == ("north", "PatientID")
    assert site.server is not None
    assert site.server.address == "localhost:9443"
    assert site.images.folder == tmp_path / "images"


def test_what_was_given_is_not_asked_for(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.init_questions.on_terminal", lambda: True)
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options], input="")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "The hospital's name" not in done.output


@pytest.mark.slow
def test_at_a_real_terminal_the_question_is_shown_and_the_answer_taken(
    tmp_path: Path, options: list[str]
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "client.command", "init", str(tmp_path / "site")]
    try:
        with subprocess.Popen(
            [*command, *without(options, "--name")], stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.write(ours, b"north\n")
            assert process.wait(60) == 0
        said = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "The hospital's name: " in said
    assert read_site(tmp_path / "site" / "site.toml").name == "north"
