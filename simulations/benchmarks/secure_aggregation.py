"""``secure-aggregation``: its steps beside Flower's own SecAgg+, all sites and the server in one process.

Ours are the steps of `privacy.secure_aggregation`, with every message passed as bytes. Flower's are the functions of
its client mod and the stages of its `SecAggPlusWorkflow`, as installed; both on the complete graph, where every site
shares a mask with every other.
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarray_to_bytes,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.compat.common import recorddict_compat
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from privacy.secure_aggregation import server_setup, site_round, site_setup
from privacy.secure_aggregation.context import BatchContext, Federation
from privacy.secure_aggregation.masks import Vector, add_mask, subtract_mask
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
from privacy.secure_aggregation.server_round import MaskedSum, Round
from privacy.secure_aggregation.server_setup import Batch
from privacy.secure_aggregation.site_setup import History, Membership
from privacy.secure_aggregation.terms import Terms
from shared_models.vector import VectorLayout
from simulations.benchmarks.memory import traced_peak_mib
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import Samples, converted, interleaved

BASELINE = "Flower SecAgg+"
OURS = "ours"
OURS_OF_BATCH = "ours / rounds of a batch"
MAX_WEIGHT = 1000
TARGET_SITES = 5
CLIPPING, QUANTIZATION, MODULUS = 8.0, 1 << 22, 1 << 32
"""Flower's defaults."""

IN_A_ROW = 5
"""Calls for one sample of what is short: a site adds its masks one after the other."""

ROUNDS_PER_BATCH = 20
SMALL_ROUND, SERVER_ROUND, VANISHED_ROUND = 17, 18, 19
"""Rounds of the batch; those before are timed at one site."""

Update = NDArray[np.float64]


