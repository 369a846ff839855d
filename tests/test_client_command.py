"""The hospital's command line: making a site, and what stops it from starting."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.command import app
from client.launch import ServerNotReached, SiteError, check_server
from client.site_file import Server, read_site
from server.certificates import Authority
from shared_models.configuration import ConfigurationError
from shared_models.node_keys import canonical_line, fingerprint, public_line
from shared_models.processes import free_port

STUDY = """
name = "toy"
title = "A toy study"
[task]
kind = "binary-classification"
label = "finding"
positive = ["yes"]
negative = ["no"]
[patients]
roles = "hash"
min_training = 10
[image]
modalities = ["DX"]
channels = 1
rows = 32
columns = 32
[model]
architecture = "small-cnn"
[training]
num_rounds = 1
local_steps = 1
sample_rate = 0.1
learning_rate = 0.1
[privacy]
mode = "none"
[evaluation]
num_bins = 10
unnoised = true
[aggregation]
weights = "equal"
num_sites_max = 4
min_cohort = 2
round_timeout_seconds = 60.0
"""


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("PatientID,finding\n")
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "ca.pem").write_bytes(Authority("Test").issued.certificate)
    return [
        *("--name", "north", "--server", "localhost:9443", "--ca", str(tmp_path / "ca.pem")),
        *("--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")),
        *("--key", "PatientID", "--study", str(tmp_path / "study.toml")),
    ]


def test_init_makes_a_site_whose_private_key_stays_private(tmp_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert done.exit_code == 0, done.output
    site = read_site(tmp_path / "site" / "site.toml")
    assert site.images.folder == tmp_path / "images"
    assert site.server is not None
    assert stat.S_IMODE(site.server.node_key.stat().st_mode) == 0o600
    public = canonical_line((tmp_path / "site" / "node.pub").read_text())
    assert public == public_line(site.server.node_key.read_bytes())
    assert fingerprint(public) in done.output


def test_init_leaves_an_existing_site_alone(tmp_path: Path, options: list[str]) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    key = (tmp_path / "site" / "node.key").read_bytes()
    again = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert isinstance(again.exception, ConfigurationError)
    assert (tmp_path / "site" / "node.key").read_bytes() == key


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--name", "Nord Klinik", "name"), ("--server", "localhost", "server.address")],
)
def test_init_refuses_what_site_toml_would_refuse(
    tmp_path: Path, options: list[str], option: str, value: str, words: str
) -> None:
    options[options.index(option) + 1] = value
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert isinstance(done.exception, ConfigurationError)
    assert words in str(done.exception)
    assert not (tmp_path / "site" / "site.toml").exists()


def test_start_refuses_a_key_that_others_can_read(tmp_path: Path, options: list[str]) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    (tmp_path / "site" / "node.key").chmod(0o644)
    done = CliRunner().invoke(app, ["start", "--config", str(tmp_path / "site" / "site.toml")])
    assert isinstance(done.exception, ConfigurationError)
    assert "chmod 600" in str(done.exception)


def test_a_wrong_file_ends_with_a_message_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.command", "start", "--config", str(tmp_path / "none.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_and_a_ca_that_is_none_are_told_apart(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority("Test").issued.certificate)
    entry = Server(address=f"127.0.0.1:{free_port()}", ca_certificate=ca, node_key=tmp_path / "node.key")
    with pytest.raises(ServerNotReached, match="refuses connections"):
        check_server(entry)
    with pytest.raises(SiteError, match="does not exist"):
        check_server(entry.model_copy(update={"ca_certificate": tmp_path / "none.pem"}))
    ca.write_text("not a certificate")
    with pytest.raises(SiteError, match="not a PEM certificate"):
        check_server(entry)
