"""Prepared images that lie in several places, memory-mapped files among them, gathered when they are asked for."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Source = Sequence[NDArray[np.float32]] | NDArray[np.float32]


class StoredImages:
    """Images by position. Indexed like a tensor's first dimension, it gives a tensor: a copy of what was asked for.

    Args:
        sources: where images lie: arrays of shape (number, channels, ...), or lists of images.
        source: of each image, its place in *sources*; int64, shape (num_images,).
        row: of each image, its row in that source; int64, shape (num_images,).
        shape: of an image: channels, rows and columns; of a volume channels, slices, rows and columns.
        first_channel: of what is stored; the image is as many channels from there on as *shape* says.
    """

    dtype = torch.float32

    def __init__(
        self,
        sources: Sequence[Source],
        source: NDArray[np.int64],
        row: NDArray[np.int64],
        *,
        shape: tuple[int, ...],
        first_channel: int = 0,
    ) -> None:
        self._sources, self._source, self._row, self._shape = tuple(sources), source, row, shape
        self._channels = slice(first_channel, first_channel + shape[0])

    def __len__(self) -> int:
        return len(self._row)

    @property
    def shape(self) -> torch.Size:
        """(num_images, channels, ...)."""
        return torch.Size((len(self), *self._shape))

    @overload
    def __getitem__(self, positions: int) -> Tensor: ...
    @overload
    def __getitem__(self, positions: slice | Tensor | Sequence[int] | NDArray[np.int64]) -> Tensor: ...
    def __getitem__(self, positions: int | slice | Tensor | Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return one image, or a batch of them, float32."""
        if isinstance(positions, int | np.integer):
            return torch.from_numpy(np.array(self._stored(self._source[positions], self._row[positions])))
        chosen = positions if isinstance(positions, slice) else np.asarray(positions, dtype=np.int64)
        source, row = self._source[chosen], self._row[chosen]
        gathered = np.empty((len(row), *self._shape), dtype=np.float32)
        for place in range(len(row)):
            gathered[place] = self._stored(source[place], row[place])
        return torch.from_numpy(gathered)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def selected(self, positions: Sequence[int]) -> "StoredImages":
        """The images at these positions, still where they are."""
        chosen = np.asarray(positions, dtype=np.int64)
        return self._of(self._sources, self._source[chosen], self._row[chosen])

    def with_channels(self, first: int, number: int) -> "StoredImages":
        """So many channels of the same images, from *first* on, still where they are."""
        return StoredImages(
            self._sources,
            self._source,
            self._row,
            shape=(number, *self._shape[1:]),
            first_channel=self._channels.start + first,
        )

    @staticmethod
    def joined(parts: Sequence["StoredImages"]) -> "StoredImages":
        """All images of all parts, in their order, still where they are."""
        first = np.cumsum([0, *(len(part._sources) for part in parts)])
        return parts[0]._of(
            [source for part in parts for source in part._sources],
            np.concatenate([part._source + begin for part, begin in zip(parts, first, strict=False)]),
            np.concatenate([part._row for part in parts]),
        )

    def _stored(self, source: int, row: int) -> NDArray[np.float32]:
        """The channels of one image."""
        return self._sources[source][row][self._channels]

    def _of(
        self, sources: Sequence[Source], source: NDArray[np.int64], row: NDArray[np.int64]
    ) -> "StoredImages":
        """The same channels of other images."""
        return StoredImages(sources, source, row, shape=self._shape, first_channel=self._channels.start)


Images = Tensor | StoredImages


def selected(images: Images, positions: Sequence[int]) -> Images:
    """Return the images at these positions; those in a file stay there."""
    return images.selected(positions) if isinstance(images, StoredImages) else images[positions]


def joined(parts: Sequence[Images]) -> Images:
    """Return all images of all parts; those in files stay there, unless some part is a tensor."""
    stored = [part for part in parts if isinstance(part, StoredImages)]
    if len(stored) == len(parts):
        return StoredImages.joined(stored)
    return torch.cat([part[:] for part in parts])
