"""What a run sends and receives at each site, from the messages themselves, before anybody trains.

Every message is made with its real encoder, zeros in the place of keys, shares and weights: their lengths follow from
the study. Assumed is that all sites answer and no round is burned. What TLS and Flower add is not counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from privacy.secure_aggregation.context import HASH_BYTES, SIGNATURE_BYTES
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    Confirmation,
    ConfirmRequest,
    Dealing,
    EscrowReply,
    EscrowRequest,
    ReceivedDealing,
    ShareReply,
    ShareRequest,
    Survivor,
    UnmaskReply,
    UnmaskRequest,
    bundle_bytes,
    escrow_bytes,
)
from privacy.secure_aggregation.sealing import PUBLIC_KEY_BYTES
from privacy.secure_aggregation.shamir import ELEMENT_BYTES
from shared_models.layouts import carries_average, final_layout, training_layout
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    Open,
    Request,
    Share,
    Train,
    Unmask,
    encode,
)
from shared_models.study import Study

WITH_VALIDATION = "train, with validation"
_KINDS = (
    "open",
    "advertise",
    "share",
    "escrow",
    "train",
    WITH_VALIDATION,
    "evaluate",
    "confirm",
    "unmask",
    "close",
)
_SIGNATURE, _HASH = bytes(SIGNATURE_BYTES), bytes(HASH_BYTES)
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """One exchange of one site: a request and its answer, in bytes."""

    kind: str
    down: int
    up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """All exchanges of one kind of one site in a run.

    Attributes:
        kind: of the request; training that carries validation figures is a kind of its own.
        times: how often.
        most_down, most_up: bytes of the largest request and answer.
        down, up: bytes of all of them together.
    """

    kind: str
    times: int
    most_down: int
    most_up: int
    down: int
    up: int


def run_traffic(
    study: Study, *, names: Sequence[str], num_weights: int, run_id: str | None = None
) -> tuple[Traffic, ...]:
    """Return what one site sends and receives in a whole run, by kind, in the order of a round.

    Args:
        study: that is run.
        names: of all sites; they travel in the cohort's list.
        num_weights: of the model.
        run_id: where it is known; else one of the usual length.
    """
    run = _Run(study, tuple(sorted(names)), num_weights, run_id or f"{study.name}-20260101-000000")
    return tuple(_summed(run.exchanges()))


def num_batches(study: Study) -> int:
    """Setups of a run: one for each ``rounds_per_batch`` rounds, the final test being the last round."""
    return -(-study.test_round // study.aggregation.rounds_per_batch)


def _summed(exchanges: Iterable[Exchanged]) -> Iterator[Traffic]:
    by_kind: dict[str, list[Exchanged]] = {kind: [] for kind in _KINDS}
    for one in exchanges:
        by_kind[one.kind].append(one)
    for kind, all_of_it in by_kind.items():
        if not all_of_it:
            continue
        yield Traffic(
            kind=kind,
            times=len(all_of_it),
            most_down=max(one.down for one in all_of_it),
            most_up=max(one.up for one in all_of_it),
            down=sum(one.down for one in all_of_it),
            up=sum(one.up for one in all_of_it),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    study: Study
    names: tuple[str, ...]
    num_weights: int
    run_id: str

    def exchanges(self) -> Iterator[Exchanged]:
        """All exchanges of one site, in their order."""
        opening = Open(run_id=self.run_id, study_hash=_NO_HASH, manifest_hash=_NO_HASH, roster_hash=_NO_HASH)
        yield self._exchanged(opening, down=0, up=0)
        per_batch = self.study.aggregation.rounds_per_batch
        for number in range(1, self.study.test_round + 1):
            if (number - 1) % per_batch == 0:
                yield from self._setup(number)
            yield from self._round(number)
        yield self._exchanged(Close(run_id=self.run_id, study_hash=_NO_HASH), down=0, up=0)

    @property
    def _positions(self) -> tuple[int, ...]:
        return tuple(range(len(self.names)))

    def _setup(self, first_round: int) -> Iterator[Exchanged]:
        run, study = self.run_id, _NO_HASH
        rounds, members, commitments = (
            self.study.aggregation.rounds_per_batch,
            self._positions,
            2 * HASH_BYTES,
        )
        request = AdvertiseRequest(number=1, first_round=first_round, roster_hash=_HASH, cohort=self.names)
        advertisement = Advertisement(public_key=bytes(PUBLIC_KEY_BYTES), signature=_SIGNATURE)
        yield self._exchanged(
            Advertise(run_id=run, study_hash=study), request.to_bytes(), advertisement.to_bytes()
        )

        dealing = Dealing(sealed=bytes(bundle_bytes(rounds)), commitments=bytes(commitments * rounds))
        own = Dealing(sealed=b"", commitments=dealing.commitments)
        dealt = ShareReply(
            dealings={position: dealing if position else own for position in members},
            secret_commitments=bytes(commitments * rounds),
            signature=_SIGNATURE,
        )
        asked = ShareRequest(advertisements=dict.fromkeys(members, advertisement))
        yield self._exchanged(Share(run_id=run, study_hash=study), asked.to_bytes(), dealt.to_bytes())

        received = ReceivedDealing(
            dealing=dealing,
            digests=(_HASH,) * len(members),
            secrets_digest=_HASH,
            signature=_SIGNATURE,
        )
        peers = members[1:]
        escrowed = EscrowReply(
            accepted=peers,
            escrows=(bytes(escrow_bytes(len(members))),) * rounds,
            commitments=bytes(HASH_BYTES * len(members) * rounds),
            signature=_SIGNATURE,
        )
        given = EscrowRequest(received=dict.fromkeys(peers, received))
        yield self._exchanged(Escrow(run_id=run, study_hash=study), given.to_bytes(), escrowed.to_bytes())

    def _round(self, number: int) -> Iterator[Exchanged]:
        run, study = self.run_id, _NO_HASH
        model, members = 4 * self.num_weights, self._positions
        if number == self.study.test_round:
            request: Train | Evaluate = Evaluate(
                run_id=run, study_hash=study, round=number, round_set=members
            )
            layout, kind = final_layout(self.study), "evaluate"
        else:
            request = Train(run_id=run, study_hash=study, round=number, round_set=members)
            layout = training_layout(self.study, number, num_weights=self.num_weights)
            kind = WITH_VALIDATION if layout.num_statistics else "train"
            model *= 2 if carries_average(self.study, number) else 1
        yield self._exchanged(request, model, SIGNATURE_BYTES + 4 * (layout.length + 1), kind=kind)

        survivor = Survivor(vector_hash=_HASH, signature=_SIGNATURE)
        confirmation = Confirmation(journal_head=_HASH, signature=_SIGNATURE)
        told = ConfirmRequest(survivors=dict.fromkeys(members, survivor))
        yield self._exchanged(
            Confirm(run_id=run, study_hash=study, round=number), told.to_bytes(), confirmation.to_bytes()
        )

        shown = UnmaskRequest(confirmations=dict.fromkeys(members, confirmation))
        shares = UnmaskReply(shares=(bytes(ELEMENT_BYTES),) * len(members))
        yield self._exchanged(
            Unmask(run_id=run, study_hash=study, round=number), shown.to_bytes(), shares.to_bytes()
        )

    def _exchanged(
        self, request: Request, down: bytes | int, up: bytes | int, *, kind: str | None = None
    ) -> Exchanged:
        """With headers; *down* and *up* are the payloads, or their lengths where they are large."""
        number = getattr(request, "round", 0)
        answer = Answer(to=request.kind, run_id=self.run_id, round=number)
        return Exchanged(
            kind=kind or request.kind,
            down=len(encode(request)) + (down if isinstance(down, int) else len(down)),
            up=len(encode(answer)) + (up if isinstance(up, int) else len(up)),
        )
