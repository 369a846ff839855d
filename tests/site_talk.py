"""A server's side of a conversation with one site: the real protocol, step by step, with peers who train nothing.

The site's two peers send zeros, so that the sum that is opened is what the site would have sent.
"""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journals import IDENTITY, journal_in
from secure_sites import Consortium

from client.approvals import Approvals
from client.cache_folder import CACHE_NAME
from client.ingestion import ingest
from client.secret import SECRET_NAME, SiteSecret
from client.secure_session import SecureSession
from client.site import Site
from client.site_file import SiteFile
from privacy.ledger import Ledger
from privacy.secure_aggregation import server_setup
from privacy.secure_aggregation.masks import Vector
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    Confirmation,
    ConfirmRequest,
    EscrowReply,
    EscrowRequest,
    MaskedVector,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.server_round import MaskedSum
from privacy.secure_aggregation.server_setup import Batch
from privacy.secure_aggregation.terms import Terms
from server.run import federation_of
from shared_models.architectures import build_model
from shared_models.identity_keys import identity_line
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import Manifest, flatten
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    Open,
    Refusal,
    Request,
    Share,
    Train,
    Unmask,
    decode_reply,
    encode,
)
from shared_models.node_keys import new_node_key
from shared_models.roster import Roster, RosterSite
from shared_models.study import Study
from shared_models.vector import VectorLayout

RUN = "run-1"
ALL = (0, 1, 2)
ME, NAME = 0, "site-00"


class Handles(Protocol):
    """A site, or what speaks with one."""

    def handle(self, message: bytes) -> bytes: ...


class WithSite(Consortium):
    """The site under test sits at position 0 and is asked over its messages; its peers are the protocol's steps."""

    def __init__(self, talk: "Conversation") -> None:
        super().__init__(
            terms=Terms.of(talk.study.aggregation),
            num_sites=len(ALL),
            run_id=talk.run_id,
            identities=[IDENTITY, *(Ed25519PrivateKey.generate() for _ in ALL[1:])],
        )
        self.talk = talk

    def know(self, roster: Roster) -> None:
        """All sites are in the run of the conversation, by this roster."""
        self.federation = federation_of(self.talk.study, self.talk.run_id, roster)
        self.members = [replace(member, federation=self.federation) for member in self.members]

    def advertise_of(self, position: int, request: AdvertiseRequest) -> Advertisement:
        if position != ME:
            return super().advertise_of(position, request)
        return Advertisement.from_bytes(self.talk.answered(Advertise, request.to_bytes()))

    def share_of(self, position: int, request: ShareRequest) -> ShareReply:
        if position != ME:
            return super().share_of(position, request)
        return ShareReply.from_bytes(
            self.talk.answered(Share, request.to_bytes()),
            dealer=ME,
            members=ALL,
            num_rounds=self.terms.rounds_per_batch,
        )

    def escrow_of(self, position: int, request: EscrowRequest) -> EscrowReply:
        if position != ME:
            return super().escrow_of(position, request)
        return EscrowReply.from_bytes(
            self.talk.answered(Escrow, request.to_bytes()),
            members=ALL,
            num_rounds=self.terms.rounds_per_batch,
        )

    def confirm_of(self, position: int, request: ConfirmRequest) -> Confirmation:
        if position != ME:
            return super().confirm_of(position, request)
        return Confirmation.from_bytes(
            self.talk.answered(Confirm, request.to_bytes(), round=self.talk.number)
        )

    def unmask_of(self, position: int, request: UnmaskRequest) -> UnmaskReply:
        if position != ME:
            return super().unmask_of(position, request)
        reply = self.talk.answered(Unmask, request.to_bytes(), round=self.talk.number)
        return UnmaskReply.from_bytes(reply, num_shares=len(self.talk.round_set))


_READ: dict[tuple[Path, str], Path] = {}
"""State folders in which images were read once, by the images' folder and what the study wants of them."""


def read_before(file: SiteFile, study: Study) -> None:
    """Give a new state folder what reading the images leaves there, for tests that are about what comes after."""
    wanted = (file.images.folder, study.image.model_dump_json())
    if file.state.exists():
        return
    if wanted not in _READ:
        state = file.images.folder.parent / f"read-{len(_READ)}"
        ingest(file.model_copy(update={"state": state}), study, SiteSecret.create(state))
        _READ[wanted] = state
    file.state.mkdir(parents=True, mode=0o700)
    shutil.copy2(_READ[wanted] / SECRET_NAME, file.state)
    shutil.copytree(_READ[wanted] / CACHE_NAME, file.state / CACHE_NAME)


