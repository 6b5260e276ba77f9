"""A calculator behind a socket, for i-PI and other programs that speak its protocol.

ASE's client does the talking; here stand the connection, and the checks of what arrives. Numbers
in a fixed layout are received, nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient
from ase.parallel import DummyMPI
from ase.units import Bohr

LOOPBACK = "127.0.0.1"
RETRY = 0.2
"""Seconds between two attempts to connect."""


def serve(
    atoms: Atoms,
    *,
    socket: str | None = None,
    port: int | None = None,
    host: str = LOOPBACK,
    wait: float = 30.0,
    step: Callable[[int], Any] | None = None,
) -> int:
    """Compute energies, forces and virials for a program that sends positions, until it ends.

    Parameters
    ----------
    atoms
        The structure, with its calculator: positions and, if it is periodic, the cell are
        replaced by what arrives. Elements stay in their order.
    socket
        Name of a UNIX socket: the program listens at ``/tmp/ipi_NAME``, as i-PI does.
    port, host
        TCP port and host instead; nothing is encrypted, and nobody is asked who they are.
    wait
        Seconds to wait for the program to listen.
    step
        Called with the number of evaluations after each one.

    Returns
    -------
    int
        Number of evaluations.

    Raises
    ------
    ValueError
        If neither or both of socket and port are given, nobody listens, or what arrives is not
        the protocol or does not fit the structure.
    """
    if (socket is None) == (port is None):
        raise ValueError("give the name of a UNIX socket, or a TCP port: one of them")
    if socket is not None and (not socket or "/" in socket or "\0" in socket):
        raise ValueError(f"socket is {socket!r}: expected the name after /tmp/ipi_, without '/'")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port is {port}: expected 1 to 65535")
    if wait < 0:
        raise ValueError(f"wait is {wait} s: expected zero or a positive time")
    client = _connect(socket, host, port, wait)
    client.protocol = _Checked(client.protocol.socket, len(atoms))
    served = 0
    try:
        for _ in client.irun(atoms, use_stress=bool(atoms.pbc.any())):
            served += 1
            if step is not None:
                step(served)
    except KeyError as error:
        raise ValueError(
            f"the program at the socket sent {error.args[-1]!r}: expected the protocol of i-PI"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        return served  # the program has ended without a farewell
    return served


def _connect(socket: str | None, host: str, port: int | None, wait: float) -> SocketClient:
    end = time.monotonic() + wait
    while True:
        try:
            # Without a communicator of its own, ASE would look for one in the environment.
            return SocketClient(host=host, port=port, unixsocket=socket, comm=DummyMPI())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            reason = error.strerror
        except OSError as error:  # a host that is not there, or that may not be reached
            raise ValueError(f"{host}:{port} cannot be reached: {error}") from None
        if time.monotonic() > end:
            where = f"UNIX socket /tmp/ipi_{socket}" if socket is not None else f"{host}:{port}"
            raise ValueError(
                f"nobody listens at {where} after {wait:g} s ({reason}): start i-PI (or the other "
                "program) first, with this name"
            )
        time.sleep(RETRY)


class _Checked(IPIProtocol):
    """The protocol, with messages for what does not fit."""

    def __init__(self, socket: Any, atoms: int) -> None:
        super().__init__(socket)
        self.atoms = atoms

    def recvmsg(self) -> Any:
        with contextlib.suppress(UnicodeDecodeError):
            return super().recvmsg()
        raise ValueError("the program at the socket does not speak the protocol of i-PI")

    def recvposdata(self) -> Any:
        """Cell and positions, in Angstrom; the number of atoms is checked before they are read."""
        cell = self.recv((3, 3), np.float64)
        inverse = self.recv((3, 3), np.float64)
        atoms = int(self.recv(1, np.int32)[0])
        if atoms != self.atoms:
            raise ValueError(
                f"the program at the socket sent {atoms} atoms: expected {self.atoms}, as in the "
                "structure, in its order"
            )
        positions = self.recv((atoms, 3), np.float64)
        return cell.T * Bohr, inverse.T / Bohr, positions * Bohr

    def recv(self, shape: Any, dtype: Any) -> Any:
        try:
            return super().recv(shape, dtype)
        except AssertionError:
            raise ValueError(
                "the program at the socket sent numbers that are not finite"
            ) from None
