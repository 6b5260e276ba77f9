"""Names of checkpoints, with a hub that exists only in the tests."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_helpers import make_model, save
from support.paths import ROOT

from tensormd.models import Potential
from tensormd.models.checkpoint import load_potential, registry, registry_names
from tensormd.models.checkpoint.registry import HubFile, WebFile

COMMIT = "a" * 40
MATGL4 = ROOT / "tests" / "matgl4" / "bessel"


class FakeHub:
    """Files of huggingface.co, what it says of them, and whether it can be reached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.published: dict[str, str] = {}
        self.online = True
        self.asked: list[tuple[str, str]] = []

    def add(self, repository: str, filename: str, data: bytes) -> None:
        self.files[f"{repository}/{filename}"] = data
        self.published[f"{repository}/{filename}"] = hashlib.sha256(data).hexdigest()

    def download(self, repository: str, filename: str, revision: str) -> tuple[Path, str]:
        self.asked.append((f"{repository}/{filename}", revision))
        if not self.online:
            raise OSError("Temporary failure in name resolution\nand a second line")
        path = self.folder / "snapshots" / COMMIT / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[f"{repository}/{filename}"])
        return path, COMMIT

    def digest(self, file: HubFile, revision: str) -> str:
        assert revision == COMMIT
        return self.published[f"{file.repository}/{file.filename}"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_hub_download", fake.download)
    monkeypatch.setattr(registry, "_hub_digest", fake.digest)
    return fake


def checkpoint(tmp_path: Path, seed: int = 0, **changes: Any) -> bytes:
    model, arguments = make_model(seed, **changes)
    return save(tmp_path / "made.ckpt", model, arguments).read_bytes()


ACEFF = ("Acellera/AceFF-1.0", "aceff_v1.0.ckpt")


def test_names() -> None:
    assert {
        "ethanol",
        "aceff-1.0",
        "aceff-1.1",
        "aceff-2.0",
        "TensorNet-MatPES-PBE-v2025.1",
        "TensorNet-PES-MatPES-PBE-2025.2",
        "TensorNet-PES-MatPES-r2SCAN-2025.2-m",
    } <= set(registry_names())
    for name in registry_names():
        entry = registry.find(name.upper())
        assert entry is not None
        assert entry.name == name
        assert entry.licence
        for file in entry.files:
            assert not isinstance(file, WebFile) or len(file.sha256) == 64
    assert registry.find("TensorNet-MatPES-PBE-v2025.1-PES") is not None
    assert registry.find("model.ckpt") is None


def test_download(hub: FakeHub, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    hub.add(*ACEFF, checkpoint(tmp_path, max_z=100))
    potential = load_potential("AceFF-1.0")
    assert isinstance(potential, Potential)
    assert potential.elements == [1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53]
    assert not [w for w in recwarn if "units" in str(w.message)]
    assert potential.metadata["licence"] == "Apache-2.0"
    assert potential.metadata["name"] == "aceff-1.0"
    assert "Acellera/AceFF-1.0" in potential.metadata["source"]["address"][0]


def test_folder_of_the_hub(hub: FakeHub) -> None:
    """Both files from one commit, each with the digest that the hub has for its size."""
    name = "TensorNet-PES-MatPES-r2SCAN-2025.2"
    files = {file: (MATGL4 / file).read_bytes() for file in ("model.json", "state.pt")}
    for file, data in files.items():
        hub.add(f"materialyze/{name}", file, data)
    small = f"materialyze/{name}/model.json"
    hub.published[small] = subprocess.run(
        ["git", "hash-object", str(MATGL4 / "model.json")],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    potential = load_potential(name)
    assert isinstance(potential, Potential)
    assert potential.metadata["name"] == name
    assert [revision for _, revision in hub.asked] == ["main", COMMIT]
    records = json.loads((registry.cache_folder() / "digests.json").read_text())
    assert records[small]["sha256"] == hashlib.sha256(files["model.json"]).hexdigest()
    hub.published.clear()  # from now on the records are enough
    load_potential(name.lower())

    hub.files[small] += b" "
    with pytest.raises(ValueError, match=rf"{name} .*SHA-256.*not opened"):
        load_potential(name)


def test_small_file_with_another_digest(hub: FakeHub) -> None:
    name = "TensorNet-PES-MatPES-PBE-2025.2-m"
    hub.add(f"materialyze/{name}", "model.json", b"{}")
    hub.published[f"materialyze/{name}/model.json"] = "0" * 40
    with pytest.raises(ValueError, match=rf"{name} .*SHA-1.*not opened"):
        load_potential(name)


def test_second_network_by_name(hub: FakeHub, tmp_path: Path) -> None:
    data = checkpoint(tmp_path, model="tensornet2", max_z=100)
    hub.add("Acellera/AceFF-2.0", "aceff_v2.0.ckpt", data)
    potential = load_potential("aceff-2.0")
    assert isinstance(potential, Potential)
    assert potential.architecture == "TensorNet2"
    assert potential.elements == [1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53]


def test_first_digest_and_revision_are_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(*ACEFF, checkpoint(tmp_path, max_z=100))
    load_potential("aceff-1.0")
    records = json.loads((tmp_path / "cache" / "digests.json").read_text())
    assert records == {
        "/".join(ACEFF): {"revision": COMMIT, "sha256": hub.published["/".join(ACEFF)]}
    }
    load_potential("aceff-1.0")
    assert [revision for _, revision in hub.asked] == ["main", COMMIT]
    # The hub now has another file, and says so: that is not what was loaded before.
    hub.add(*ACEFF, checkpoint(tmp_path, seed=1, max_z=100))
    with pytest.raises(ValueError, match=r"aceff-1\.0.*SHA-256.*expected.*not opened"):
        load_potential("aceff-1.0")


def test_digest_that_the_hub_does_not_publish(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(*ACEFF, checkpoint(tmp_path))
    hub.published["/".join(ACEFF)] = "0" * 64
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        load_potential("aceff-1.0")
    assert not (tmp_path / "cache" / "digests.json").exists()


def test_offline(hub: FakeHub) -> None:
    hub.online = False
    with pytest.raises(ValueError, match="cannot download") as error:
        load_potential("aceff-2.0")
    message = str(error.value)
    for part in ("aceff-2.0", "Acellera/AceFF-2.0", "aceff_v2.0.ckpt", "name resolution", "path"):
        assert part in message
    assert "\n" not in message


def test_offline_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unknown(*_: Any) -> None:
        raise OSError("Name or service not known")

    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("the client of the hub would try again for half a minute")

    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"cannot download aceff-2\.0 .*service not known"):
        load_potential("aceff-2.0")


def test_what_was_downloaded_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    path = tmp_path / "snapshots" / COMMIT / ACEFF[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint(tmp_path, max_z=100))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    records = {"/".join(ACEFF): {"revision": COMMIT, "sha256": digest}}
    (tmp_path / "digests.json").write_text(json.dumps(records))

    def download(repository: str, filename: str, **options: Any) -> str:
        assert (repository, filename) == ACEFF
        assert options == {"revision": COMMIT, "local_files_only": True}
        return str(path)

    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert isinstance(load_potential("aceff-1.0"), Potential)


def test_units_that_contradict_the_authors(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(*ACEFF, checkpoint(tmp_path, max_z=100))
    load_potential("aceff-1.0", units=("angstrom", "ev"))
    with pytest.raises(ValueError, match=r"aceff-1\.0 states.*leave units out"):
        load_potential("aceff-1.0", units=("angstrom", "hartree"))


def test_damaged_records(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "digests.json").write_text("[]")
    with pytest.raises(ValueError, match=r"digests\.json cannot be read.*remove it"):
        load_potential("aceff-1.0")


# Files at an address, whose digest is known


@pytest.fixture
def matpes(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    entry = registry.find("TensorNet-MatPES-PBE-v2025.1")
    assert entry is not None
    served: dict[str, bytes] = {}

    def download(url: str) -> bytes:
        if url not in served:
            raise OSError("unreachable")
        return served[url]

    monkeypatch.setattr(registry, "_download", download)
    for file in entry.files:
        assert isinstance(file, WebFile)
        served[file.url] = file.filename.encode()
    return served


def test_address_with_a_known_digest(matpes: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TensorNet-MatPES.*SHA-256.*expected cf7d1db6"):
        load_potential("TensorNet-MatPES-PBE-v2025.1")
    assert not list((tmp_path / "cache").rglob("*.json"))
    matpes.clear()
    with pytest.raises(
        ValueError, match=r"cannot download TensorNet-MatPES.*raw\.githubusercontent"
    ):
        load_potential("tensornet-matpes-pbe-v2025.1-pes")


def test_address_served_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.checkpoint_files import MATPES as FOLDER

    if not (FOLDER / "state.pt").exists():
        pytest.skip(f"needs the weights of matgl in {FOLDER}")
    downloads = []

    def download(url: str) -> bytes:
        downloads.append(url)
        return (FOLDER / url.rsplit("/")[-1]).read_bytes()

    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "_download", download)
    for _ in range(2):
        potential = load_potential("TensorNet-MatPES-PBE-v2025.1")
    assert len(downloads) == 2  # two files, once
    assert len(potential.elements) == 89
    assert potential.metadata["licence"] == "BSD-3-Clause"
    # What was damaged in the cache is fetched again.
    (tmp_path / "TensorNet-MatPES-PBE-v2025.1" / "state.pt").write_bytes(b"x")
    load_potential("TensorNet-MatPES-PBE-v2025.1")
    assert len(downloads) == 3


def test_the_one_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.find("ethanol")
    assert entry is not None
    (path,) = entry.files
    assert isinstance(path, Path)
    if path.exists():
        assert {1, 6, 8} <= set(load_potential("ethanol").elements)
    missing = registry.Entry("ethanol", "", "MIT", (Path("/nowhere/x.safetensors"),))
    monkeypatch.setitem(registry.REGISTRY, "ethanol", missing)
    with pytest.raises(ValueError, match=r"should ship with the package.*install"):
        load_potential("ethanol")


def test_a_path_of_the_same_name_can_be_meant(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aceff-1.0").write_bytes(checkpoint(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="does not state its units"):
        assert isinstance(load_potential("./aceff-1.0"), Potential)
    with pytest.warns(UserWarning, match="does not state its units"):
        assert isinstance(load_potential(Path("aceff-1.0")), Potential)
    assert not hub.asked
    assert torch.get_default_dtype() == torch.float32
