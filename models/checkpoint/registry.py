"""Checkpoints by name: their addresses, and verification of downloads.

Files with a known SHA-256 are compared with it. For the others, the first download must have the
digest that the hub publishes (the SHA-256 of a large file, git's SHA-1 of a small one). SHA-256
and revision are then recorded, so that later loads get the same bytes or an error.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..files import cache_folder, write_atomically

DOWNLOAD_TIMEOUT_S = 60
MAX_DOWNLOAD_BYTES = 2**31


@dataclass(frozen=True)
class HubFile:
    """A file on huggingface.co, whose digest is recorded at the first download."""

    repository: str
    filename: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repository}, {self.filename}"


@dataclass(frozen=True)
class WebFile:
    """A file at an address that never changes, with its SHA-256."""

    url: str
    filename: str
    sha256: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Entry:
    """One name of the registry.

    Attributes
    ----------
    files
        One file, or the files of a folder; a `Path` is a file that ships with the package.
    units
        Units of length and energy stated by the model's authors; None if the file states them.
    elements
        Atomic numbers, if the authors state them but the file does not.
    trained_with_charge
        Whether charged structures were among the training data; None if the file states it, or
        nobody does.
    dispersion
        Whether the energies of the training data hold dispersion; None if the file states it, or
        nobody does.
    """

    name: str
    description: str
    licence: str
    files: tuple[HubFile | WebFile | Path, ...]
    units: tuple[str, str] | None = None
    elements: tuple[int, ...] | None = None
    trained_with_charge: bool | None = None
    dispersion: bool | None = None


_SHIPPED = Path(__file__).parents[1] / "pretrained"
_ACEFF_ELEMENTS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
_MATGL = (
    "https://raw.githubusercontent.com/materialsvirtuallab/matgl/"
    "4b44201a0f525266127c93db88383a6dbc04bc9c/pretrained_models/"
    "TensorNet-MatPES-PBE-v2025.1-PES/"
)


def _aceff(version: str, network: str, elements: tuple[int, ...] | None) -> Entry:
    return Entry(
        name=f"aceff-{version}",
        description=f"Acellera AceFF {version}: drug-like molecules, charged ones too ({network})",
        licence="Apache-2.0",
        files=(HubFile(f"Acellera/AceFF-{version}", f"aceff_v{version}.ckpt"),),
        units=("angstrom", "ev"),
        elements=elements,
        dispersion=True,  # wB97M-V
    )


def _matpes(functional: str, size: str, blocks: int) -> Entry:
    name = f"TensorNet-PES-MatPES-{functional}-2025.2{size}"
    return Entry(
        name=name,
        description=f"Materials, 89 elements (MatPES 2025.2, {functional}), {blocks} layers, by "
        "the Materials Virtual Lab",
        licence="BSD-3-Clause",
        # The description first: it is small, and nothing else is fetched if it cannot be read.
        files=tuple(HubFile(f"materialyze/{name}", file) for file in ("model.json", "state.pt")),
        units=("angstrom", "ev"),
        dispersion=False,
    )


REGISTRY: dict[str, Entry] = {
    entry.name.lower(): entry
    for entry in (
        Entry(
            name="organic",
            description="TensorNet of neutral molecules of H C N O F S Cl (from ANI-2x); "
            "ships with the package",
            licence="MIT",
            files=(_SHIPPED / "organic.safetensors",),
            trained_with_charge=False,
            dispersion=False,
        ),
        Entry(
            name="ethanol",
            description="TensorNet of ethanol (revised MD17, PBE); ships with the package",
            licence="MIT",
            files=(_SHIPPED / "tensornet-ethanol.safetensors",),
            trained_with_charge=False,
            dispersion=False,
        ),
        Entry(
            name="ethanol-tdn",
            description="TDN of ethanol (revised MD17, PBE); ships with the package",
            licence="MIT",
            files=(_SHIPPED / "tdn-ethanol.safetensors",),
            trained_with_charge=False,
            dispersion=False,
        ),
        _aceff("1.0", "TensorNet", _ACEFF_ELEMENTS),
        _aceff("1.1", "TensorNet", None),
        _aceff("2.0", "TensorNet2", _ACEFF_ELEMENTS),
        Entry(
            name="TensorNet-MatPES-PBE-v2025.1",
            description="Materials, 89 elements (MatPES, PBE), by the Materials Virtual Lab",
            licence="BSD-3-Clause",
            files=(
                WebFile(
                    _MATGL + "model.json",
                    "model.json",
                    "cf7d1db6c89da617245021a8fde16fb79db5bc06f7b6e11ee837f06eb32137d8",
                ),
                WebFile(
                    _MATGL + "state.pt",
                    "state.pt",
                    "d2dfa51a65d23a47fd935eb0628177d2a1088584562091ef3350ce3a002fce6a",
                ),
            ),
            units=("angstrom", "ev"),
            dispersion=False,
        ),
        *(
            _matpes(functional, size, blocks)
            for functional in ("PBE", "r2SCAN")
            for size, blocks in (("", 2), ("-m", 3))
        ),
    )
}
# matgl's own name of the model.
ALIASES = {"tensornet-matpes-pbe-v2025.1-pes": "tensornet-matpes-pbe-v2025.1"}


def registry_names() -> list[str]:
    """Names of the registry, which `load_potential` accepts."""
    return [entry.name for entry in REGISTRY.values()]


def find(name: str) -> Entry | None:
    """Entry of a name, in any case; None if there is none."""
    key = name.lower()
    return REGISTRY.get(ALIASES.get(key, key))


def suggest(name: str) -> str:
    """Text for an error message: a similar name, or all names."""
    near = difflib.get_close_matches(name.lower(), [*REGISTRY, *ALIASES], n=1, cutoff=0.6)
    if near:
        return f"did you mean {REGISTRY[ALIASES.get(near[0], near[0])].name!r}?"
    return f"the registry has {', '.join(registry_names())}"


def fetch(entry: Entry) -> Path:
    """Local file or folder of an entry, downloaded if necessary, and verified.

    Raises
    ------
    ValueError
        If a file cannot be downloaded, or has another digest than expected.
    """
    paths: list[Path] = []
    for file in entry.files:
        paths.append(_fetch_file(entry, file, paths[0] if paths else None))
    return paths[0] if len(paths) == 1 else paths[0].parent


def _fetch_file(entry: Entry, file: HubFile | WebFile | Path, first: Path | None) -> Path:
    """Local file; ``first`` is the first file of the same folder, or None."""
    if isinstance(file, Path):
        if not file.is_file():
            raise ValueError(
                f"{entry.name} should ship with the package, but {file} is missing: install "
                "tensormd again"
            )
        return file
    if isinstance(file, WebFile):
        return _fetch_web(entry, file)
    return _fetch_hub(entry, file, first)


def _unreachable(entry: Entry, file: HubFile | WebFile, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:160]
    return ValueError(
        f"cannot download {entry.name} from {file} ({reason}): connect to the network, or pass "
        "the path of a copy instead of the name"
    )


def _mismatch(entry: Entry, file: HubFile | WebFile, found: str, expected: str) -> ValueError:
    return ValueError(
        f"{entry.name} from {file} has the {'SHA-1' if len(found) == 40 else 'SHA-256'} "
        f"{found}: expected {expected}; the file was "
        "changed or damaged on the way, and was not opened"
    )


# Addresses


def _fetch_web(entry: Entry, file: WebFile) -> Path:
    path = cache_folder() / entry.name / file.filename
    with contextlib.suppress(OSError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
            return path
    try:
        data = _download(file.url)
    except Exception as error:  # network errors of any kind
        raise _unreachable(entry, file, error) from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise _mismatch(entry, file, found, file.sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise ValueError(
            f"cannot keep {entry.name} in {path.parent} ({error.strerror}): set TENSORMD_CACHE "
            "to a folder that can be written to"
        ) from error
    return path


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
        data: bytes = response.read(MAX_DOWNLOAD_BYTES)
    return data


# The hub


def _fetch_hub(entry: Entry, file: HubFile, first: Path | None = None) -> Path:
    records = _read_records()
    key = f"{file.repository}/{file.filename}"
    record = records.get(key)
    revision = record["revision"] if record else file.revision
    if first is not None and record is None and _COMMIT.fullmatch(first.parent.name):
        revision = first.parent.name  # all files of a folder from the same commit
    try:
        path, commit = _hub_download(file.repository, file.filename, revision)
        data = path.read_bytes()
        expected = record["sha256"] if record else _hub_digest(file, commit)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise _unreachable(entry, file, error) from error
    sha256 = hashlib.sha256(data).hexdigest()
    found = _git_digest(data) if _COMMIT.fullmatch(expected) else sha256
    if found != expected:
        raise _mismatch(entry, file, found, expected)
    if record is None:
        records[key] = {"revision": commit, "sha256": sha256}
        _write_records(records)
    return path


_COMMIT = re.compile("[0-9a-f]{40}")
"""A commit, or git's digest of a file."""


