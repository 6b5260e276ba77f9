"""Files that cannot be trusted are read here, and files are written whole or not at all.

Whatever is wrong with a file ends as one `ValueError` that names it, what was expected and
the remedy. Nothing is ever unpickled: torch files open with ``weights_only=True``, which
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
    """Stands for a class whose name a file mentions and nobody needs."""


def _plain_data() -> list[Any]:
    """Classes that hold data alone, found beside the tensors of checkpoints."""
    scalar = np.float64(0).__reduce__()[0]
    callbacks = "pytorch_lightning.callbacks"
    return [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?")),
        # Files hold the names of their day, and of the system they were written on.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (PurePosixPath, "pathlib.PosixPath"),
        (PurePosixPath, "pathlib._local.PosixPath"),
        (PureWindowsPath, "pathlib.WindowsPath"),
        (PureWindowsPath, "pathlib._local.WindowsPath"),
        # Lightning before 1.5 kept the states of callbacks under their classes.
        (_Unused, f"{callbacks}.model_checkpoint.ModelCheckpoint"),
        (_Unused, f"{callbacks}.early_stopping.EarlyStopping"),
        (_Unused, f"{callbacks}.lr_monitor.LearningRateMonitor"),
    ]


# What torch may read is a global of torch: one file at a time.
_reading = threading.Lock()


def read_bytes(path: Path) -> bytes:
    """The contents of a file.

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
    """Tensors and plain data of a file written by ``torch.save``, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged, or would have to run code to be read.
    """
    try:
        with _reading, torch.serialization.safe_globals(_plain_data()):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = str(error)
        refused = re.search(r"(?:GLOBAL|global|type|class) ([\w.]+\.[\w.]+)", message)
        # Instructions of pickle protocol 4, of which torch reads none: a plain pickle.
        if refused is None and "Unsupported operand" not in message:
            raise _damaged(name, error) from error
        what = f" ({refused.group(1)})" if refused else ""
        raise ValueError(
            f"{name} is a pickle that would run code when opened{what}: it was not opened. "
            "Expected tensors and plain data: in the program that wrote it, save the state "
            "dict and the hyper-parameters instead of the whole object"
        ) from error
    except Exception as error:  # torch raises whatever its parsers meet in damaged bytes
        raise _damaged(name, error) from error


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """The named tensors of a torch file, or of the ``state_dict`` in it; empty: it has none."""
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
        lines = lines[2:]  # torch's advice to open it all the same, which nobody should follow
    reason = lines[0][:120] if lines else type(error).__name__
    return ValueError(
        f"{name} is damaged or truncated ({reason}): expected a file written by torch.save; "
        "copy or download it again"
    )


def is_zip(data: bytes) -> bool:
    """Whether the bytes begin as a zip archive does."""
    return data[:4] == b"PK\x03\x04"


def is_torch(data: bytes, name: str) -> bool:
    """Whether the bytes were written by ``torch.save`` (a zip of its own, or a pickle)."""
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
    """Members of an archive in alphabetical order, read into memory: nothing is unpacked.

    Raises
    ------
    ValueError
        If it is damaged, if a member's name leads out of the archive, or if it unpacks to
        more than ``MAX_UNPACKED_BYTES``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            for info in infos:
                # zipfile itself turns the other system's separators into slashes.
                path = PurePosixPath(info.orig_filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                    raise ValueError(
                        f"{name} holds a member named {info.orig_filename!r}, which leads out of "
                        "the archive: expected checkpoints alone; make the zip anew"
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
        Naming the first tensor that has one.
    """
    for key, tensor in tensors.items():
        if key in exempt or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name}: {count} of {tensor.numel()} values of {key} are NaN or infinite: expected "
            "finite weights; take an earlier checkpoint of that training"
        )
