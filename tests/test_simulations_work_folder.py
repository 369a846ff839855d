"""A simulation's consortium is set up as a real one: keys, a signed roster, and sites that have joined."""

import stat
from pathlib import Path

import pytest
from dicom_files import make_study

from client.membership import read_membership
from client.site_file import read_site
from shared_models.identity_keys import identity_line, read_public_key
from shared_models.roster import read_roster
from simulations.preparation.hospitals import Hospital
from simulations.work_folder import enrol, write_site

NAMES = ("hospital-1", "hospital-2", "hospital-3")


def a_hospital(name: str) -> Hospital:
    return Hospital(
        name=name,
        folder=Path(name),
        label_key="PatientID",
        label_column="finding",
        has_roles=False,
        scanner="none",
        num_patients=2,
        num_images=2,
        label_counts={"yes": 1, "no": 1},
    )


@pytest.mark.slow
def test_every_site_of_a_simulation_is_a_member_with_keys_of_its_own(tmp_path: Path) -> None:
    study = make_study()
    paths = [write_site(tmp_path / "sites" / name, a_hospital(name), study, seed=1) for name in NAMES]
    roster = enrol(tmp_path / "server", paths, study)
    members = [read_membership(read_site(path)) for path in paths]
    assert [site.name for site in roster.site] == list(NAMES)
    assert [identity_line(identity) for identity, _ in members] == [site.identity_key for site in roster.site]
    assert {joined.hash for _, joined in members} == {roster.hash}
    root = read_public_key(tmp_path / "server" / "root.pub")
    assert read_roster(tmp_path / "server" / "roster.toml", root) == roster
    for path in paths:
        for name in ("node.key", "identity.key"):
            assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600
        assert read_site(path).policy.min_cohort == study.aggregation.min_cohort
