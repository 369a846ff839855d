"""Which model a result is of: one, or the mean of several, as DICOM names devices and algorithms."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from pydicom.uid import UID

from shared_models.model_card import NOT_A_DEVICE
from shared_models.model_file import TrainedModel
from shared_models.study import Study
from shared_models.tasks.binary import BinaryTable

MAKER = "Collegium"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "collegium.models")
_LONGEST = 64
"""Characters of a value of representation LO."""


def new_uid() -> UID:
    """A UID of a random UUID. Source: DICOM PS3.5 section B.2."""
    return UID(f"2.25.{uuid.uuid4().int}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """One model, or several that are asked together.

    Attributes:
        study: which the model was trained in; of several that of the first.
        digest: SHA-256, hexadecimal, of card and weights; of several that of all digests, sorted.
        parameters: sentences on each model, the digests among them.
    """

    study: Study
    num_models: int
    digest: str
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, models: Sequence[TrainedModel]) -> "ModelIdentity":
        """The identity of models that are asked together, at least one."""
        digests = sorted(one.digest for one in models)
        together = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return cls(
            study=models[0].study,
            num_models=len(models),
            digest=digests[0] if len(models) == 1 else together,
            parameters=(
                *(line for one in models for line in _told(one)),
                f"asked by Collegium {version('collegium')}",
            ),
        )

    @property
    def name(self) -> str:
        """The study's name, or how many models of it; at most 64 characters."""
        several = f"{self.num_models} models of " if self.num_models > 1 else ""
        return f"{several}{self.study.name}"[:_LONGEST]

    @property
    def uid(self) -> UID:
        """Of the device that a model is; the same wherever it is used."""
        return UID(f"2.25.{uuid.uuid5(_NAMESPACE, self.digest).int}")

    @property
    def software(self) -> str:
        """What runs the model."""
        return f"Collegium {version('collegium')}"

    @property
    def in_short(self) -> str:
        """One line that says which model it is, and what it is not."""
        return f"{NOT_A_DEVICE}. {self.name}, model {self.digest}."

    def in_words(self, output: str) -> str:
        """What an output is the probability of; at most 64 characters."""
        table = self.study.task
        if isinstance(table, BinaryTable) and output == "positive":
            return f"{table.label}: {', '.join(table.positive)}"[:_LONGEST]
        return output[:_LONGEST]

    def series_description(self, what: str) -> str:
        """At most 64 characters; it begins with what a result is not for."""
        return f"RESEARCH {what}, {self.name}"[:_LONGEST]


def _told(model: TrainedModel) -> tuple[str, ...]:
    card = model.card
    return (
        f"model SHA-256 {model.digest}",
        f"study {card.study.name}, SHA-256 {card.study_hash}",
        f"run {card.run_id}, round {card.kept_round} of {card.rounds}",
        f"architecture {card.study.model.architecture}",
        "trained with " + ", ".join(f"{name} {number}" for name, number in sorted(card.versions.items())),
    )
