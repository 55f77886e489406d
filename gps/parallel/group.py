"""Processes that work on one call together: a group over torch's Gloo, made and given up per call.

`run_member` is the task of one member. The members find each other through a TCP store that rank 0
holds at an agreed address. Nothing global is set up: the process group is an object of its own.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

from gps.errors import ClusterError
from gps.threads import one_thread
from gps.types import Array

log = logging.getLogger(__name__)


def fresh_address(host: str) -> str:
    """`host:port` with a port that is free now; to be called on the host itself."""
    with socket.create_server((host, 0), family=_family(host)) as server:
        return f"{host}:{server.getsockname()[1]}"


def run_member(
    fn: Callable[..., Any],
    rank: int,
    size: int,
    address: str,
    timeout: float,
    args: tuple[Any, ...],
) -> Any:
    """Call `fn(group, *args)` as member `rank` of `size`; returns its result, None but for rank 0.

    address: `host:port` that rank 0 listens on, from `fresh_address`. timeout: seconds that a
    member waits for another, at the start and in every exchange. May run in any thread. Raises
    ClusterError when a member is gone, at once where its process ended, or after `timeout` where it
    does not answer; what `fn` raises passes, and is a ClusterError to the other members.
    """
    with one_thread():
        group = GlooGroup(rank, size, address, timeout)
        try:
            result = fn(group, *args)
            group.barrier()  # a member that left earlier would break what others still wait for
        finally:
            group.close()
    return result if rank == 0 else None


class GlooGroup:
    """See `gps.execution.Group`."""

    def __init__(self, rank: int, size: int, address: str, timeout: float) -> None:
        self.rank, self.size = rank, size
        self._timeout = timedelta(seconds=timeout)
        self._store: Any = None
        self._group: Any = None
        self._buffers: dict[tuple[tuple[int, ...], str], _Buffers] = {}
        if size > 1:
            try:
                self._connect(address)
            except (RuntimeError, OSError) as error:
                self.close()
                raise self._lost("could not reach the others", error) from None

    def _connect(self, address: str) -> None:
        import torch.distributed

        dist: Any = torch.distributed  # its stubs lack what is used here
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        listener = -1
        if self.rank == 0:  # our own socket: the store would listen on all interfaces
            server = socket.create_server((host, int(port)), family=_family(host))
            listener = server.detach()
        self._store = dist.TCPStore(
            host,
            int(port),
            self.size,
            is_master=self.rank == 0,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=listener if self.rank == 0 else None,
        )
        gloo = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = self._timeout
        options._threads = 1
        options._devices = [
            gloo.create_device(hostname=_own_address(host, int(port)), lazy_init=False)
        ]
        store = dist.PrefixStore(address, self._store)
        self._group = gloo(store, self.rank, self.size, options)

    def all_gather(self, array: Array) -> list[Array]:
        """The arrays of all members in order of rank; all of one shape and dtype.

        The own array is returned itself, the others in buffers that the next call with arrays of
        this shape overwrites. Raises ClusterError.
        """
        if self.size == 1:
            return [array]
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        key = (array.shape, array.dtype.str)
        buffers = self._buffers.get(key)
        if buffers is None:
            buffers = self._buffers[key] = _Buffers(array, self.size)
        error = self._exchange(buffers.sent(array), buffers.tensors)
        if error is not None:  # raised here: the frame above holds what keeps connections open
            raise self._lost("lost another one", error) from None
        out = list(buffers.arrays)
        out[self.rank] = array
        return out

    def _exchange(self, sent: Any, received: list[Any]) -> Exception | None:
        # from each to each: one hop, where Gloo's own allgather goes round a ring
        work = []
        try:
            for rank, tensor in enumerate(received):
                if rank != self.rank:
                    work.append(self._group.send([sent], rank, 0))
                    work.append(self._group.recv([tensor], rank, 0))
            for one in work:
                one.wait(self._timeout)
        except RuntimeError as error:
            return error.with_traceback(None)
        return None

    def barrier(self) -> None:
        """Wait until every member is here. Raises ClusterError."""
        self.all_gather(np.zeros(1))

    def close(self) -> None:
        """Give up the connections, so that members that still wait find out at once."""
        self._group = None  # the only reference: its end closes the connections
        self._store = None  # not before the group, which talks to the store until its end
        self._buffers = {}

    def _lost(self, what: str, error: Exception) -> ClusterError:
        reason = " ".join(str(error).split()).partition(" This is typically")[0][:300]
        return ClusterError(
            f"member {self.rank} of a group of {self.size} {what} (it waits for at most "
            f"{self._timeout.total_seconds():g} s): {reason}"
        )


class _Buffers:
    """Where the arrays of one shape arrive, as arrays and as the tensors over their memory."""

    def __init__(self, array: Array, size: int) -> None:
        import torch

        self.arrays = [np.empty_like(array) for _ in range(size)]
        self.tensors = [torch.from_numpy(a) for a in self.arrays]
        self._sent: tuple[Array, Any] | None = None

    def sent(self, array: Array) -> Any:
        """The tensor over an array that is sent, usually the same one again and again."""
        import torch

        if not array.flags.writeable:
            return torch.from_numpy(array.copy())  # torch warns of memory it must not write to
        if self._sent is None or self._sent[0] is not array:
            self._sent = array, torch.from_numpy(array)
        return self._sent[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _own_address(host: str, port: int) -> str:
    """The address of this machine's interface through which `host` is reached."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(info[0], socket.SOCK_DGRAM) as probe:
        probe.connect(info[4])  # sends nothing
        return str(probe.getsockname()[0])


__all__ = ["GlooGroup", "fresh_address", "run_member"]
