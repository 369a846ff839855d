"""``roster.toml``: the sites that the server knows, each with its node public key."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from shared_models.configuration import ConfigurationError, Frozen, read_toml
from shared_models.node_keys import canonical_line
from shared_models.study import Slug

HEADING = """\
# The consortium's sites, each with the public key of its Flower node.
# Add one with:  collegium-server admit SITE NODE_PUBLIC_KEY_FILE
"""


class RosterSite(Frozen):
    """One site: its name and its node public key, an OpenSSH line (a PEM text is read as well)."""

    name: Slug
    node_key: Annotated[str, AfterValidator(canonical_line)]


class Roster(Frozen):
    """All sites. Names and keys are each unique: a site is known by its key, never by what it says."""

    site: tuple[RosterSite, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names: dict[str, str] = {}
        keys: dict[str, str] = {}
        for site in self.site:
            if site.name in names:
                raise ValueError(f'two sites are named "{site.name}"; each needs a name of its own')
            if site.node_key in keys:
                raise ValueError(
                    f'"{keys[site.node_key]}" and "{site.name}" have the same node key; every site makes its own'
                )
            names[site.name] = site.node_key
            keys[site.node_key] = site.name
        return self

    def name_of(self, node_key: str) -> str | None:
        """The name of the site with this key (one OpenSSH line), or None."""
        return next((site.name for site in self.site if site.node_key == node_key), None)


def read_roster(path: Path) -> Roster:
    """Read the roster. Raises ConfigurationError with every problem of the file."""
    return read_toml(path, Roster)


def admit(path: Path, name: str, node_key: str) -> Roster:
    """Add a site to the roster file, in one atomic step.

    Args:
        path: the roster file; made if it does not exist.
        name: the site's name.
        node_key: its public key, OpenSSH or PEM.

    Raises:
        ConfigurationError: the file or the new entry is wrong; the file is left as it was.
    """
    roster = read_roster(path) if path.exists() else Roster()
    try:
        added = RosterSite(name=name, node_key=node_key)
        extended = Roster(site=(*roster.site, added))
    except ValueError as error:
        raise ConfigurationError(f'site "{name}" cannot be admitted: {_reason(error)}') from error
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(_text(extended), encoding="utf-8")
    fresh.replace(path)
    return extended


def _text(roster: Roster) -> str:
    entries = [f'\n[[site]]\nname = "{site.name}"\nnode_key = "{site.node_key}"\n' for site in roster.site]
    return HEADING + "".join(entries)


def _reason(error: ValueError) -> str:
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    texts = []
    for problem in problems(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        texts.append(f"{key} {problem['msg'].removeprefix('Value error, ')}".strip())
    return "; ".join(texts)
