"""What the agent's door looks like from outside, to the user that it should let in."""

import socket
from pathlib import Path

DOOR_SECONDS = 3.0
LETS_IN = "lets this user in"


def door_status(path: Path) -> str:
    """Whether the agent lets this user in, in words; no request is made."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.settimeout(DOOR_SECONDS)
            trial.connect(str(path))
            begun = trial.recv(1)
    except (FileNotFoundError, ConnectionRefusedError):
        return f"not running: nobody listens at {path}"
    except PermissionError:
        return f"this user may not reach {path}: it has to be in the group of that socket and its folder"
    except OSError as error:
        return f"{path} does not answer ({error.strerror or error})"
    if not begun:
        return (
            "refuses this user: agent.network_user in site.toml names another one, or too many are connected"
        )
    return f"{LETS_IN} at {path}"
