"""``server.toml``: the coordinator's own file."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shared_models.configuration import Frozen, read_toml
from shared_models.identity_keys import read_public_key
from shared_models.roster import Roster, read_roster

FilePath = Annotated[Path, Field(strict=False)]


class Listen(Frozen):
    """Where the gate, the only part that is reachable from outside, listens."""

    host: str = Field(min_length=1, pattern=r"^[^\s/]+$")
    port: int = Field(ge=1, le=65535)

    @property
    def address(self) -> str:
        """``host:port``, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(Frozen):
    """The server's certificate and key, and the consortium's CA certificate that every site holds."""

    certificate: FilePath
    key: FilePath
    ca_certificate: FilePath

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.key in (self.certificate, self.ca_certificate):
            raise ValueError("key must be a file of its own: certificates are given away, the key never is")
        return self


class ServerFile(Frozen):
    """One server: the study it coordinates, the sites it knows, where it listens and keeps its state.

    ``root`` is the consortium's root public key, by which the roster and the proposal in ``study`` must be signed.
    """

    study: FilePath
    root: FilePath
    roster: FilePath
    state: FilePath
    listen: Listen
    tls: Tls


def read_server(path: Path) -> ServerFile:
    """Read ``server.toml``; relative paths in it count from the file's own folder. Raises ConfigurationError."""
    server = read_toml(path, ServerFile)
    root = path.resolve().parent
    return server.model_copy(
        update={
            "study": root / server.study,
            "root": root / server.root,
            "roster": root / server.roster,
            "state": root / server.state,
            "tls": server.tls.model_copy(
                update={
                    "certificate": root / server.tls.certificate,
                    "key": root / server.tls.key,
                    "ca_certificate": root / server.tls.ca_certificate,
                }
            ),
        }
    )


def read_sites(server: ServerFile) -> Roster:
    """Read the server's roster, signed by its root key. Raises ConfigurationError."""
    return read_roster(server.roster, read_public_key(server.root))
