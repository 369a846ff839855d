"""The process that decodes: it reads files that may be hostile, and has nothing that a file could take.

`client.decoding.DecodingWorker` starts it. It has no keys, no labels and no connection but the one to its parent; it
can write no file, dumps no core, and ends by the kernel's hand when one file takes more than its limits.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from client.decoding_limits import Limits
from client.dicom_file import Unusable
from client.file_reading import Header, OpenFile, Prepared, digest_of
from client.reasons import Reason
from client.segmentation import drawn_on
from client.series import prepare_series
from client.structures import MaskWanted
from shared_models.study import Image

LENGTH = struct.Struct(">I")
READY = b"R"
HEADER = b"H"
DIGEST = b"D"
IMAGE = b"I"
DRAWN_ON = b"M"
UNUSABLE = b"U"

Prepare = Callable[[Path, Image, MaskWanted | None], Prepared]
PrepareSeries = Callable[[Sequence[Path], Image, MaskWanted | None], Prepared]


def prepare_file(path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
    """Read, decode and prepare one file, and its mask. Raises Unusable."""
    with OpenFile() as file:
        return file.prepared(path, image, mask)


def serve(
    connection: socket.socket,
    limits: Limits,
    prepare: Prepare | None = None,
    prepare_series: PrepareSeries = prepare_series,
) -> None:
    """Answer requests until the parent closes the connection.

    A request is a length and JSON: what is asked for, paths, image and mask. Only a series has several paths. A reply
    is a length and one byte of kind, and then, as the kind says: JSON of what the header says; the digest of the file's
    bytes; JSON of what a mask was drawn on; the length of JSON, JSON of what is known of the image, and the array's
    bytes; or JSON of a reason's code and detail.
    """
    _confine(limits)
    connection.sendall(LENGTH.pack(1) + READY)
    with OpenFile() as file:
        while (request := received(connection)) is not None:
            wanted = json.loads(request)
            paths = [Path(os.fsdecode(bytes.fromhex(path))) for path in wanted["paths"]]
            path, series = paths[0], wanted["ask"] == "series"
            _start_clocks(limits.of_series(len(paths)) if series else limits)
            try:
                if series:
                    reply = IMAGE + _array(
                        prepare_series(paths, _image(wanted["image"]), _mask(wanted["mask"]))
                    )
                elif wanted["ask"] == "header":
                    reply = HEADER + _header(file.header(path, _image(wanted["image"])))
                elif wanted["ask"] == "digest":
                    reply = DIGEST + digest_of(path)
                elif wanted["ask"] == "drawn-on":
                    reply = DRAWN_ON + json.dumps(drawn_on(path)).encode()
                else:
                    made = (prepare or file.prepared)(path, _image(wanted["image"]), _mask(wanted["mask"]))
                    reply = IMAGE + _array(made)
            except Unusable as finding:
                reply = UNUSABLE + _reason(finding.reason, finding.detail)
            except MemoryError:
                reply = UNUSABLE + _reason(Reason.TOO_MUCH_MEMORY)
            signal.alarm(0)
            connection.sendall(LENGTH.pack(len(reply)) + reply)


@lru_cache(maxsize=4)
def _image(text: str) -> Image:
    return Image.model_validate_json(text)


def _mask(told: dict[str, Any] | None) -> MaskWanted | None:
    if told is None:
        return None
    path = told["path"] and Path(os.fsdecode(bytes.fromhex(told["path"])))
    return MaskWanted(path=path, structures=tuple(tuple(values) for values in told["structures"]))


def _header(header: Header) -> bytes:
    told: dict[str, object] = {
        "identifiers": header.identifiers,
        "facts": header.facts.model_dump(mode="json"),
        "person": dict(header.person),
    }
    if header.finding is not None:
        told["reason"], told["detail"] = header.finding.reason.code, header.finding.detail
    return json.dumps(told).encode()


def _array(prepared: Prepared) -> bytes:
    told = json.dumps({"has_window": prepared.has_window, "facts": prepared.facts.model_dump()}).encode()
    array = np.ascontiguousarray(prepared.plane, dtype="<f4").tobytes()
    return LENGTH.pack(len(told)) + told + array


def _reason(reason: Reason, detail: str = "") -> bytes:
    return json.dumps({"reason": reason.code, "detail": detail}).encode()


def received(connection: socket.socket) -> bytes | None:
    """One message, or None where the other side is gone."""
    header = _exactly(connection, LENGTH.size)
    return None if header is None else _exactly(connection, LENGTH.unpack(header)[0])


def _exactly(connection: socket.socket, number: int) -> bytes | None:
    content = bytearray()
    while len(content) < number:
        if not (part := connection.recv(min(2**20, number - len(content)))):
            return None
        content += part
    return bytes(content)


def _confine(limits: Limits) -> None:
    """Set what does not change from file to file. A core dump would hold a patient's image."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        allowed = resource.getrlimit(kind)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)  # noqa: PLW2901
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def _start_clocks(limits: Limits) -> None:
    """Let the kernel end this process when the file takes longer, whatever a decoder does meanwhile."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.processor_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.alarm(limits.clock_seconds)


def main(prepare: Prepare | None = None, prepare_series: PrepareSeries = prepare_series) -> None:
    """Serve on the socket whose number is the first argument, with the limits in the others."""
    descriptor, *numbers = (int(argument) for argument in sys.argv[1:])
    memory_bytes, processor_seconds, clock_seconds = numbers
    limits = Limits(
        memory_bytes=memory_bytes, processor_seconds=processor_seconds, clock_seconds=clock_seconds
    )
    with socket.socket(fileno=descriptor) as connection:
        serve(connection, limits, prepare, prepare_series)


if __name__ == "__main__":
    main()