def measure(quick: bool) -> tuple[Row, ...]:
    """Time of a site and of the server, bytes, and the server's memory, for growing numbers of sites."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    num_weights = 10_000 if quick else 1_000_000
    update = np.random.default_rng(0).normal(0.0, 0.01, num_weights)
    layout = VectorLayout(
        num_weights=num_weights, num_statistics=0, num_sites_max=100, update_bound=1.0, max_weight=MAX_WEIGHT
    )
    rows = [*_one_mask(layout, quick=quick), *_masking_only(layout, update, quick=quick)]
    for num_sites in (3, 5) if quick else (3, TARGET_SITES, 10, 50, 100):
        consortium = Consortium(num_sites, layout)
        node = FlowerNode(num_sites, update.astype(np.float32))
        rows += _site(consortium, node, update, quick=quick)
        if num_sites in ((3,) if quick else (10, 100)):
            rows += _server(consortium, node, update, quick=quick)
    return tuple(rows)


# What is measured


def _one_mask(layout: VectorLayout, *, quick: bool) -> tuple[Row, ...]:
    vector = np.zeros(layout.length, dtype=np.uint32)
    key = os.urandom(32)
    work = {
        BASELINE: lambda: pseudo_rand_gen(key, MODULUS, [(layout.length,)]),
        OURS: lambda: add_mask(vector, key),
    }
    seconds = interleaved(work, repetitions=3 if quick else 21, calls=IN_A_ROW)
    return _milliseconds(f"one mask of {layout.num_weights:,} parameters", seconds)


def _masking_only(layout: VectorLayout, update: Update, *, quick: bool) -> tuple[Row, ...]:
    """Quantising and the masks of five sites: without keys, hash, signature and what makes bytes of it."""
    keys = [os.urandom(32) for _ in range(TARGET_SITES)]
    single = [update.astype(np.float32)]

    def flower() -> None:
        entries = quantize(parameters_multiply(single, 1.0), CLIPPING, QUANTIZATION)
        entries = factor_combine(QUANTIZATION, entries)
        shapes = [entry.shape for entry in entries]
        for key in keys:
            entries = parameters_addition(entries, pseudo_rand_gen(key, MODULUS, shapes))
        parameters_mod(entries, MODULUS)

    def ours() -> None:
        vector = _encoded(layout, update)
        for index, key in enumerate(keys):
            (subtract_mask if index % 2 else add_mask)(vector, key)

    work = {BASELINE: flower, OURS: ours}
    seconds = interleaved(work, repetitions=3 if quick else 21, calls=IN_A_ROW)
    return _milliseconds(f"{TARGET_SITES} sites: quantise and {TARGET_SITES} masks only", seconds)


def _site(consortium: "Consortium", node: "FlowerNode", update: Update, *, quick: bool) -> Iterator[Row]:
    """The three parts of a site's work, and its bytes."""
    num_sites, layout = consortium.num_sites, consortium.layout
    case, me, setup = f"{num_sites} sites", num_sites // 2, consortium.tally
    many = not quick and num_sites <= 10
    flower_setup = [_timed(node.set_up) for _ in range(9 if many else 3)]
    node.receive_shares()

    numbers = count(1)
    work: dict[str, Callable[[], object]] = {
        BASELINE: node.masked,
        OURS: lambda: consortium.upload(
            me, consortium.about(next(numbers), layout.length), _encoded(layout, update)
        ),
    }
    seconds = interleaved(work, repetitions=15 if many else 3 if quick or num_sites == 100 else 5)
    yield from _milliseconds(f"{case}: train step", seconds)

    consortium.tally = tally = Tally(num_sites)
    about, entry = consortium.about(SMALL_ROUND, 1), np.ones(1, dtype=np.uint32)
    consortium.answers(about, {site: consortium.upload(site, about, entry) for site in about.round_set})
    small = [_timed(node.unmask) for _ in range(9 if many else 3)]
    yield from _milliseconds(
        f"{case}: confirm and unmask", {BASELINE: tuple(small), OURS: tuple(tally.seconds)}
    )
    yield from _milliseconds(
        f"{case}: setup",
        {
            BASELINE: tuple(flower_setup),
            OURS: tuple(setup.seconds),
            OURS_OF_BATCH: tuple(value / ROUNDS_PER_BATCH for value in setup.seconds),
        },
    )
    ours = setup.up[me] + setup.down[me]
    yield from _once(
        f"{case}: setup, up and down",
        "bytes",
        {BASELINE: node.setup_bytes(), OURS: ours, OURS_OF_BATCH: ours / ROUNDS_PER_BATCH},
    )
    vector = MaskedVector(signature=bytes(64), vector=np.zeros(layout.length + 1, dtype=np.uint32))
    of_round = len(vector.to_bytes()) + tally.up[me], 4 * layout.num_weights + tally.down[me]
    for way, flower, own in zip(("up", "down"), node.round_bytes(), of_round, strict=True):
        values = {BASELINE: flower / layout.num_weights, OURS: own / layout.num_weights}
        yield from _once(f"{case}: {way}, a parameter", "bytes", values)


def _server(consortium: "Consortium", node: "FlowerNode", update: Update, *, quick: bool) -> Iterator[Row]:
    """The server's time and memory, with all sites and with the first one vanished before its vector arrived."""
    num_sites, layout = consortium.num_sites, consortium.layout
    vector = _encoded(layout, update)
    for vanished, number in enumerate((SERVER_ROUND, VANISHED_ROUND)):
        about = consortium.about(number, layout.length)
        uploads = {site: consortium.upload(site, about, vector) for site in about.round_set[vanished:]}
        answers = consortium.answers(about, uploads)
        samples: dict[str, list[float]] = {BASELINE: [], OURS: []}
        for repetition in range(3):
            if repetition == 0 or num_sites <= 10:  # one takes minutes for a hundred sites
                samples[BASELINE].append(_timed(node.server(vanished=vanished)))
            samples[OURS].append(_timed(_serving(about, uploads, answers, layout)))
        words = f"{num_sites} sites, {'one vanished' if vanished else 'all there'}: server"
        yield from _milliseconds(words, {name: tuple(values) for name, values in samples.items()})

        memory = {
            BASELINE: traced_peak_mib(node.server(vanished=vanished, fold_only=True)),
            OURS: traced_peak_mib(_serving(about, uploads, answers)),
        }
        yield from _once(f"{words}, peak memory", "MiB", memory)