def _git_digest(data: bytes) -> str:
    """Git's SHA-1 of a file, which the hub publishes for small ones."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _hub_download(repository: str, filename: str, revision: str) -> tuple[Path, str]:
    """Local copy of a file, and its commit."""
    # Imported here: the client is slow to import, and only downloads need it.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    found: str | None = None
    if _COMMIT.fullmatch(revision):
        # A commit never changes, so a cached file needs no network.
        with contextlib.suppress(LocalEntryNotFoundError):
            found = hf_hub_download(repository, filename, revision=revision, local_files_only=True)
    if found is None:
        _require_network(constants.ENDPOINT)
        found = hf_hub_download(repository, filename, revision=revision)
    path = Path(found)
    # The cache is laid out as .../snapshots/COMMIT/FILENAME.
    commit = path.parts[-1 - len(Path(filename).parts)]
    return path, commit if _COMMIT.fullmatch(commit) else revision


def _require_network(address: str) -> None:
    """Fail at once without a network; the client would try for half a minute."""
    if not urllib.request.getproxies():  # behind a proxy, other addresses may be unreachable
        parts = urllib.parse.urlsplit(address)
        socket.getaddrinfo(parts.hostname, parts.port or 443)


def _hub_digest(file: HubFile, revision: str) -> str:
    """Digest that the hub publishes as the etag: SHA-256 of a large file, git's of a small one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    address = hf_hub_url(file.repository, file.filename, revision=revision)
    etag = get_hf_file_metadata(address).etag or ""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise ValueError(f"the hub publishes no digest of it (etag {etag!r})")
    return etag


def _records_path() -> Path:
    return cache_folder() / "digests.json"


def _read_records() -> dict[str, dict[str, str]]:
    try:
        records = json.loads(_records_path().read_text())
        return {
            key: {"revision": str(r["revision"]), "sha256": str(r["sha256"])}
            for key, r in records.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{_records_path()} cannot be read ({error}): it holds the digests of downloaded "
            "checkpoints; remove it to start again"
        ) from error


def _write_records(records: dict[str, dict[str, str]]) -> None:
    path = _records_path()
    # A read-only cache must not prevent anyone from running.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(records, indent=1, sort_keys=True) + "\n").encode())
