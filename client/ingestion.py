"""From a hospital's folder to tensors in one pass: index, decode, prepare, and put together by patient."""

from collections.abc import Collection
from dataclasses import dataclass

from client.decoding import DecodingWorker
from client.dicom_index import Index, Progress, build_index
from client.index_report import INDEX_NAME, write_index
from client.labels import read_labels
from client.patients import PatientSet, gather_patients
from client.preparation import Plane
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import Policy, SiteFile
from shared_models.study import Study


class DataRefused(Exception):
    """The site does not train on its data as they are.

    The message is for the site's own operator. It holds counts of patients and files, and must not leave the site.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """A hospital's data for one study."""

    index: Index
    patients: dict[Role, PatientSet]


def ingest(
    site: SiteFile,
    study: Study,
    secret: SiteSecret,
    *,
    withdrawn: Collection[str] = (),
    progress: Progress = lambda done, total: None,
) -> Ingested:
    """Read the hospital's images and labels and write the index to the state folder.

    Files are decoded in a process of its own. The index tells of all of them, those whose pixel data cannot be
    decoded included.

    Args:
        site: where images, labels and state are.
        study: what is wanted of them.
        secret: makes pseudonyms and roles.
        withdrawn: pseudonyms of patients who are left out.
        progress: called with files done and files in all.

    Returns:
        The index, and one `PatientSet` for each role, possibly of no patients.

    Raises:
        LabelsError: the labels file as a whole cannot be used.
        DataRefused: the images folder cannot be listed.
        RuntimeError: the process that decodes does not start.
    """
    labels = read_labels(site.labels, study)
    prepared: dict[str, Plane] = {}
    try:
        with DecodingWorker() as worker:
            index = build_index(
                site.images.folder,
                labels,
                study,
                secret,
                key=site.labels.key,
                prepare=worker.prepare,
                exclude=site.labels.file,
                withdrawn=withdrawn,
                keep=prepared.__setitem__,
                progress=progress,
            )
    except OSError as error:
        raise DataRefused(
            f"{site.images.folder}: cannot be listed ({error.strerror}); check images.folder in site.toml"
        ) from error
    write_index(index, site.state, study_hash=study.hash)
    return Ingested(index=index, patients=gather_patients(index, prepared, study.image))


def check_policy(index: Index, policy: Policy) -> None:
    """Refuse data that the site's policy does not let train. Raises DataRefused, with every reason at once."""
    problems = []
    if index.unusable_share > policy.max_unusable_share:
        most = "; ".join(f"{number} × {reason.code}" for reason, number in index.left_out_reasons[:3])
        problems.append(
            f"{len(index.left_out)} of {index.num_files} files cannot be used ({index.unusable_share:.1%}), "
            f"policy.max_unusable_share allows {policy.max_unusable_share:.1%}: {most}."
        )
    if (num_patients := index.num_patients(Role.TRAIN)) < policy.min_patients:
        problems.append(
            f"{num_patients} patients could train, policy.min_patients asks for {policy.min_patients}."
        )
    if problems:
        raise DataRefused(
            " ".join(
                [*problems, f"See collegium-client index and {INDEX_NAME} in the state folder for each file."]
            )
        )