# Ours


class Tally:
    """What the steps of each site took: seconds, bytes that came down to it, bytes that went up."""

    def __init__(self, num_sites: int) -> None:
        self.seconds = [0.0] * num_sites
        self.down = [0] * num_sites
        self.up = [0] * num_sites


Answers = tuple[dict[int, bytes], dict[int, bytes]]
"""Confirmations and shares, by position."""


class Consortium:
    """All sites of one batch, set up. ``tally`` counts what their steps take, from request to reply as bytes."""

    def __init__(self, num_sites: int, layout: VectorLayout) -> None:
        self.num_sites, self.layout, self.tally = num_sites, layout, Tally(num_sites)
        names = tuple(f"site-{number:03}" for number in range(num_sites))
        keys = [Ed25519PrivateKey.generate() for _ in names]
        terms = Terms(
            num_sites_max=num_sites,
            threshold=num_sites // 2 + 1,
            min_cohort=2,
            num_colluding=0,
            rounds_per_batch=ROUNDS_PER_BATCH,
        )
        public = {name: key.public_key().public_bytes_raw() for name, key in zip(names, keys, strict=True)}
        federation = Federation(
            study_hash="5" * 64, run_id="run", roster_hash=bytes(32), identities=public, terms=terms
        )
        self._context = BatchContext(federation=federation, number=1, first_round=1, cohort=names)
        self._states: dict[int, Any] = {}
        self._uploaded: dict[int, Any] = {}
        self._batch = self._set_up(
            [
                Membership(federation=federation, name=name, identity=key, floor=2)
                for name, key in zip(names, keys, strict=True)
            ]
        )

    def _set_up(self, members: list[Membership]) -> Batch:
        num_sites = self.num_sites
        sites = range(num_sites)

        def advertise(site: int, request: bytes) -> bytes:
            parsed = AdvertiseRequest.from_bytes(request)
            self._states[site], reply = site_setup.advertise(members[site], History(), parsed)
            return reply.to_bytes()

        def share(site: int, request: bytes) -> bytes:
            parsed = ShareRequest.from_bytes(request, num_sites=num_sites)
            self._states[site], reply = site_setup.share(self._states[site], parsed, randomness=os.urandom)
            return reply.to_bytes()

        def escrow(site: int, request: bytes) -> bytes:
            parsed = EscrowRequest.from_bytes(
                request, num_members=num_sites, num_sites=num_sites, num_rounds=ROUNDS_PER_BATCH
            )
            self._states[site], reply = site_setup.escrow(self._states[site], parsed)
            return reply.to_bytes()

        request = server_setup.advertise_request(self._context).to_bytes()
        advertising = server_setup.gather_advertisements(
            self._context,
            {site: Advertisement.from_bytes(self._step(site, advertise, request)) for site in sites},
        )
        members_of_batch = advertising.members
        request = advertising.request().to_bytes()
        shares = {
            site: ShareReply.from_bytes(
                self._step(site, share, request),
                dealer=site,
                members=members_of_batch,
                num_rounds=ROUNDS_PER_BATCH,
            )
            for site in sites
        }
        escrows = {
            site: EscrowReply.from_bytes(
                self._step(site, escrow, own.to_bytes()),
                members=members_of_batch,
                num_rounds=ROUNDS_PER_BATCH,
            )
            for site, own in server_setup.escrow_requests(advertising, shares).items()
        }
        return server_setup.finish_setup(advertising, shares, escrows)

    def _step(self, site: int, step: Callable[[int, bytes], bytes], request: bytes) -> bytes:
        begun = time.perf_counter()
        reply = step(site, request)
        self.tally.seconds[site] += time.perf_counter() - begun
        self.tally.down[site] += len(request)
        self.tally.up[site] += len(reply)
        return reply

    def about(self, number: int, length: int) -> Round:
        """A round with all sites; numbers must grow."""
        everyone = tuple(range(self.num_sites))
        return Round.of(self._batch, number=number, round_set=everyone, request_hash=bytes(32), length=length)

    def upload(self, site: int, about: Round, vector: Vector) -> bytes:
        """The train step after training: check the round, mask, hash, sign, make bytes. It is not in the tally."""
        self._states[site], begun = site_round.begin(
            self._states[site],
            number=about.number,
            round_set=about.round_set,
            request_hash=bytes(32),
            length=about.length,
        )
        self._uploaded[site], reply = site_round.mask(begun, vector)
        return reply.to_bytes()

    def answers(self, about: Round, uploads: Mapping[int, bytes]) -> Answers:
        """What the sites reply to the server's two requests after these vectors."""

        def confirm(site: int, request: bytes) -> bytes:
            parsed = ConfirmRequest.from_bytes(request, num_sites=self.num_sites)
            self._uploaded[site], reply = site_round.confirm(
                self._uploaded[site], parsed, journal_head=bytes(32)
            )
            return reply.to_bytes()

        def unmask(site: int, request: bytes) -> bytes:
            parsed = UnmaskRequest.from_bytes(request, num_sites=self.num_sites)
            self._uploaded[site], reply, _ = site_round.unmask(self._uploaded[site], parsed)
            return reply.to_bytes()

        total = _fold(about, uploads.items())
        request = total.confirm_request().to_bytes()
        confirmations = {site: self._step(site, confirm, request) for site in uploads}
        parsed = {site: Confirmation.from_bytes(message) for site, message in confirmations.items()}
        request = total.unmask_request(parsed).to_bytes()
        return confirmations, {site: self._step(site, unmask, request) for site in uploads}


