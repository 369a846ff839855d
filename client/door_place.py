"""Where the agent's door is and whom it lets in, checked before it is opened.

Whoever can put another socket at the door's place can listen there instead of the agent. So its folder belongs to
the agent's own user, nobody else can write to it, and nobody else can exchange it for another one.
"""

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from client.agent_channel import DOOR, MAX_SOCKET_PATH, socket_path
from client.site_file import SiteFile
from shared_models.configuration import ConfigurationError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0


class DoorError(ConfigurationError):
    """The door cannot be opened. The message says what is wrong with its place and what to do."""


@dataclass(frozen=True, slots=True)
class DoorPlace:
    """The door's socket, and the uid of the one user that is let in."""

    socket: Path
    uid: int


def door_place(site: SiteFile) -> DoorPlace:
    """The door of this site: in its own state folder where one user runs everything, else where `[agent]` says.

    Raises:
        DoorError: the network user is unknown or is root, or the door's folder is not safe.
    """
    if site.agent is None:
        try:
            return DoorPlace(socket_path(site.state, DOOR), os.geteuid())
        except ValueError as error:
            raise DoorError(str(error)) from error
    place = DoorPlace(site.agent.socket, _uid(site.agent.network_user))
    _check_folder(place, site.agent.network_user)
    return place


def _uid(user: str | int) -> int:
    try:
        uid = user if isinstance(user, int) else pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise DoorError(
            f'agent.network_user: there is no user "{user}" on this machine; make it, or name the one that runs '
            "`collegium-client connect`"
        ) from error
    if uid == ROOT:
        raise DoorError(
            "agent.network_user is root, who may read everything: run SuperNode and forwarder as a user of their own"
        )
    return uid


def _check_folder(place: DoorPlace, user: str | int) -> None:
    folder, own = place.socket.parent, os.geteuid()
    if len(str(place.socket)) > MAX_SOCKET_PATH:
        raise DoorError(f"agent.socket: {place.socket} is too long for a socket; take a path of at most 100")
    remedy = f"as root: install -d -o {_name(own)} -g {_group_of(user)} -m 2750 {folder}"
    try:
        found = folder.lstat()
    except OSError as error:
        raise DoorError(f"agent.socket: {folder} cannot be used ({error.strerror}); {remedy}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise DoorError(f"agent.socket: {folder} is not a folder; remove it, then {remedy}")
    if found.st_uid != own:
        raise DoorError(
            f"agent.socket: {folder} belongs to {_name(found.st_uid)}, who could listen in the agent's place; {remedy}"
        )
    if found.st_mode & OTHERS_WRITE:
        raise DoorError(
            f"agent.socket: others than {_name(own)} may write to {folder}, and could listen in the agent's place; "
            f"{remedy}"
        )
    _check_above(folder, own)
    if place.uid != own:
        _check_group(folder, found, user, remedy)


def _check_above(folder: Path, own: int) -> None:
    """Nobody but root and this user can exchange the folder, or one above it, for another."""
    for above in dict.fromkeys((*folder.absolute().parents, *folder.resolve().parents)):
        found = above.lstat()
        if stat.S_ISLNK(found.st_mode):  # the folder that it lies in is looked at too, and what it leads to
            continue
        others = found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX
        if others or found.st_uid not in (ROOT, own):
            raise DoorError(
                f"agent.socket: others than root and {_name(own)} may write to {above}, and could put a folder of "
                f"their own in place of {folder}; choose a folder like /run/collegium"
            )


def _check_group(folder: Path, found: os.stat_result, user: str | int, remedy: str) -> None:
    """The network user can pass the folder. Of a uid without an account the groups are not known here."""
    if found.st_mode & stat.S_IXOTH:
        return
    account = _account(user)
    groups = None if account is None else os.getgrouplist(account.pw_name, account.pw_gid)
    if not found.st_mode & stat.S_IXGRP or (groups is not None and found.st_gid not in groups):
        raise DoorError(f"agent.socket: user {user} cannot get into {folder}; {remedy}")


def _account(user: str | int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        return None


def _name(uid: int) -> str:
    account = _account(uid)
    return str(uid) if account is None else account.pw_name


def _group_of(user: str | int) -> str:
    account = _account(user)
    if account is None:
        return str(user)
    try:
        return grp.getgrgid(account.pw_gid).gr_name
    except KeyError:
        return str(account.pw_gid)
