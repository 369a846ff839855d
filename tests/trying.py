"""Tries what a broken SuperNode might, as whatever user runs it: ``trying.py JSON``, name → [what, …].

Prints JSON, name → "done" or the name of the error.
"""

import ctypes
import errno
import json
import os
import socket
import sys


def read(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123 - no other import than needed
        file.read(1)


def look(path: str) -> None:
    os.listdir(path)  # noqa: PTH208


def write(path: str) -> None:
    with open(path, "ab"):  # noqa: PTH123
        pass


def memory(pid: int) -> None:
    with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
        start = next(int(line.split("-")[0], 16) for line in maps if " r" in line)
    with open(f"/proc/{pid}/mem", "rb", 0) as file:  # noqa: PTH123
        file.seek(start)
        file.read(16)


def trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None) != 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, None, None)  # PTRACE_DETACH


def signal(pid: int) -> None:
    os.kill(pid, 0)


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(5.0)
        made.connect(path)
        if not made.recv(1):
            raise OSError(errno.ECONNRESET, "hung up")


def replace(path: str) -> None:
    os.rename(path, path + "-away")  # noqa: PTH104
    os.rename(path + "-away", path)  # noqa: PTH104


def internet() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def attempt(what: str, *arguments: str | int) -> str:
    try:
        {
            "read": read,
            "look": look,
            "write": write,
            "memory": memory,
            "trace": trace,
            "signal": signal,
            "connect": connect,
            "replace": replace,
            "internet": internet,
        }[what](*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "done"


if __name__ == "__main__":
    print(json.dumps({name: attempt(*given) for name, given in json.loads(sys.argv[1]).items()}))
