"""For tests of the auditor: keys that never change, and a small study with privacy."""

import hashlib

import pytest
from studies import make_study

from privacy.randomness import CryptographicGenerator
from simulations.audit.findings import Finding, Findings

_SMALL = {"num_rounds = 3": "num_rounds = 6", "rows = 16": "rows = 12", "columns = 16": "columns = 12"}
LOCAL = make_study(_SMALL, private=True)
"""All noise at each of three hospitals, of which two are enough; two steps a round."""
DISTRIBUTED = make_study(
    {
        **_SMALL,
        'mode = "local"': 'mode = "distributed"',
        "local_steps = 2": "local_steps = 1",
        'weights = "equal"': 'weights = "patients"\nmax_patients = 500',
        "num_sites_max = 3": "num_sites_max = 4",
        "min_cohort = 2": "min_cohort = 3",
        "threshold = 2": "threshold = 3",
        "num_colluding = 0": "num_colluding = 1",
    },
    private=True,
)
"""Two honest hospitals carry the noise; sums of three or four of four are opened; a step a round."""
VOLUMES = make_study(
    {
        "num_rounds = 3": "num_rounds = 6",
        'architecture = "small-cnn"': 'architecture = "small-cnn-3d"',
        "rows = 16\ncolumns = 16": "rows = 8\ncolumns = 8\ndepth = 8\nspacing = 2.0\nslice_spacing = 3.0\n"
        'intensity = "percentiles"',
    },
    private=True,
)
"""As `LOCAL`, of volumes."""
BOTH = pytest.mark.parametrize("study", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])


class TestKeys:
    """Generators with keys 0, 1, 2, … in place of those from the operating system."""

    __test__ = False

    def __init__(self, label: str = "audit") -> None:
        self._label, self._next = label, 0

    def __call__(self) -> CryptographicGenerator:
        self._next += 1
        return CryptographicGenerator(hashlib.sha256(f"{self._label}|{self._next}".encode()).digest())


def failed(findings: Findings) -> list[str]:
    """What is not as it should be."""
    return [shown(finding) for finding in findings if not finding.ok]


def shown(finding: Finding) -> str:
    return f"{finding.what}: {finding.seen}, expected {finding.expected}"
