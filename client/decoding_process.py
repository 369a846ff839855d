"""The process that decodes: it reads files that may be hostile, and has nothing that a file could take.

`client.decoding.DecodingWorker` starts it. It has no keys, no labels and no connection but the one to its parent; it
can write no file, dumps no core, and ends by the kernel's hand when one file takes more than its limits.
"""

import json
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.decoding_limits import Limits
from client.dicom_file import Unusable
from client.dicom_image import read_image
from client.intensity import has_window
from client.preparation import Plane, prepare
from client.reasons import Reason
from shared_models.study import Image

LENGTH = struct.Struct(">I")
READY = b"R"
IMAGE = b"I"
UNUSABLE = b"U"

Prepare = Callable[[Path, Image], tuple[Plane, bool]]


def prepare_file(path: Path, image: Image) -> tuple[Plane, bool]:
    """Return the prepared image, and whether the file says how it is to be shown. Raises Unusable."""
    dataset = read_image(path, image)
    prepared = prepare(dataset, image)
    return prepared, image.channels == 3 or has_window(dataset)


def serve(connection: socket.socket, limits: Limits, prepare: Prepare = prepare_file) -> None:
    """Answer requests until the parent closes the connection.

    A request is a length and JSON: path and image. A reply is a length and one byte of kind, and then: a byte that
    tells whether there is a window and the array's bytes, or JSON of a reason's code and detail.
    """
    _confine(limits)
    connection.sendall(LENGTH.pack(1) + READY)
    while (request := received(connection)) is not None:
        wanted = json.loads(request)
        path, image = Path(wanted["path"]), Image.model_validate_json(wanted["image"])
        _start_clocks(limits)
        try:
            array, with_window = prepare(path, image)
        except Unusable as finding:
            told = {"reason": finding.reason.code, "detail": finding.detail}
            reply = UNUSABLE + json.dumps(told).encode()
        except MemoryError:
            reply = UNUSABLE + json.dumps({"reason": Reason.TOO_MUCH_MEMORY.code, "detail": ""}).encode()
        else:
            reply = IMAGE + bytes([with_window]) + np.ascontiguousarray(array, dtype="<f4").tobytes()
        signal.alarm(0)
        connection.sendall(LENGTH.pack(len(reply)) + reply)


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
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def _start_clocks(limits: Limits) -> None:
    """Let the kernel end this process when the file takes longer, whatever a decoder does meanwhile."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.processor_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.alarm(limits.clock_seconds)


def main(prepare: Prepare = prepare_file) -> None:
    """Serve on the socket whose number is the first argument, with the limits in the others."""
    descriptor, *numbers = (int(argument) for argument in sys.argv[1:])
    memory_bytes, processor_seconds, clock_seconds = numbers
    limits = Limits(
        memory_bytes=memory_bytes, processor_seconds=processor_seconds, clock_seconds=clock_seconds
    )
    with socket.socket(fileno=descriptor) as connection:
        serve(connection, limits, prepare)


if __name__ == "__main__":
    main()