class Conversation:
    """Sends requests to a site as a server would, and reads its replies. ``batch`` is the last that was set up."""

    def __init__(self, file: SiteFile, study: Study) -> None:
        read_before(file, study)
        self.file, self.study, self.run_id = file, study, RUN
        self.weights = flatten(build_model(study))
        self.batch: Batch | None = None
        self.num_batches, self.number, self.round_set = 0, 0, ALL
        self.sent, self.received = b"", b""
        self.peers = WithSite(self)
        self.roster = Roster(
            version=1,
            site=tuple(
                RosterSite(name=name, node_key=new_node_key()[1], identity_key=identity_line(key))
                for name, key in zip(self.peers.names, self.peers.identities, strict=True)
            ),
        )
        self.peers.know(self.roster)
        self.restart()

    def restart(self) -> None:
        """The agent ends, and another begins with what is on disk."""
        SiteSecret.create(self.file.state)
        journal = journal_in(self.file.state, self.peers.identities[ME], site=NAME)
        approvals = Approvals(journal, self.file.state)
        if approvals.last(self.study.hash) is None:
            approvals.decide(self.study, "approved", by="somebody")
        self.site: Handles = Site(
            self.file, identity=self.peers.identities[ME], roster=self.roster, journal=journal
        )

    @property
    def session(self) -> SecureSession:
        assert isinstance(self.site, Site)
        assert self.site._session is not None
        return self.site._session

    @property
    def ledger(self) -> Ledger:
        return Ledger(journal_in(self.file.state, self.peers.identities[ME]))

    def header(self, kind: type[Request], **values: Any) -> Request:
        return kind(run_id=self.run_id, study_hash=self.study.hash, **values)

    def ask(self, request: Request, payload: bytes = b"") -> tuple[Answer | Refusal, bytes]:
        return decode_reply(self.site.handle(encode(request, payload)))

    def answered(self, kind: type[Request], payload: bytes, **values: Any) -> bytes:
        header = self.header(kind, **values)
        reply, found = self.ask(header, payload)
        assert reply == Answer(to=header.kind, run_id=self.run_id, round=values.get("round", 0))
        return found

    def open(self, run_id: str = RUN) -> Answer | Refusal:
        self.run_id = run_id
        self.peers.know(self.roster)
        return self.ask(self.open_header())[0]

    def open_header(self) -> Request:
        manifest = Manifest.of(build_model(self.study)).hash
        return self.header(Open, manifest_hash=manifest, roster_hash=self.roster.hash.hex())

    # The setup of a batch.

    def new_batch(self, *, first_round: int) -> server_setup.BatchContext:
        self.num_batches += 1
        return self.peers.context(number=self.num_batches, first_round=first_round)

    def advertise(self, *, first_round: int) -> tuple[Answer | Refusal, bytes]:
        """The first step only, and only of the site under test."""
        request = server_setup.advertise_request(self.new_batch(first_round=first_round))
        return self.ask(self.header(Advertise), request.to_bytes())

    def prepare(self, *, first_round: int = 1) -> None:
        """The whole setup."""
        advertising = self.peers.advertise(self.new_batch(first_round=first_round))
        shares = self.peers.share(advertising)
        self.batch = server_setup.finish_setup(advertising, shares, self.peers.escrow(advertising, shares))

    # A round.

    def train(
        self, number: int, *, round_set: tuple[int, ...] = ALL, reductions: int = 0
    ) -> tuple[Answer | Refusal, bytes]:
        return self._vector(Train, number, round_set, reductions=reductions)

    def evaluate(self, number: int | None = None) -> tuple[Answer | Refusal, bytes]:
        return self._vector(Evaluate, number or self.study.test_round, ALL)

    def _vector(
        self, kind: type[Request], number: int, round_set: tuple[int, ...], **values: int
    ) -> tuple[Answer | Refusal, bytes]:
        message = encode(
            self.header(kind, round=number, round_set=round_set, **values), self.weights.tobytes()
        )
        reply, payload = decode_reply(self.site.handle(message))
        if isinstance(reply, Answer):
            assert reply.round == number
            self.number, self.round_set, self.sent, self.received = number, round_set, message, payload
        return reply, payload

    @property
    def layout(self) -> VectorLayout:
        """Of the last vector."""
        if self.number == self.study.test_round:
            return final_layout(self.study)
        return training_layout(self.study, self.number, num_weights=len(self.weights))

    def collected(self) -> MaskedSum:
        """The masked sum of the last round: the site's vector, and zeros of its peers."""
        assert self.batch is not None
        request_hash = hashlib.sha256(self.sent).digest()
        about = self.peers.about(
            self.batch,
            number=self.number,
            length=self.layout.length,
            request_hash=request_hash,
            round_set=self.round_set,
        )
        total = MaskedSum(about)
        total.fold(ME, MaskedVector.from_bytes(self.received, length=about.length))
        for peer in self.round_set[1:]:
            nothing = np.zeros(about.length, dtype=np.uint32)
            total.fold(peer, self.peers.upload(peer, about, request_hash, nothing))
        return total

    def opened(self) -> Vector:
        """The sum of the last round, confirmed and opened by all."""
        total = self.collected()
        return self.peers.unmask(total, self.peers.confirm(total))

    def close(self) -> Answer | Refusal:
        return self.ask(self.header(Close))[0]