def _fold(about: Round, uploads: Iterable[tuple[int, bytes]]) -> MaskedSum:
    total = MaskedSum(about)
    for site, message in uploads:
        total.fold(site, MaskedVector.from_bytes(message, length=about.length))
        del message  # before the next one arrives
    return total


def serve(about: Round, uploads: Iterable[tuple[int, bytes]], answers: Answers) -> Vector:
    """The server's part of a round, from the sites' bytes to the sum."""
    total = _fold(about, uploads)
    total.confirm_request().to_bytes()
    confirmations = {site: Confirmation.from_bytes(message) for site, message in answers[0].items()}
    for site, confirmation in confirmations.items():
        total.check_confirmation(site, confirmation)
    total.unmask_request(confirmations).to_bytes()
    num_shares = len(about.round_set)
    shares = {
        site: UnmaskReply.from_bytes(message, num_shares=num_shares) for site, message in answers[1].items()
    }
    for site, reply in shares.items():
        total.check_shares(site, reply)
    return total.unmasked(shares)


def _serving(
    about: Round, uploads: Mapping[int, bytes], answers: Answers, layout: VectorLayout | None = None
) -> Callable[[], object]:
    """With a *layout*, the mean as floats as well; without, each vector takes memory of its own as it arrives."""
    if layout is not None:
        return lambda: layout.decode_sum(serve(about, uploads.items(), answers))
    return lambda: serve(
        about, ((site, bytes(memoryview(message))) for site, message in uploads.items()), answers
    )


def _encoded(layout: VectorLayout, update: Update) -> Vector:
    return layout.encode(update=update, weight=MAX_WEIGHT, statistics=np.zeros(0, dtype=np.int64))


# Flower's


