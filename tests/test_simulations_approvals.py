"""Three real sites, of which one has not approved, or takes its approval back in the middle: the others go on."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from studies import make_study

from client.approvals import Approvals
from client.membership import own_key
from client.site import open_site
from client.site_file import read_site
from client.site_journal import open_journal
from server.exchange import SiteReply
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.messages import Request, decode_request
from simulations.preparation.hospitals import prepare, read_hospitals
from simulations.preparation.sources import PhantomSource
from simulations.work_folder import enrol, write_site

SEED, RUN = 3, "run-1"
STUDY = make_study(
    {
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "min_training = 1": "min_training = 5",
        "validation_rounds = [1, 3]": "validation_rounds = []",
    }
)
ONE, TWO, THREE = "hospital-1", "hospital-2", "hospital-3"


class Hospitals:
    """Real sites in this process. At one of them somebody refuses the study just before a request comes in."""

    def __init__(self, folder: Path, *, site: str, before: tuple[str, int]) -> None:
        out = folder / "hospitals"
        prepare(PhantomSource(num_hospitals=3, patients_per_hospital=(20,), image_size=32), out, SEED)
        self.paths = {
            hospital.name: write_site(folder / "sites" / hospital.name, hospital, STUDY, seed=SEED)
            for hospital in read_hospitals(out).hospitals
        }
        self.roster = enrol(folder / "server", list(self.paths.values()), STUDY)
        self.running = {name: open_site(read_site(path)) for name, path in self.paths.items()}
        self.unwilling, self.before, self.refused = site, before, False
        self.got: list[tuple[str, str, int]] = []

    def known_sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.paths))

    sites = known_sites

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for site, message in requests.items():
            request = decode_request(message)[0]
            self._refuse_before(site, request)
            self.got.append((site, request.kind, getattr(request, "round", 0)))
            yield SiteReply(site=site, message=self.running[site].handle(message))

    def _refuse_before(self, site: str, request: Request) -> None:
        if site == self.unwilling and (request.kind, getattr(request, "round", 0)) == self.before:
            file = read_site(self.paths[site])
            journal = open_journal(file, own_key(file))
            Approvals(journal, file.state).decide(STUDY, "refused", reason="not any more", by="somebody")
            self.refused = True


def result_of(folder: Path, hospitals: Hospitals) -> dict[str, Any]:
    checkpoint = checkpoint_path(folder / "server" / "state", RUN)
    context = RunContext(
        study=STUDY,
        run_id=RUN,
        exchange=hospitals,
        federation=federation_of(STUDY, RUN, hospitals.roster),
        checkpoint=checkpoint,
        patience_seconds=0.0,
    )
    run_study(context, engine="local")
    return json.loads((checkpoint.parent / "result.json").read_text(encoding="utf-8"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("before", "with_it"),
    [(("open", 0), 0), (("advertise", 0), 0), (("train", 2), 1), (("confirm", 2), 2), (("unmask", 2), 2)],
    ids=["never approved", "before the setup", "before a round", "before confirming", "before unmasking"],
)
def test_the_run_finishes_without_a_site_whose_approval_is_gone(
    tmp_path: Path, before: tuple[str, int], with_it: int
) -> None:
    hospitals = Hospitals(tmp_path, site=TWO, before=before)
    result = result_of(tmp_path, hospitals)
    assert hospitals.refused
    assert [entry["burned"] for entry in result["rounds"]] == [None] * 3
    assert [entry["survivors"] for entry in result["rounds"]] == [
        [ONE, TWO, THREE] if number <= with_it else [ONE, THREE] for number in (1, 2, 3)
    ]
    assert result["test"]["auroc"] is not None
    entry = next(site for site in result["sites"] if site["name"] == TWO)
    assert entry["refused"] == "study-not-approved"
    refused_at = next(index for index, one in enumerate(hospitals.got) if one == (TWO, *before))
    later = [one for one in hospitals.got[refused_at + 1 :] if one[0] == TWO]
    assert len(later) <= 1, "a site that refused for good is not asked again"
