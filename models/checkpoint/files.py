"""Safe reading of untrusted files.

All problems with a file raise a `ValueError` that names the file, what was expected and the
remedy. No arbitrary pickle is loaded: torch files are opened with ``weights_only=True``, which
builds tensors and plain data and refuses to call anything else.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import threading
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_UNPACKED_BYTES = 8 * 2**30


class _Unused:
    """Placeholder for a class that a file mentions but nobody needs."""


def _plain_data() -> list[Any]:
    """Classes of plain data that occur in checkpoints beside tensors."""
    scalar = np.float64(0).__reduce__()[0]
    callbacks = "pytorch_lightning.callbacks"
    return [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")),
        # Names depend on the versions and the system with which a file was written.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (PurePosixPath, "pathlib.PosixPath"),
        (PurePosixPath, "pathlib._local.PosixPath"),
        (PureWindowsPath, "pathlib.WindowsPath"),
        (PureWindowsPath, "pathlib._local.WindowsPath"),
        # Lightning before 1.5 stored the states of callbacks under their classes.
        (_Unused, f"{callbacks}.model_checkpoint.ModelCheckpoint"),
        (_Unused, f"{callbacks}.early_stopping.EarlyStopping"),
        (_Unused, f"{callbacks}.lr_monitor.LearningRateMonitor"),
    ]


# The list of classes that torch may load is global: read one file at a time.
_reading = threading.Lock()


def read_bytes(path: Path) -> bytes:
    """Read the contents of a file.

    Raises
    ------
    ValueError
        If it cannot be read or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if not data:
        raise ValueError(
            f"{path} is empty: expected a checkpoint; was the download or copy interrupted?"
        )
    return data


def load_torch(data: bytes, name: str) -> Any:
    """Load tensors and plain data of a file written by ``torch.save``, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged, or reading it would run code.
    """
    try:
        with _reading, torch.serialization.safe_globals(_plain_data()):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = str(error)
        refused = re.search(r"(?:GLOBAL|global|type|class) ([\w.]+\.[\w.]+)", message)
        # An ordinary pickle has instructions of protocol 4, which torch does not support.
        if refused is None and "Unsupported operand" not in message:
            raise _damaged(name, error) from error
        what = f" ({refused.group(1)})" if refused else ""
        raise ValueError(
            f"{name} is a pickle that would run code when opened{what}: it was not opened. "
            "Expected tensors and plain data: in the program that wrote it, save the state "
            "dict and the hyper-parameters instead of the whole object"
        ) from error
    except Exception as error:  # for damaged bytes torch raises errors of any kind
        raise _damaged(name, error) from error


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """Named tensors of a torch file, or of its ``state_dict``; empty if there are none."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        return {}
    return {
        key: tensor
        for key, tensor in content.items()
        if isinstance(key, str) and isinstance(tensor, Tensor)
    }


def _damaged(name: str, error: Exception) -> ValueError:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    if lines and lines[0].startswith("Weights only load failed"):
        lines = lines[2:]  # torch's unsafe advice to open the file anyway
    reason = lines[0][:120] if lines else type(error).__name__
    return ValueError(
        f"{name} is damaged or truncated ({reason}): expected a file written by torch.save; "
        "copy or download it again"
    )


def is_zip(data: bytes) -> bool:
    """Whether the bytes begin like a zip archive."""
    return data[:4] == b"PK\x03\x04"


def is_torch(data: bytes, name: str) -> bool:
    """Whether the bytes were written by ``torch.save`` (as a special zip, or a pickle)."""
    if is_zip(data):
        return any(PurePosixPath(n).name == "data.pkl" for n in _zip_names(data, name))
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def is_torchscript(data: bytes, name: str) -> bool:
    """Whether the bytes are a TorchScript archive."""
    if not is_zip(data):
        return False
    names = [PurePosixPath(n) for n in _zip_names(data, name)]
    return any(n.name == "constants.pkl" for n in names) and any("code" in n.parts for n in names)


def _zip_names(data: bytes, name: str) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise _damaged(name, error) from error


def unzip(data: bytes, name: str) -> dict[str, bytes]:
    """Read the members of an archive into memory, in alphabetical order; none go to disk.

    Raises
    ------
    ValueError
        If it is damaged, a member's name leads out of the archive, or it unpacks to more than
        ``MAX_UNPACKED_BYTES``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            for info in infos:
                # The original name: zipfile replaces separators of the other system by slashes.
                path = PurePosixPath(info.orig_filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise ValueError(
                        f"{name} holds a member named {info.orig_filename!r}, which leads out of "
                        "the archive: expected only checkpoints; make the zip again"
                    )
            if sum(info.file_size for info in infos) > MAX_UNPACKED_BYTES:
                raise ValueError(
                    f"{name} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB: expected "
                    "the checkpoints of one committee"
                )
            return {i.filename: archive.read(i) for i in sorted(infos, key=lambda i: i.filename)}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _damaged(name, error) from error


def require_finite(tensors: Mapping[str, Tensor], name: str, exempt: Iterable[str] = ()) -> None:
    """Check that no weight is NaN or infinite.

    Raises
    ------
    ValueError
        If a value is NaN or infinite; the message names the first such tensor.
    """
    for key, tensor in tensors.items():
        if key in exempt or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name}: {count} of {tensor.numel()} values of {key} are NaN or infinite: expected "
            "finite weights; take an earlier checkpoint of that training"
        )