class FlowerNode:
    """One node of Flower's SecAgg+ whose peers have real keys, and the server's two last stages.

    The peers' shares and vectors are of the right form but not theirs: nothing that Flower does depends on their
    content, and a hundred real nodes would take many minutes.
    """

    def __init__(self, num_sites: int, update: NDArray[np.float32]) -> None:
        self._mod: Any = sys.modules[secaggplus_mod.__module__]
        self._num_sites, self._threshold = num_sites, num_sites // 2 + 1
        self._nodes = list(range(1, num_sites + 1))
        self._me = num_sites // 2 + 1
        self._parameters = ndarrays_to_parameters([update])
        self._keys = {node: (_key_pair(), _key_pair()) for node in self._nodes}
        self._state = self._mod.SecAggPlusState()
        self._state.nid = self._me
        self._settings = {
            Key.SAMPLE_NUMBER: num_sites,
            Key.SHARE_NUMBER: num_sites,
            Key.THRESHOLD: self._threshold,
            Key.CLIPPING_RANGE: CLIPPING,
            Key.TARGET_RANGE: QUANTIZATION,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(MAX_WEIGHT),
        }
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as its legacy API does

    def set_up(self) -> None:
        """Its keys and its shares for its peers, which Flower makes anew in every round."""
        self._advertised = self._mod._setup(self._state, self._settings)
        self._public = {str(node): [first[1], second[1]] for node, (first, second) in self._keys.items()}
        self._public[str(self._me)] = [self._state.pk1, self._state.pk2]
        self._shared = self._mod._share_keys(self._state, self._public)

    def receive_shares(self) -> None:
        """What its peers encrypted for it."""
        share, secret_share = self._state.rd_seed_share_dict[self._me], self._state.sk1_share_dict[self._me]
        ciphertexts, own = [], bytes_to_public_key(self._state.pk2)
        for node in (peers := [node for node in self._nodes if node != self._me]):
            key = generate_shared_key(bytes_to_private_key(self._keys[node][1][0]), own)
            ciphertexts.append(encrypt(key, share_keys_plaintext_concat(node, self._me, share, secret_share)))
        self._forwarded = {Key.CIPHERTEXT_LIST: ciphertexts, Key.SOURCE_LIST: peers}

    def masked(self) -> Any:
        """Its mod's work after training: peers' shares, quantising, masks, bytes."""
        return self._mod._collect_masked_vectors(self._state, self._forwarded, MAX_WEIGHT, self._parameters)

    def unmask(self) -> Any:
        """Its mod's last stage."""
        return self._mod._unmask(self._state, self._asked(self._nodes))

    def _asked(self, there: list[int]) -> dict[str, Any]:
        gone = [node for node in self._nodes if node not in there]
        return {Key.ACTIVE_NODE_ID_LIST: there, Key.DEAD_NODE_ID_LIST: gone}

    def setup_bytes(self) -> int:
        """Of the messages in which keys and shares travel, to it and from it."""
        down = ({Key.STAGE: Stage.SETUP, **self._settings}, self._public, self._forwarded)
        return sum(map(_config_bytes, (*down, self._advertised, self._shared)))

    def round_bytes(self) -> tuple[int, int]:
        """Up and down, of the messages with the model, the masked vector, and what unmasks it."""
        up = _content_bytes(_fit_reply(self.masked())) + _config_bytes(self.unmask())
        instructions = recorddict_compat.fitins_to_recorddict(FitIns(self._parameters, {}), True)
        return up, _content_bytes(instructions) + _config_bytes(self._asked(self._nodes))

    def server(self, *, vanished: int, fold_only: bool = False) -> Callable[[], object]:
        """Two stages of its workflow, over messages that are there at once.

        With *fold_only* the vectors arrive as messages of their own memory, and the second stage is left out: by then
        it has dropped them.
        """
        shapes = [(1,), (len(_arrays(self._parameters)[0]),)]
        payload = list(map(ndarray_to_bytes, pseudo_rand_gen(bytes(32), MODULUS, shapes)))
        there = self._nodes[vanished:]
        secrets = [self._keys[node][0][0] for node in self._nodes[:vanished]] + [os.urandom(32)]
        dealt = [create_shares(secret, self._threshold, self._num_sites) for secret in secrets]

        def send_and_receive(messages: list[Any], timeout: float | None = None) -> list[Any]:
            replies = []
            for message in messages:
                node = message.metadata.dst_node_id
                if node not in there:
                    continue
                if message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE] == Stage.UNMASK:
                    shares = [dealt[-1][node - 1] for _ in there] + [one[node - 1] for one in dealt[:-1]]
                    reply = {
                        Key.NODE_ID_LIST: there + self._nodes[:vanished],
                        Key.SHARE_LIST: shares,
                    }
                    content = _configs(reply)
                else:
                    own = [bytes(memoryview(one)) for one in payload] if fold_only else payload
                    content = _fit_reply({Key.MASKED_PARAMETERS: own})
                replies.append(Message(content, reply_to=message))
            return replies

        workflow = SecAggPlusWorkflow(self._num_sites, self._threshold, max_weight=MAX_WEIGHT)
        grid = SimpleNamespace(send_and_receive=send_and_receive)
        state, context = self._workflow_state(), _context()

        def work() -> None:
            stages = [workflow.collect_masked_vectors_stage, workflow.unmask_stage]
            for stage in stages[:1] if fold_only else stages:
                if not stage(grid, context, state):
                    raise RuntimeError("Flower's SecAgg+ halted")

        return work

    def _workflow_state(self) -> Any:
        nodes = set(self._nodes)
        return WorkflowState(
            nid_to_proxies={node: SimpleNamespace(node_id=node) for node in nodes},
            nid_to_fitins={node: RecordDict() for node in nodes},
            sampled_node_ids=set(nodes),
            active_node_ids=set(nodes),
            num_shares=self._num_sites,
            threshold=self._threshold,
            clipping_range=CLIPPING,
            quantization_range=QUANTIZATION,
            mod_range=MODULUS,
            max_weight=float(MAX_WEIGHT),
            nid_to_neighbours={node: set(nodes) for node in nodes},
            nid_to_publickeys={node: [one[1] for one in pairs] for node, pairs in self._keys.items()},
            forward_srcs={node: [] for node in nodes},
            forward_ciphertexts={node: [] for node in nodes},
        )


