"""Below what a hospital does not train: what its own policy says, and what the study says."""

from client.dicom_index import Index
from client.index_report import INDEX_NAME
from client.ingestion import DataRefused
from client.roles import Role
from client.site_file import Policy
from shared_models.study import Study


def floor_refusals(index: Index, study: Study, policy: Policy) -> tuple[str, ...]:
    """Every reason for which the site does not train on these data; none where it would.

    The sentences are for the site's own operator: they hold counts, and must not leave the site.
    """
    allowed = [
        ("policy.max_unusable_share", policy.max_unusable_share),
        ("the study's quality.max_unusable_share", study.quality.max_unusable_share),
    ]
    found = [
        f"{len(index.left_out)} of {index.num_files} files cannot be used ({index.unusable_share:.1%}), "
        f"{whose} allows {most:.1%}: {_main_reasons(index)}."
        for whose, most in allowed
        if most is not None and index.unusable_share > most
    ]
    num_patients = index.num_patients(Role.TRAIN)
    needed = [
        ("policy.min_patients", policy.min_patients),
        ("the study's patients.min_training", study.patients.min_training),
    ]
    found += [
        f"{num_patients} patients could train, {whose} asks for {least}."
        for whose, least in needed
        if num_patients < least
    ]
    least = study.quality.min_patients_per_class
    found += [
        f"{number} {name} patients could train, the study's quality.min_patients_per_class asks for {least}."
        for name, number in index.num_patients_by_class(Role.TRAIN).items()
        if number < least
    ]
    return tuple(found)


def check_floors(index: Index, study: Study, policy: Policy) -> None:
    """Refuse data on which the site does not train. Raises DataRefused, with every reason at once."""
    if refusals := floor_refusals(index, study, policy):
        raise DataRefused(
            " ".join(
                [*refusals, f"See collegium-client index and {INDEX_NAME} in the state folder for each file."]
            )
        )


def _main_reasons(index: Index) -> str:
    return "; ".join(f"{number} × {reason.code}" for reason, number in index.left_out_reasons[:3])
