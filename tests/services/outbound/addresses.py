"""Addresses and hosts that are not on the public internet, as they may be written."""

from __future__ import annotations

import socket

PUBLIC = "93.184.215.14"

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:93.184.215.14", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::5db8:d70e",
    "64:ff9b:1::1", "2002:7f00:1::", "2002:5db8:d70e::1", "2001:0:4136:e378::1",
]  # fmt: skip

THIS_MACHINE = [
    "127.0.0.1", "localhost", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]", "[::]",
    "[::ffff:7f00:1]", "[::ffff:127.0.0.1]",
]  # fmt: skip


def connect_as_from_afar(port: int, timeout_s: float) -> socket.socket:
    """A connection to a server of this machine whose two ends have different addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout_s, ("127.0.0.2", 0))
