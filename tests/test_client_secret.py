"""The site's secret and what is derived from it."""

import stat
from pathlib import Path

import pytest
from dicom_files import OTHER_SECRET, SECRET
from hypothesis import given
from hypothesis import strategies as st

from client.secret import SECRET_NAME, SecretError, SiteSecret

identifiers = st.text(max_size=64)


def test_a_secret_is_made_once_and_only_its_user_may_read_it(tmp_path: Path) -> None:
    first = SiteSecret.create(tmp_path / "state")
    again = SiteSecret.load(tmp_path / "state")
    path = tmp_path / "state" / SECRET_NAME
    assert first == again
    assert len(path.read_bytes()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in path.parent.iterdir()] == [SECRET_NAME]


def test_two_sites_have_different_secrets(tmp_path: Path) -> None:
    assert SiteSecret.create(tmp_path / "a") != SiteSecret.create(tmp_path / "b")


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    SiteSecret.create(tmp_path)
    (tmp_path / SECRET_NAME).chmod(0o640)
    with pytest.raises(SecretError, match="chmod 600"):
        SiteSecret.create(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_the_wrong_size_is_refused_and_left_as_it_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / SECRET_NAME
    path.write_bytes(b"s" * size)
    path.chmod(0o600)
    with pytest.raises(SecretError, match=f"holds {size} bytes"):
        SiteSecret.create(tmp_path)
    assert path.read_bytes() == b"s" * size


def test_the_secret_is_not_shown() -> None:
    assert "key" not in repr(SECRET)


def test_a_pseudonym_is_a_known_answer() -> None:
    """HMAC-SHA256 over length-prefixed parts, computed independently with openssl."""
    assert SECRET.pseudonym("patient", "PAT-0001") == "be8b2c2ccf3a4fe4ad14754628406a4a"


@pytest.mark.slow
@given(identifiers)
def test_pseudonyms_differ_with_another_secret(identifier: str) -> None:
    ours = SECRET.pseudonym("patient", identifier)
    assert len(ours) == 32
    assert set(ours) <= set("0123456789abcdef")
    assert ours != OTHER_SECRET.pseudonym("patient", identifier)
    assert ours != SECRET.pseudonym("study", identifier)


@pytest.mark.slow
@given(identifiers, identifiers)
def test_kind_and_identifier_do_not_run_into_each_other(kind: str, identifier: str) -> None:
    joined = kind + identifier
    for cut in range(len(joined)):
        if (joined[:cut], joined[cut:]) != (kind, identifier):
            assert SECRET.pseudonym(joined[:cut], joined[cut:]) != SECRET.pseudonym(kind, identifier)


@given(identifiers)
def test_a_uniform_draw_lies_in_the_unit_interval(identifier: str) -> None:
    assert 0.0 <= SECRET.uniform("role", identifier) < 1.0


@pytest.mark.slow
def test_uniform_draws_are_uniform() -> None:
    draws = sorted(SECRET.uniform("role", str(number)) for number in range(4000))
    distance = max(abs(draw - (rank + 0.5) / 4000) for rank, draw in enumerate(draws))
    assert distance < 1.63 / 4000**0.5  # Kolmogorov–Smirnov, 1 %
