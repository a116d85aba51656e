"""Tilts out of an array of angles, as programs of reconstruction exchange them: one per image, or three of which one is the tilt.

GENFIRE and RESIRE take Euler angles, (images, 3), in degrees: phi about z, theta about y, psi about x (or z again). Theta is the tilt only
where the other two are zero. y is the second dimension of their images: with (rows, columns) = (first, second) the tilt axis lies along the
columns (reconstruct/euler.py has more).
"""

from __future__ import annotations

import re

import numpy as np

from aet_stream.projection import Array

EULER_AXIS_DEG = -90.0
"""Where the axis lies in images that have Euler angles, as `Acquisition.tilt_axis_deg` counts; -90 rather than 90, for the hand."""
_PLAIN_DEG = 0.01
"""Rotations about the beam up to this are none: no alignment is as good, and files hold single precision."""
_SURELY_DEG = 1.6
_NAME = re.compile(r"(?:(?:tilt|euler|refined|proj(?:ection)?|initial)_?)*(?:ang(?:le)?s?|theta|tilts?|alpha)(?:_?(?:deg|rad))?")


def is_angle_name(name: str) -> bool:
    """Does a variable of this name hold angles?"""
    return _NAME.fullmatch(name.lower()) is not None


def axis_deg(angles: Array, images: int) -> float | None:
    """Where angles of this shape say that the tilt axis lies in the images; None: they do not."""
    return EULER_AXIS_DEG if _euler(angles, images) is not None else None


def tilts_deg(name: str, angles: Array, images: int) -> tuple[Array | None, str, str]:
    """The tilts that an array of angles states for the images of a file.

    Parameters
    ----------
    name : of the array, for the words
    angles : (images,), (images, 1) or (images, 3), any numeric type
    images : how many there have to be

    Returns
    -------
    (images,) float64 degrees, or None; their unit ("?" where they may be radians); and why there are none
    """
    angles = np.asarray(angles, dtype=np.float64)
    euler = _euler(angles, images)
    if euler is not None:
        angles = euler[:, 1]
        if turned := _turned(euler):
            return None, "deg", f"{name} {turned}"
    if angles.size != images or angles.size != max(angles.shape, default=0):
        return None, "deg", f"{name} holds {' x '.join(map(str, angles.shape))} number(s) for {images} image(s)"
    angles = angles.ravel()
    if name.lower().endswith("rad"):
        return np.degrees(angles), "rad", ""
    # Three tilts and more within two degrees are hardly a series in degrees; in radians they are.
    small = images > 2 and 0 < float(np.abs(angles).max()) < _SURELY_DEG and not name.lower().endswith("deg")
    return angles, "?" if small else "deg", ""


def _euler(angles: Array, images: int) -> Array | None:
    """(images, 3)"""
    return next((rows for rows in (angles, angles.T) if rows.shape == (images, 3)), None) if angles.size != images else None


def _turned(euler: Array) -> str:
    """Why theta is not the tilt, (images, 3) degrees; an empty string where it is."""
    turned = np.abs(euler[:, [0, 2]]).max(axis=1)
    if turned.max() <= _PLAIN_DEG:
        return ""
    worst = int(turned.argmax())
    phi, theta, psi = euler[worst]
    said = f"phi {phi:g}, theta {theta:g}, psi {psi:g} of image {worst}"
    remedy = "is theta alone meant, write it into a .rawtlt beside the file, one a line"
    return f"holds Euler angles ({said}), which are no turn about one axis: {remedy}"
