"""The last reply of a run, kept on disk: what was released once is released again, and never drawn anew."""

import hashlib
from pathlib import Path

from client.private_file import replace_private_file


class ReplyStore:
    """Keeps one request's hash and its reply in a file.

    A round and the final test are charged once. Where the reply was lost on the way, or the server was restarted,
    the identical request gets the identical reply, also after a restart of the agent; any other request gets none.

    Args:
        path: the file; its folder is made if needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, request: bytes) -> bytes | None:
        """Return the reply that was stored for *request*, or None."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        digest = hashlib.sha256(request).digest()
        return content[len(digest) :] if content.startswith(digest) else None

    def put(self, request: bytes, reply: bytes) -> None:
        """Store the reply, durably, in the place of an earlier one."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_private_file(self._path, hashlib.sha256(request).digest() + reply)
