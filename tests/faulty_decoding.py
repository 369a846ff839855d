"""The process that decodes, with a decoder that does what the name of the file says."""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from client.decoding_process import main, prepare_file, prepare_series
from client.dicom_file import Unusable
from client.file_facts import PixelFacts
from client.file_reading import Prepared
from client.reasons import Reason


def answer(plane: np.ndarray) -> Prepared:
    facts = PixelFacts(digest="0" * 64, lowest_share=0.5, highest_share=0.5, blank=False)
    return Prepared(plane=plane.astype(np.float32), has_window=True, facts=facts)


def misbehave(path: Path, image, mask=None):
    kind = path.stem
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "sleep":
        time.sleep(600)
    elif kind == "spin":
        while True:
            pass
    elif kind == "spin-in-c":
        sum(range(10**12))
    elif kind == "eat":
        kept = []
        while True:
            kept.append(np.ones(2**24))
    elif kind == "eat-in-c":
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        while block := libc.malloc(2**27):
            ctypes.memset(block, 1, 2**27)
        raise MemoryError
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "nan":
        return answer(np.full(image.shape, np.nan))
    elif kind == "large":
        return answer(np.zeros((9, 9, 9)))
    elif kind == "talk":
        raise Unusable(Reason.UNDECODABLE, "\x1b[2J" + "x" * 10_000)
    elif kind == "core":
        (path.parent / "written").write_bytes(b"stolen")
    elif kind == "environment":
        raise Unusable(Reason.UNDECODABLE, json.dumps(sorted(os.environ)))
    elif kind == "modules":
        raise Unusable(
            Reason.UNDECODABLE,
            json.dumps([name for name in ("torch", "cryptography", "flwr") if name in sys.modules]),
        )
    elif kind == "pid":
        raise Unusable(Reason.UNDECODABLE, str(os.getpid()))
    return prepare_file(path, image, mask)


def misbehave_in_series(paths, image, mask=None):
    for path in paths:
        if path.stem == "large":
            return answer(np.zeros((9, 9, 9)))
        if not path.stem.isdigit() and path.stem != "all":
            misbehave(path, image)
    return prepare_series(paths, image, mask)


if __name__ == "__main__":
    main(misbehave, misbehave_in_series)
