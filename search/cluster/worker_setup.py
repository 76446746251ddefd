"""Set up every worker process on a cluster."""

from __future__ import annotations

import os
import socket

import psutil
import ray


def use_cluster_interface() -> None:
    """Makes gloo listen on the address by which the cluster knows this host.

    By itself it listens where the host's own name points, on many systems a loopback address,
    and workers on different hosts then wait for each other in vain.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == address for a in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return
