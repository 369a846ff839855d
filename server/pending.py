"""The round that is under way, on disk: a server that is started again goes on where it was.

Sites answer an identical request with the identical reply, so that each exchange can be repeated. What must not
change between two attempts is written down before sites hear of it: the batch, who is asked, who survived, whose
confirmations are shown. Nothing of it is secret: the server holds no secret.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from privacy.secure_aggregation.context import Federation
from privacy.secure_aggregation.masks import Vector
from privacy.secure_aggregation.messages import Confirmation, Survivor
from privacy.secure_aggregation.refusals import SecureAggregationError
from privacy.secure_aggregation.server_setup import Batch
from server.checkpoint import CheckpointError, write_atomically
from shared_models.configuration import Frozen

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$")]


class Attempt(Frozen):
    """What was begun last; neither number is ever used again for anything else.

    Attributes:
        batch: number of the last batch.
        round: number of the last round that sites were asked for; 0 before the first.
        round_set: positions of the sites that were asked.
        asked: their names.
        survivors: position → hash of the masked vector and the site's signature over it; None before all arrived.
        confirmations: position → signature; None before enough arrived.
    """

    batch: int = 0
    round: int = 0
    round_set: tuple[int, ...] = ()
    asked: tuple[str, ...] = ()
    survivors: dict[int, tuple[Hex, Hex]] | None = None
    confirmations: dict[int, Hex] | None = None


@dataclass(frozen=True, slots=True)
class PendingRound:
    """The files beside a run's checkpoint that belong to the round under way.

    Args:
        folder: of the run.
    """

    folder: Path

    @property
    def _attempt(self) -> Path:
        return self.folder / "attempt.json"

    @property
    def _batch(self) -> Path:
        return self.folder / "batch.bin"

    @property
    def _sum(self) -> Path:
        return self.folder / "masked-sum.bin"

    def read(self) -> Attempt:
        """Return the last attempt. Raises CheckpointError where the file is damaged."""
        try:
            return Attempt.model_validate(json.loads(self._attempt.read_bytes()), strict=False)
        except FileNotFoundError:
            return Attempt()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._attempt}: cannot be read ({type(error).__name__})") from error

    def begin(self, attempt: Attempt) -> None:
        """Record what is about to begin, before sites hear of it."""
        write_atomically(self._attempt, attempt.model_dump_json().encode())

    def survived(self, attempt: Attempt, total: Vector, survivors: Mapping[int, Survivor]) -> Attempt:
        """Record whose vectors are in the masked sum *total*, before the sites confirm it."""
        write_atomically(self._sum, total.astype("<u4", copy=False).tobytes())
        entries = {
            position: (entry.vector_hash.hex(), entry.signature.hex())
            for position, entry in survivors.items()
        }
        return self._changed(attempt, {"survivors": entries})

    def confirmed(self, attempt: Attempt, confirmations: Mapping[int, Confirmation]) -> Attempt:
        """Record whose confirmations are shown, before anybody is asked to unmask."""
        entries = {position: entry.to_bytes().hex() for position, entry in confirmations.items()}
        return self._changed(attempt, {"confirmations": entries})

    def _changed(self, attempt: Attempt, values: dict[str, object]) -> Attempt:
        changed = attempt.model_copy(update=values)
        self.begin(changed)
        return changed

    def masked_sum(self, length: int) -> Vector:
        """Return the sum that `survived` wrote. Raises CheckpointError."""
        try:
            total = np.frombuffer(self._sum.read_bytes(), dtype="<u4").astype(np.uint32)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._sum}: cannot be read ({type(error).__name__})") from error
        if total.shape != (length,):
            raise CheckpointError(f"{self._sum}: has {total.size} entries, {length} expected")
        return total

    def keep(self, batch: Batch) -> None:
        """Record the batch, once its setup is done."""
        write_atomically(self._batch, batch.to_bytes())

    def batch(self, federation: Federation) -> Batch | None:
        """Return the batch that was kept last; None where there is none that can be used."""
        try:
            return Batch.from_bytes(self._batch.read_bytes(), federation)
        except (OSError, SecureAggregationError):
            return None

    def forget_batch(self) -> None:
        """Remove the batch: all sites were started again, and what they remembered of it is lost.

        A round that was under way is then burned at once instead of by their refusals, and none else is lost.
        """
        self._batch.unlink(missing_ok=True)


def survivors_of(attempt: Attempt) -> dict[int, Survivor] | None:
    """The survivors that an attempt recorded."""
    if attempt.survivors is None:
        return None
    return {
        position: Survivor(vector_hash=bytes.fromhex(entry[0]), signature=bytes.fromhex(entry[1]))
        for position, entry in sorted(attempt.survivors.items())
    }


def confirmations_of(attempt: Attempt) -> dict[int, Confirmation] | None:
    """The confirmations that an attempt recorded."""
    if attempt.confirmations is None:
        return None
    return {
        position: Confirmation.from_bytes(bytes.fromhex(message))
        for position, message in sorted(attempt.confirmations.items())
    }
