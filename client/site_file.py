"""``site.toml``: one hospital's own file. Nobody else ever sees it."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from client.pacs_file import Pacs
from client.quality_file import SiteQuality
from shared_models.configuration import Frozen, read_toml
from shared_models.study import Slug

FilePath = Annotated[Path, Field(strict=False)]
LabelKey = Literal["PatientID", "StudyInstanceUID", "AccessionNumber", "SeriesInstanceUID", "SOPInstanceUID"]


class Images(Frozen):
    """Where the hospital's DICOM files are, and how much of the disk prepared images may take, in GiB."""

    folder: FilePath
    cache_gib: float = Field(default=20.0, ge=0.0)


class Labels(Frozen):
    """Where the labels are, and which DICOM attribute its key column holds.

    ``column`` names the label column where it differs from the study's own name for it. ``columns`` does so for
    several: the file's name by the study's.
    """

    file: FilePath
    key: LabelKey
    column: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)


class Masks(Frozen):
    """Where masks are, for studies that learn from them: below ``folder``, which may be the images folder itself.

    With ``column`` that column of the labels file names the mask of each image, as a path below ``folder``, or says
    ``empty`` where nothing is to be marked. Else a mask is found by its name, or by what a DICOM SEG was drawn on.
    """

    folder: FilePath
    column: str | None = None
    empty: str = Field(default="none", min_length=1)


def server_address(text: str) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address. Raises ValueError where the text is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):([0-9]{1,5})", text)
    if not found or not 1 <= int(found.group(2)) <= 65535:
        raise ValueError("is not HOST:PORT (an IPv6 address as [2001:db8::1]:9443)")
    if found.group(1).startswith("["):
        try:
            ipaddress.IPv6Address(found.group(1)[1:-1])
        except ValueError as error:
            raise ValueError("holds no IPv6 address between its brackets") from error
    return text


class Server(Frozen):
    """Where the consortium's server answers, and the certificate that it must prove itself against."""

    address: Annotated[str, AfterValidator(server_address)]
    ca_certificate: FilePath
    node_key: FilePath

    @property
    def host(self) -> str:
        """The address's name or number; an IPv6 address without its brackets."""
        return self.address.rsplit(":", 1)[0].strip("[]")

    @property
    def port(self) -> int:
        """The address's port."""
        return int(self.address.rsplit(":", 1)[1])

    def below(self, root: Path) -> Self:
        """The same, with relative paths counted from *root*."""
        return self.model_copy(
            update={"ca_certificate": root / self.ca_certificate, "node_key": root / self.node_key}
        )


class AgentDoor(Frozen):
    """Where the agent lets the network user in, where SuperNode and forwarder run as a user of their own.

    ``network_user`` is a name or a uid; nobody else is let in. ``node_public`` is that user's public node key.
    """

    socket: FilePath
    network_user: Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]
    node_public: FilePath


class Consortium(Frozen):
    """Whom the hospital trusts with whose keys are whose, and the key by which the others know this hospital.

    ``root`` is the consortium's root public key; only a ``roster`` that it signed is used.
    """

    root: FilePath
    roster: FilePath
    identity_key: FilePath


class Compute(Frozen):
    """What trains. ``auto`` takes a CUDA device where there is one.

    ``num_readers``: processes that read and prepare files; 0: as many as there are cores.
    """

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    mixed_precision: bool = False
    physical_batch: int = Field(default=64, ge=1)
    num_threads: int = Field(default=0, ge=0)
    num_readers: int = Field(default=0, ge=0, le=256)


class Policy(Frozen):
    """What the hospital refuses, before any training. Nothing here can be changed by a message.

    ``min_cohort``: sites in a sum, at the least; ``min_threshold``: sites that it takes to open one. With
    ``ask_each_run`` somebody at the hospital approves each run of an approved study, not only the study. With
    ``allow_distributed_noise`` the hospital takes part where its noise alone does not suffice.
    """

    min_cohort: int = Field(ge=2)
    min_threshold: int = Field(ge=1)
    min_patients: int = Field(ge=1)
    max_unusable_share: float = Field(ge=0.0, le=1.0)
    max_runs_per_study: int = Field(ge=1)
    allowed_tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    allowed_architectures: tuple[str, ...] = Field(min_length=1, strict=False)
    ask_each_run: bool = False
    lifetime_epsilon: float | None = Field(default=None, gt=0.0)
    lifetime_delta: float | None = Field(default=None, gt=0.0, lt=0.1)
    allow_no_privacy: bool = False
    allow_distributed_noise: bool = False

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.lifetime_epsilon is None) != (self.lifetime_delta is None):
            raise ValueError("lifetime_epsilon and lifetime_delta belong together: set both or none")
        return self


class Testing(Frozen):
    """For simulations of studies without privacy only: makes sampling repeatable."""

    sampling_seed: int = Field(ge=0)


class SiteFile(Frozen):
    """One hospital's installation: its data, device, state, consortium, server and policy.

    ``server``: one user runs everything. ``agent``: the connection to the server is another user's, who has a
    ``network.toml``. Neither: the site is only simulated. ``masks``: for studies that learn from masks. ``pacs``: where
    `collegium-client fetch` asks for images. ``weights``: the folder of initial weights that studies name.
    """

    name: Slug
    state: FilePath
    images: Images
    labels: Labels
    masks: Masks | None = None
    policy: Policy
    consortium: Consortium
    server: Server | None = None
    agent: AgentDoor | None = None
    compute: Compute = Compute()
    quality: SiteQuality = SiteQuality()
    pacs: Pacs | None = None
    weights: FilePath = Path("weights")
    testing: Testing | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.server is not None and self.agent is not None:
            raise ValueError(
                "[server] and [agent] exclude each other: [server] where one user runs the whole site; [agent] where "
                "another user connects to the server, by a network.toml"
            )
        return self


def read_site(path: Path) -> SiteFile:
    """Read ``site.toml``; relative paths in it count from the file's own folder. Raises ConfigurationError."""
    site = read_toml(path, SiteFile)
    root = path.resolve().parent
    agent, consortium = site.agent, site.consortium
    if agent is not None:
        agent = agent.model_copy(
            update={"socket": root / agent.socket, "node_public": root / agent.node_public}
        )
    return site.model_copy(
        update={
            "state": root / site.state,
            "images": site.images.model_copy(update={"folder": root / site.images.folder}),
            "masks": site.masks and site.masks.model_copy(update={"folder": root / site.masks.folder}),
            "labels": site.labels.model_copy(update={"file": root / site.labels.file}),
            "consortium": Consortium(
                root=root / consortium.root,
                roster=root / consortium.roster,
                identity_key=root / consortium.identity_key,
            ),
            "server": None if site.server is None else site.server.below(root),
            "agent": agent,
            "weights": root / site.weights,
            "pacs": None if site.pacs is None else site.pacs.below(root),
        }
    )
