"""Runs a command where there is no network but this machine's own: `offline_box.py WORD…`.

Exit code 77: such a place cannot be made here.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _UP = 0x8914, 1


def main() -> None:
    if ctypes.CDLL(None).unshare(_NEWUSER | _NEWNET):
        sys.exit(77)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP))
    except OSError:
        sys.exit(77)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
