"""Build the wheel and the sdist, and try them in clean environments: `make packages`.

The wheel is made from the sdist. In a new environment for each Python the wheel is installed with
its dependencies and runs the first Python example of the README; in the first one the sdist is
installed and tried too, and in the last one, which has wheels of everything, every extra is
resolved (`pip install --dry-run`). Each environment
is removed before the next is made: torch is large.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
TOP_LEVEL = {"tensormd"}
"""The only import name that the wheel may install."""


def run(*command: str | Path, folder: Path) -> str:
    """Output of a command; a failing one ends the script with all that it printed."""
    environment = os.environ | {"TENSORMD_CACHE": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of the tracked files, or of all files where there is no git."""
    source = folder / "source"
    if (ROOT / ".git").exists():
        names = run("git", "-C", ROOT, "ls-files", "-z", folder=folder).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name)
    else:
        shutil.copytree(ROOT, source)
    tools = environment(sys.executable, folder / "tools")
    run(tools, "-m", "pip", "install", "--quiet", "build", "twine", folder=folder)
    out = folder / "dist"
    run(tools, "-m", "build", "--outdir", out, source, folder=folder)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    run(tools, "-m", "twine", "check", wheel, sdist, folder=folder)
    shutil.rmtree(folder / "tools")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    foreign = {name for name in names if not name.endswith(".dist-info")} - TOP_LEVEL
    if foreign:
        sys.exit(f"{wheel.name} would install {sorted(foreign)} beside {sorted(TOP_LEVEL)}")
    return wheel, sdist


def environment(python: str, folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def example() -> str:
    """The first Python example of the README: ASE."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    if found is None:
        sys.exit("README.md holds no Python example")
    return found[1]


def try_package(python: Path, folder: Path) -> str:
    """Run the README's example and the command; the last line of the example's output."""
    script = folder / "example.py"
    script.write_text(example())
    lines = run(python, script, folder=folder).splitlines()
    run(python.parent / "tensormd", "--version", folder=folder)
    run(python.parent / "tensormd", "relax", "--help", folder=folder)
    energies = [line for line in lines if line.endswith(" eV")]
    if not energies:
        sys.exit("the example printed no energy:\n" + "\n".join(lines))
    return energies[-1]


def resolve_extras(python: Path, wheel: Path, folder: Path) -> None:
    """Ask pip for the packages of every extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    for extra in metadata.get_all("Provides-Extra", []):
        install = [python, "-m", "pip", "install", "--dry-run", "--quiet"]
        run(*install, f"{wheel}[{extra}]", folder=folder)
        print(f"  extra {extra}: resolves", flush=True)


def main() -> None:
    """Build and try the packages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", action="append", help=f"interpreter; may be repeated. Default: {PYTHONS}"
    )
    parser.add_argument("--no-extras", action="store_true", help="do not resolve the extras")
    parser.add_argument("-o", "--out", type=Path, help="folder for wheel and sdist")
    arguments = parser.parse_args()
    wanted = arguments.python or [name for name in PYTHONS if shutil.which(name)]
    if not wanted:
        sys.exit(f"none of {PYTHONS} is installed: name one with --python")
    for name in set(PYTHONS) - set(wanted) if not arguments.python else ():
        print(f"{name}: not installed here, not tried", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        print(f"built {wheel.name} from {sdist.name}", flush=True)
        for number, interpreter in enumerate(wanted):
            start = time.monotonic()
            python = environment(interpreter, folder / "env")
            run(python, "-m", "pip", "install", "--quiet", wheel, folder=folder)
            energy = try_package(python, folder)
            version = run(python, "--version", folder=folder).strip()
            print(f"{version}: wheel, {energy} ({time.monotonic() - start:.0f} s)", flush=True)
            if number == 0:
                pip = [python, "-m", "pip"]
                run(*pip, "uninstall", "--yes", "--quiet", "tensormd", folder=folder)
                run(*pip, "install", "--quiet", "--no-deps", sdist, folder=folder)
                print(f"{version}: sdist, {try_package(python, folder)}", flush=True)
            if number == len(wanted) - 1 and not arguments.no_extras:
                resolve_extras(python, wheel, folder)
            shutil.rmtree(folder / "env")
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            for path in (wheel, sdist):
                shutil.copy(path, arguments.out)


if __name__ == "__main__":
    main()
