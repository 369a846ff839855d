"""Text that somebody else wrote, as it may be shown on a terminal."""

import unicodedata


def visible(text: str) -> str:
    """Return *text* with every control or invisible character written out, so that it cannot hide or fake anything."""
    return "".join(
        character
        if character == " " or unicodedata.category(character)[0] not in "CZ"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def quoted(*values: str) -> str:
    """Texts in quotation marks, with commas between, and nothing invisible in them."""
    return ", ".join(f"“{visible(value)}”" for value in values)
