"""What an attacker would plant: bytes that run code when they are unpickled, in the forms that loaders meet."""

from __future__ import annotations

import io
import pickle  # to attack with
import zipfile
from pathlib import Path

import numpy as np


class _Gadget:
    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self._mark,)


def as_pickle(mark: Path) -> bytes:
    """Unpickling it makes the file ``mark``."""
    return pickle.dumps(_Gadget(mark))


def as_checkpoint(mark: Path) -> bytes:
    """The same as a file of ``torch.save``: a zip with a pickle inside."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(mark))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def as_array(mark: Path) -> bytes:
    """The same as an object array of NumPy."""
    out = io.BytesIO()
    np.save(out, np.array([_Gadget(mark)], dtype=object), allow_pickle=True)
    return out.getvalue()


def as_yaml(mark: Path) -> bytes:
    """YAML's own way to make objects."""
    return f'!!python/object/apply:os.system ["touch {mark}"]\n'.encode()


FORMS = {"a pickle": as_pickle, "a checkpoint": as_checkpoint, "an array": as_array, "YAML": as_yaml}
