"""A calculator behind a socket: ASE's server, i-PI, and what does not fit."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import get_calculator_class
from ase.calculators.socketio import SocketIOCalculator
from ase.db import connect
from ase.io import read, write
from support.helpers import crystal, ethanol, make_potential
from support.md_runs import run, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.sockets import serve

NAME = "tensormd_test_"


def molecule() -> Atoms:
    system = ethanol()
    return Atoms(system.numbers, system.positions)


def solid() -> Atoms:
    system = crystal()
    return Atoms(system.numbers, system.positions, cell=system.cell, pbc=True)


def calculator() -> PotentialCalculator:
    return PotentialCalculator(make_potential(1), dtype="float64", backend="reference")


@pytest.fixture
def in_thread() -> Iterator[Callable[..., list[Any]]]:
    """Run `serve` in a thread; the list receives its result, or its exception."""
    threads: list[threading.Thread] = []

    def start(atoms: Atoms, **options: Any) -> list[Any]:
        atoms.calc = calculator()
        found: list[Any] = []

        def target() -> None:
            try:
                found.append(serve(atoms, **options))
            except ValueError as error:
                found.append(error)

        threads.append(threading.Thread(target=target))
        threads[-1].start()
        return found

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("make", [molecule, solid])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_an_ase_server_gets_the_calculator_s_results(
    make: Callable[[], Atoms], kind: str, in_thread: Callable[..., list[Any]]
) -> None:
    atoms, here = make(), make()
    here.calc = calculator()
    if kind == "unix":
        where: dict[str, Any] = {"unixsocket": NAME + uuid4().hex}
        found = in_thread(make(), socket=where["unixsocket"])
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"port": free.getsockname()[1]}
        found = in_thread(make(), port=where["port"])
    with SocketIOCalculator(**where, timeout=30) as server:
        atoms.calc = server
        for _ in range(3):
            atoms.rattle(0.05)
            if atoms.pbc.any():
                atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
            here.positions, here.cell = atoms.positions, atoms.cell
            assert atoms.get_potential_energy() == pytest.approx(here.get_potential_energy())
            forces = here.get_forces()
            assert np.abs(forces).max() > 0.1
            np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-10, atol=1e-10)
            if atoms.pbc.any():
                np.testing.assert_allclose(atoms.get_stress(), here.get_stress(), rtol=1e-9)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(10)
    assert found == [3]


def listen(name: str, *messages: bytes) -> threading.Thread:
    """A program at a UNIX socket that sends messages to the first that comes."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/tmp/ipi_{name}")
    server.listen()

    def talk() -> None:
        connection, _ = server.accept()
        for message in messages:
            connection.sendall(message)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(100):
                pass
        server.close()
        Path(f"/tmp/ipi_{name}").unlink()

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


CELL = np.eye(3).tobytes() * 2


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([b"POSDATA     ", CELL, np.int32(3).tobytes()], "sent 3 atoms: expected 9"),
        ([b"POSDATA     ", b"\xff" * 144], "numbers that are not finite"),
        ([b"HELLO       "], "sent 'HELLO': expected the protocol"),
        ([b"\xff" * 12], "does not speak the protocol"),
    ],
)
def test_what_does_not_fit_is_one_line(messages: list[bytes], expected: str) -> None:
    atoms, name = molecule(), NAME + uuid4().hex
    atoms.calc = calculator()
    thread = listen(name, *messages)
    with pytest.raises(ValueError, match=expected):
        serve(atoms, socket=name)
    thread.join(10)


def test_options() -> None:
    atoms = molecule()
    for options, message in (
        ({}, "one of them"),
        ({"socket": "a", "port": 1}, "one of them"),
        ({"socket": "a/b"}, "without '/'"),
        ({"port": 70000}, "expected 1 to 65535"),
        ({"socket": "a", "wait": -1}, "wait is -1"),
        ({"socket": "nobody", "wait": 0}, "nobody listens at UNIX socket /tmp/ipi_nobody"),
        ({"port": 1, "wait": 0}, "nobody listens at 127.0.0.1:1 "),
        ({"port": 1, "host": "no.such.host.invalid"}, "cannot be reached"),
    ):
        with pytest.raises(ValueError, match=message):
            serve(atoms, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --socket NAME or --port N"),
        (["--socket", "x", "--host", "::1"], "--host is an option of --port only"),
        (
            ["--socket", "nobody", "--wait", "0", "--backend", "reference"],
            "nobody listens at UNIX socket",
        ),
    ],
)
def test_mistakes_at_the_command_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write("molecule.xyz", molecule())
    assert run("serve", "molecule.xyz", "-m", "tiny.safetensors", *arguments) == 2
    assert message in capsys.readouterr().err


def test_ase_makes_the_calculator_again(tmp_path: Path) -> None:
    assert get_calculator_class("tensormd") is PotentialCalculator
    write_tiny_potential(tmp_path / "tiny.safetensors")
    atoms = molecule()
    atoms.calc = PotentialCalculator(tmp_path / "tiny.safetensors", backend="reference")
    energy = atoms.get_potential_energy()
    with connect(tmp_path / "all.db") as database:
        database.write(atoms)
    row = connect(tmp_path / "all.db").get(1)
    again = row.toatoms()
    again.calc = get_calculator_class(row.calculator)(**row.calculator_parameters)
    assert again.calc.backend == "reference"
    assert again.get_potential_energy() == pytest.approx(energy, abs=1e-6)


IPI = """
<simulation verbosity='low'>
  <output prefix='out'>
    <properties stride='1' filename='log'>
      [ step, conserved{{electronvolt}}, potential{{electronvolt}} ]
    </properties>
    <trajectory filename='pos' stride='1' format='ase'> positions{{ase}} </trajectory>
  </output>
  <total_steps> 10 </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffsocket name='tensormd' mode='unix' pbc='false'> <address> {name} </address> </ffsocket>
  <system>
    <initialize nbeads='4'>
      <file mode='ase'> start.extxyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='tensormd'> </force> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 0.1 </timestep> </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
  </system>
</simulation>
"""


def test_path_integrals_with_i_pi(tmp_path: Path) -> None:
    """Four beads of ethanol: the mean of ASE's energies, and a conserved quantity."""
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install ipi")
    beside = Path(sys.executable).with_name("i-pi")
    command = str(beside) if beside.exists() else shutil.which("i-pi")
    if command is None:
        pytest.skip("there is no command i-pi: pip install ipi")
    name = NAME + uuid4().hex
    atoms = molecule()
    atoms.cell = [20.0, 20.0, 20.0]
    write(tmp_path / "start.extxyz", atoms)
    (tmp_path / "input.xml").write_text(IPI.format(name=name))
    with (tmp_path / "said").open("w") as said:
        ipi = subprocess.Popen([command, "input.xml"], cwd=tmp_path, stdout=said, stderr=said)
    atoms.calc = calculator()
    try:
        served = serve(atoms, socket=name)
    finally:
        ipi.wait(60)
    assert served >= 4 * 11
    log = np.loadtxt(tmp_path / "out.log")
    assert len(log) == 11
    beads = [read(tmp_path / f"out.pos_{k}.extxyz", ":") for k in range(4)]
    for step in (0, 10):
        energies = []
        for bead in beads:
            atoms.positions = bead[step].positions
            energies.append(atoms.get_potential_energy())
        mean = np.mean(energies)
        assert log[step, 2] == pytest.approx(mean, abs=1e-4)  # the file has few digits
    assert np.ptp(log[:, 1]) < 0.02 * np.ptp(log[:, 2])
