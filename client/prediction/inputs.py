"""What is to be read: the files that were named, and all files of the folders that were named."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.file_tree import files_below
from shared_models.configuration import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file. ``name`` is what it is called in outputs: its path as given, or below the folder that was given."""

    name: str = field(repr=False)
    path: Path = field(repr=False)


def inputs_of(given: Sequence[Path]) -> list[Input]:
    """Return all files, in the order in which they are read.

    Of several folders each file's name begins with the folder as it was given, so that none is there twice.

    Raises:
        ConfigurationError: one of them is not there, or is a folder that cannot be listed.
    """
    found = list[Input]()
    for place in given:
        if not place.is_dir():
            if not place.exists() and not place.is_symlink():
                raise ConfigurationError(f"{place}: is not there; name DICOM files or folders")
            found.append(Input(name=str(place), path=place))
            continue
        try:
            below = files_below(place)
        except OSError as error:
            raise ConfigurationError(
                f"{place}: cannot be listed ({error.strerror}); check its mode"
            ) from error
        prefix = "" if len(given) == 1 else f"{place}/"
        found += [Input(name=prefix + file.name, path=place / file.name) for file in below]
    return list({one.path: one for one in found}.values())
