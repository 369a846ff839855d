"""Plane images: each file is one."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from client.dicom_file import Unusable
from client.prediction.grid_spacing import grid_spacing
from client.prediction.inputs import Input
from client.prediction.refusals import Terms, examined, prepared, with_channels
from client.prediction.taken import Found, Taken, left_out
from client.reading_pool import Reader, ReadingPool


def plane_images(
    inputs: Sequence[Input], terms: Terms, pool: ReadingPool, *, channels: int
) -> Iterator[Found]:
    """Yield what becomes of each file, in their order.

    Args:
        inputs: the files.
        terms: what they have to be.
        pool: reads them.
        channels: of the model.
    """

    def taken(reader: Reader, one: Input) -> Found:
        return _taken(reader, one, terms, channels)

    def started() -> Iterator[Future[Found] | Found]:
        for one in inputs:
            yield pool.submit(taken, one)

    done: Iterator[Found] = pool.in_order(started())
    yield from done


def _taken(reader: Reader, one: Input, terms: Terms, channels: int) -> Found:
    """Read one file. For any thread."""
    try:
        header, terms = examined(reader, one.path, terms)
        made, terms = prepared(reader, one.path, header.facts, terms)
    except Unusable as found:
        return left_out(one, found)
    num_frames = header.facts.num_frames
    return Taken(
        name=one.name,
        files=(one.path,),
        frame=(num_frames - 1) // 2 if num_frames > 1 else None,
        identifiers=header.identifiers,
        plane=with_channels(made.plane, channels),
        spacing=grid_spacing(header.facts, terms.image),
        overrides=terms.sentences,
    )
