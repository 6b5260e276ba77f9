"""Check that the tensors of a file fit a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str) -> None:
    """Check that names and shapes agree.

    Parameters
    ----------
    expected
        State dict of the model, on any device.
    tensors
        Tensors of the file.
    name
        Name of the file, for the message.

    Raises
    ------
    ValueError
        If tensors are missing, unexpected or of another shape; the message names them.
    """
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        said = [f"lacks {_some(missing)}"] if missing else []
        said += [f"has unexpected {_some(extra)}"] if extra else []
        raise ValueError(
            f"{name} {' and '.join(said)}: expected exactly the tensors of the model that it "
            "describes"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{name}: {key} has the shape {tuple(tensor.shape)}: expected "
                f"{tuple(expected[key].shape)} from the description of the model"
            )


def _some(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
