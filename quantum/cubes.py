"""Gaussian cube files of stored fields, as VMD, Avogadro, Multiwfn and 3Dmol.js read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from quantum.base import InputError, write_text_atomic
from quantum.elf import Array, Box


def write_cube(path: Path, field: Array, box: Box, numbers: Array, title: str) -> None:
    """Write a field.

    Parameters
    ----------
    field : ndarray (nx, ny, nz)
        On the points of ``box``.
    numbers : ndarray (A,)
        Atomic numbers; positions come from the box. Lengths in the file are in Bohr.
    """
    write_text_atomic(path, cube_text(field, box, numbers, title))


def cube_text(field: Array, box: Box, numbers: Array, title: str) -> str:
    """Text of a cube file: two comment lines, grid, atoms, values with z fastest."""
    if field.shape != box.shape:
        raise InputError(f"field has shape {field.shape}, its box {box.shape}")
    out = io.StringIO()
    out.write(f"{title.splitlines()[0][:78]}\nmedrec; atomic units; outer loop x, inner loop z\n")
    x, y, z = box.origin_bohr
    out.write(f"{len(numbers):5d} {x:12.6f} {y:12.6f} {z:12.6f}\n")
    for i, axis in enumerate(box.axes):
        step = np.zeros(3)
        step[i] = axis[1] - axis[0]
        out.write(f"{len(axis):5d} {step[0]:12.6f} {step[1]:12.6f} {step[2]:12.6f}\n")
    for number, (x, y, z) in zip(numbers, box.coords_bohr, strict=True):
        out.write(f"{int(number):5d} {float(number):12.6f} {x:12.6f} {y:12.6f} {z:12.6f}\n")
    for row in field.reshape(-1, field.shape[2]):
        for start in range(0, len(row), 6):
            out.write("".join(f" {value:12.5E}" for value in row[start : start + 6]) + "\n")
    return out.getvalue()
