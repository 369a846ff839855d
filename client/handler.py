"""What a site is to whoever carries its messages: bytes in, bytes out."""

from typing import Protocol


class Handler(Protocol):
    """Answers encoded requests. `client.site.Site` is the product's; tests bring small ones."""

    def handle(self, message: bytes) -> bytes:
        """Return the encoded reply to an encoded request. Never raises: a refusal is a reply."""
        ...

    def status(self) -> dict[str, str]:
        """What the local command line shows: a few words each, nothing about any patient."""
        ...
