"""``[pacs]`` of ``site.toml``: where the hospital's archive answers, and how gently it is asked."""

import re
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from shared_models.configuration import Frozen

FilePath = Annotated[Path, Field(strict=False)]
Port = Annotated[int, Field(ge=1, le=65535)]


def ae_title(text: str) -> str:
    """An application entity title: 1 to 16 characters (PS3.5 section 6.2, AE). Raises ValueError where it is none."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", text) or not text.strip():
        raise ValueError("is no AE title: 1 to 16 ASCII characters, no backslash, not only spaces")
    return text


def web_address(text: str) -> str:
    """The root of a DICOMweb service, without a slash at its end. Raises ValueError where it is none."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not http://HOST/… or https://HOST/…")
    if parts.username or parts.password:
        raise ValueError("holds a user or password: they belong into pacs.dicomweb.credentials_file")
    if parts.query or parts.fragment:
        raise ValueError("has a ? or #: give the root only, such as https://pacs.example.org/dicom-web")
    return text.rstrip("/")


def daily_hours(text: str) -> str:
    """A daily window ``HH:MM-HH:MM``, over midnight too. Raises ValueError where it is none."""
    window(text)
    return text


def window(text: str) -> tuple[time, time]:
    """First and last moment of a daily window. Raises ValueError."""
    found = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", text)
    if not found:
        raise ValueError('is not HH:MM-HH:MM, such as "19:00-06:00"')
    try:
        first, last = (datetime.strptime(part, "%H:%M").time() for part in found.groups())
    except ValueError as error:
        raise ValueError("holds no time of day between 00:00 and 23:59") from error
    if first == last:
        raise ValueError("is empty: begin and end are the same; leave it out for the whole day")
    return first, last


AeTitle = Annotated[str, AfterValidator(ae_title)]


class Dimse(Frozen):
    """A PACS that is asked by DICOM's own protocol (DIMSE).

    ``get`` brings images over the connection that asks (C-GET). ``move`` has the PACS open connections to this
    machine (C-MOVE), at ``listen_host`` and ``listen_port``.
    """

    host: str = Field(min_length=1)
    port: Port
    called_ae_title: AeTitle
    calling_ae_title: AeTitle = "COLLEGIUM"
    retrieve: Literal["get", "move"] = "get"
    listen_host: str | None = None
    listen_port: Port | None = None
    tls: bool = False
    ca_certificate: FilePath | None = None
    client_certificate: FilePath | None = None
    client_key: FilePath | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        listening = self.listen_host is not None and self.listen_port is not None
        if self.retrieve == "move" and not listening:
            raise ValueError('retrieve = "move" needs listen_host and listen_port: the PACS connects to them')
        if self.retrieve == "get" and (self.listen_host is not None or self.listen_port is not None):
            raise ValueError('listen_host and listen_port are for retrieve = "move"; remove them')
        if not self.tls and (self.ca_certificate or self.client_certificate or self.client_key):
            raise ValueError("certificates are given, but tls is false; set tls = true")
        _pair(self.client_certificate, self.client_key)
        return self


class DicomWeb(Frozen):
    """A PACS that is asked by DICOMweb (QIDO-RS, WADO-RS).

    ``basic`` wants ``user:password``, ``bearer`` a token; either is in a file of mode 0600 or in a variable of the
    environment, never here.
    """

    url: Annotated[str, AfterValidator(web_address)]
    ca_certificate: FilePath | None = None
    client_certificate: FilePath | None = None
    client_key: FilePath | None = None
    authentication: Literal["none", "basic", "bearer"] = "none"
    credentials_file: FilePath | None = None
    credentials_variable: str | None = Field(default=None, min_length=1)

    @property
    def encrypted(self) -> bool:
        """Whether the way to the service is TLS."""
        return self.url.startswith("https:")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = (self.credentials_file is not None) + (self.credentials_variable is not None)
        if self.authentication == "none" and given:
            raise ValueError('credentials are given, but authentication is "none"; set "basic" or "bearer"')
        if self.authentication != "none" and given != 1:
            raise ValueError("authentication needs credentials_file or credentials_variable, one of both")
        if self.authentication != "none" and not self.encrypted and not _is_loopback(self.url):
            raise ValueError("credentials would travel in clear: use an https address")
        if not self.encrypted and (self.ca_certificate or self.client_certificate or self.client_key):
            raise ValueError("certificates are given, but the address is http; use https")
        _pair(self.client_certificate, self.client_key)
        return self


Connection = TypeVar("Connection", Dimse, DicomWeb)


class Pacs(Frozen):
    """One hospital's PACS, by one of two protocols, and the limits within which it is asked."""

    connections: int = Field(default=2, ge=1, le=8)
    studies_per_minute: float = Field(default=60.0, gt=0.0)
    max_mib_per_second: float | None = Field(default=None, gt=0.0)
    hours: Annotated[str, AfterValidator(daily_hours)] | None = None
    timeout_seconds: float = Field(default=60.0, gt=0.0, le=3600.0)
    attempts: int = Field(default=3, ge=1, le=10)
    backoff_seconds: float = Field(default=5.0, ge=0.0, le=600.0)
    min_free_mib: int = Field(default=1024, ge=1)
    max_object_mib: int = Field(default=2048, ge=1)
    dimse: Dimse | None = None
    dicomweb: DicomWeb | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.dimse is None) == (self.dicomweb is None):
            raise ValueError("[pacs] needs [pacs.dimse] or [pacs.dicomweb], one of both")
        return self

    def below(self, root: Path) -> Self:
        """The same, with relative paths counted from *root*."""
        return self.model_copy(
            update={"dimse": _below(self.dimse, root), "dicomweb": _below(self.dicomweb, root)}
        )


def _below(model: Connection | None, root: Path) -> Connection | None:
    if model is None:
        return None
    paths = {name: root / value for name, value in model if isinstance(value, Path)}
    return model.model_copy(update=paths)


def _pair(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("client_certificate and client_key belong together: set both or none")


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