def _key_pair() -> tuple[bytes, bytes]:
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def _context() -> SimpleNamespace:
    """What the two stages use of Flower's context; the strategy keeps nothing."""
    strategy = SimpleNamespace(aggregate_fit=lambda number, results, failures: (None, {}))
    records = SimpleNamespace(config_records={"config": {"current_round": 1}}, array_records={})
    return SimpleNamespace(state=records, strategy=strategy)


def _arrays(parameters: Any) -> list[NDArray[np.float32]]:
    from flwr.common import parameters_to_ndarrays

    arrays: list[NDArray[np.float32]] = parameters_to_ndarrays(parameters)
    return arrays


def _configs(values: Mapping[str, Any]) -> Any:
    return RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(dict(values), False)})


def _fit_reply(values: Mapping[str, Any]) -> Any:
    """The content of the mod's reply with a masked vector: that of a fit, without its arrays, and the vector."""
    empty = FitRes(Status(Code.OK, ""), Parameters([], "numpy.ndarray"), MAX_WEIGHT, {})
    content = recorddict_compat.fitres_to_recorddict(empty, True)
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(dict(values), False)
    return content


def _config_bytes(values: Mapping[str, Any]) -> int:
    return _content_bytes(_configs(values))


def _content_bytes(content: Any) -> int:
    """What Flower sends of it: every object of its tree, as its own serialisation makes them."""
    return sum(len(entry.deflate()) for entry in get_all_nested_objects(content).values())


# Figures


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _milliseconds(case: str, seconds: Samples) -> tuple[Row, ...]:
    return rows_of(case, "ms", converted(seconds, lambda value: 1000.0 * value), baseline=BASELINE)


def _once(case: str, unit: str, values: Mapping[str, float]) -> tuple[Row, ...]:
    return rows_of(case, unit, {name: (float(value),) for name, value in values.items()}, baseline=BASELINE)


BENCHMARK = Benchmark(
    name="secure-aggregation",
    title="secure aggregation beside Flower's SecAgg+, in memory",
    method="one thread; what one site does, and the server. Both get the same update (ours in float64, Flower's in "
    "float32, as each has it after training), on the complete graph, with threshold n // 2 + 1. Train step: ours "
    "checks the round, quantises, masks (self and n - 1 pairs), hashes, signs and makes bytes; Flower's opens its "
    "peers' shares, quantises, agrees on keys, masks and makes bytes. Setup: ours prepares 20 rounds, Flower's one. "
    "Bytes: contents, without envelopes. Server: from the sites' messages to the mean; its peak memory by "
    "tracemalloc, from the first vector to the integer sum, for Flower's without unmasking",
    measure=measure,
)
