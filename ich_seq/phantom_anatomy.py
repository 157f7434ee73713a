"""The head of a phantom: skull, brain, ventricles, chance findings and bleeds, as arrays of HU.

A head is a set of closed formulas in millimetres (x to the patient's left, y to the back) and in the
share of the scanned height (z, 0 on the lowest slice, 1 on the highest), sampled on N slices. What the
scanner adds, such as noise, headrest, tilt and padding, is the business of `phantom`.

Arrays in, arrays out. h and w are rows and columns of a picture cropped to the head, in the pixels of
the scan, which has H and W of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ich_seq.phantom_labels import Body, Doubles, Floats

Triple = tuple[float, float, float]
Rows = tuple[tuple[Triple, Triple, float], ...]

AIR_HU = -1000


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head on N slices, cropped to h x w pixels around it; all arrays float32, slices feet to head.

    x, y         (h, w) mm from the middle of the head to the patient's left and to the back
    angle        (h, w) radians, 0 to the left, a quarter turn to the back
    z            (N,) height as a share of the scan, 0 to 1
    depth        (N, h, w) mm inside the inner table, negative outside
    brain        (N, h, w) share of the pixel inside the brain's coverings
    sulci        (N, h, w) share of the pixel that is a sulcus
    ventricles   (N, h, w) share of the pixel that is a ventricle
    folds        (N, h, w) smooth noise of sd 1
    hu           (N, h, w) HU without noise of the scanner; `draw_bleed` changes it in place
    pixel_mm     side of a pixel
    """

    x: Floats
    y: Floats
    angle: Floats
    z: Floats
    depth: Floats
    brain: Floats
    sulci: Floats
    ventricles: Floats
    folds: Floats
    hu: Floats
    pixel_mm: float


def _ramp(value: NDArray[np.floating[Any]]) -> Floats:
    """Share of a pixel that lies inside, from the distance to the edge in edge widths."""
    return np.asarray(np.clip(value + np.float32(0.5), 0, 1), np.float32)


def _blend(hu: Floats, share: NDArray[np.floating[Any]], value: Floats | float) -> None:
    """Replace `share` of each pixel of `hu` by `value`, in place."""
    hu += share * (value - hu)


def texture(shape: tuple[int, int, int], grain: float, rng: np.random.Generator) -> Floats:
    """(N, h, w) noise of sd 1, smooth in the slice and from slice to slice.

    Windows sliding over one wide picture: a tenth of the time of filtering in 3D.
    """
    n, h, w = shape
    move = max(1, round(grain / 2))
    wide = rng.standard_normal((h + n * move, w + n * move), dtype=np.float32)
    wide = gaussian_filter(wide, grain, mode="wrap")
    wide /= wide.std()
    return np.stack([wide[k * move :, (n - k) * move :][:h, :w] for k in range(n)])


def _ball(
    head_xyz: tuple[Floats, Floats, Floats],
    centre: Triple,
    radii: Triple,
    *,
    pixel_mm: float,
    turn: float = 0.0,
) -> tuple[tuple[slice, slice, slice], Floats]:
    """Box and soft mask of an ellipsoid: x, y in mm turned by `turn` radians, z as a share."""
    x, y, z = head_xyz
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    flat = ((dx * c + dy * s) / radii[0]) ** 2 + ((dy * c - dx * s) / radii[1]) ** 2
    up = ((z - np.float32(centre[2])) / radii[2]) ** 2
    rows, columns = np.flatnonzero((flat < 1).any(1)), np.flatnonzero((flat < 1).any(0))
    levels = np.flatnonzero(up < 1)
    if not (rows.size and columns.size and levels.size):
        return (slice(0), slice(0), slice(0)), np.zeros((0, 0, 0), np.float32)
    z0, y0, x0 = (slice(i[0], i[-1] + 1) for i in (levels, rows, columns))
    box = (z0, y0, x0)
    q = np.sqrt(flat[box[1], box[2]] + up[box[0], None, None])
    return box, _ramp((1 - q) * np.float32(min(radii[:2]) / pixel_mm))


# x of the left one (0: midline), y, z share; radii; turn. Mirrored where x > 0. Sizes vary a head.
VENTRICLES: Rows = (
    ((9.0, -27.0, 0.52), (5.0, 15.0, 0.075), -0.30),  # frontal horn
    ((13.0, -2.0, 0.615), (6.5, 30.0, 0.095), -0.12),  # body
    ((24.0, 28.0, 0.50), (6.5, 15.0, 0.075), 0.25),  # atrium and occipital horn
    ((31.0, 6.0, 0.37), (3.0, 12.0, 0.040), 0.20),  # temporal horn
    ((0.0, -3.0, 0.455), (2.6, 13.0, 0.075), 0.0),  # third
    ((0.0, 22.0, 0.350), (2.4, 3.0, 0.110), 0.0),  # aqueduct
    ((0.0, 32.0, 0.250), (7.5, 6.0, 0.140), 0.0),  # fourth
)
# Air and fat under the skull base: centre, radii, HU.
FACE: Rows = (
    ((32.0, -62.0, 0.19), (17.0, 24.0, 0.11), -75.0),  # orbit
    ((32.0, -73.0, 0.20), (12.0, 12.0, 0.07), 15.0),  # globe
    ((9.0, -62.0, 0.17), (6.0, 22.0, 0.12), -850.0),  # ethmoid cells
    ((8.0, -24.0, 0.15), (9.0, 11.0, 0.07), -900.0),  # sphenoid sinus
    ((28.0, -52.0, 0.02), (14.0, 17.0, 0.08), -930.0),  # maxillary sinus
    ((9.0, -80.0, 0.33), (11.0, 5.0, 0.07), -850.0),  # frontal sinus
    ((56.0, 32.0, 0.13), (8.0, 10.0, 0.07), -450.0),  # mastoid cells
)
CISTERNS = (  # segments x0, y0, x1, y1 in mm: suprasellar star, ambient and Sylvian cisterns
    (0, -8, 0, -42), (0, -8, 24, -16), (0, -8, -24, -16), (24, -16, 52, -8), (-24, -16, -52, -8),
    (0, -8, 15, 10), (0, -8, -15, 10), (15, 10, 6, 22), (-15, 10, -6, 22),
)  # fmt: skip


def _dome(z: Floats, top: float) -> Floats:
    """(N,) size of a closed vault at height z, 1 at its widest, 0 from `top` on."""
    up = np.clip((z - 0.48) / (top - 0.48), 0, 1)
    down = np.clip((0.48 - z) / 0.48, 0, 1)
    return np.asarray(np.sqrt(1 - up**2.3) * (1 - 0.20 * down**1.6), np.float32)


def _floor(x: Floats, y: Floats, half: tuple[float, float]) -> tuple[Floats, Floats]:
    """(h, w) height of the skull base as a share of z, and the petrous ridge as a share of 1."""
    u, v = np.abs(x) / half[0], y / half[1]
    away = (v - (0.52 * u - 0.08)) * half[1]
    petrous = np.exp(-((away / 6.0) ** 2)) * _ramp((u - 0.14) / 0.1) * _ramp((0.92 - u) / 0.1)
    roofs = 0.09 * np.exp(-(((u - 0.5) / 0.30) ** 2) - ((v + 0.72) / 0.22) ** 4)
    front = 0.05 / (1 + np.exp((v + 0.40) / 0.05)) + roofs
    front += 0.15 / (1 + np.exp((v - 0.56 * u + 0.08) / 0.06))
    clivus = 0.08 * np.exp(-((x / 13.0) ** 2) - ((v + 0.12) / 0.16) ** 4)
    return np.asarray(0.01 + front + clivus + 0.13 * petrous, np.float32), petrous.astype(np.float32)


def _segments(x: Floats, y: Floats) -> Floats:
    """(h, w) distance in mm to the nearest cistern."""
    nearest = np.full_like(x, 1e3)
    for x0, y0, x1, y1 in CISTERNS:
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - t * dx, y - y0 - t * dy))
    return nearest.astype(np.float32)


def _mirrored(rows: Rows) -> Iterator[tuple[Triple, Triple, float, int]]:
    """Each row, and its mirror image where it lies off the midline; the last item is the side."""
    for (x, y, z), radii, last in rows:
        for side in (1, -1) if x else (1,):
            yield (side * x, y, z), radii, last, side


def _contour(angle: Floats, half: tuple[float, float], rng: np.random.Generator) -> Floats:
    """(h, w) radius of the inner table in mm towards each pixel, at its widest."""
    reach = half[0] * half[1] / np.hypot(half[1] * np.cos(angle), half[0] * np.sin(angle))
    for m, share in ((1, 0.008), (2, 0.008), (3, 0.012), (4, 0.006)):
        reach *= 1 + rng.normal(0, share) * np.cos(m * angle + rng.uniform(0, 6.3))
    brow = np.clip(-np.sin(angle), 0, 1) * np.abs(np.cos(angle))  # narrower forehead
    return np.asarray(reach * (1 - 0.05 * brow), np.float32)


def draw_head(table_mm: Doubles, pixel_mm: float, rng: np.random.Generator) -> Head:
    """Draw one patient without bleeds: size, shape, age and chance findings from `rng`.

    `table_mm` (N,) holds the heights of the slices in mm, rising, N at least 2; the head is stretched to
    fill them. `pixel_mm` is the side of a pixel. The same state of `rng` gives the same patient for any
    `table_mm` and `pixel_mm`, except for the texture. Refuses nothing.
    """
    z = ((table_mm - table_mm[0]) / np.ptp(table_mm)).astype(np.float32)
    p, half = pixel_mm, (float(rng.normal(65, 3)), float(rng.normal(81, 3.5)))
    u = np.arange(-round((half[0] + 27) / p), round((half[0] + 27) / p) + 1, dtype=np.float32) * p
    v = np.arange(-round((half[1] + 22) / p), round((half[1] + 22) / p) + 1, dtype=np.float32) * p
    turn = rng.normal(0, np.deg2rad(3))
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y = u * c - v[:, None] * s, v[:, None] * c + u * s
    angle, r = np.arctan2(y, x), np.hypot(x, y)
    reach = _contour(angle, half, rng)
    top, age = rng.uniform(0.91, 0.955), rng.uniform(0, 1)
    radius = _dome(z, top)
    depth = radius[:, None, None] * reach - r
    # A stream apart: the texture's draws hang on N, the rest of a patient must not.
    folds = texture(depth.shape, 4.2 / p, rng.spawn(1)[0])
    # Through a sloping vault a thick slice holds bone and brain at once.
    edge = np.maximum(p, 0.45 * np.abs(np.gradient(radius)) * float(np.mean(reach)))[:, None, None]
    hu = np.full(depth.shape, AIR_HU, np.float32)
    _cover(hu, (reach, r, edge, z, top), folds, rng)
    floor, petrous = _floor(x, y, half)
    step = np.gradient(z)[:, None, None]
    above = (z[:, None, None] - floor) / step
    brain = _ramp(depth / edge) * _ramp(above)
    _face(hu, (x, y, z), (above * step, petrous, _ramp(depth / edge)), folds, p)
    width = 0.14 + 0.18 * age
    sulci = np.clip(1.25 - np.abs(folds) / width, 0, 1) * np.clip((16 - depth) / 6, 0, 1) * brain
    spaces = _ventricles(depth.shape, (x, y, z), age, p, rng) * brain
    fields = {"depth": depth, "brain": brain, "sulci": sulci, "ventricles": spaces, "folds": folds}
    head = Head(x=x, y=y, angle=angle, z=z, hu=hu, pixel_mm=p, **fields)
    _parenchyma(head, age, rng)
    _findings(head, age, rng)
    _injuries(head, rng.spawn(1)[0])
    return head


def _cover(
    hu: Floats,
    shape: tuple[Floats, Floats, Floats, Floats, float],
    folds: Floats,
    rng: np.random.Generator,
) -> None:
    """Scalp and skull: two more vaults around the inner table, each with its own top."""
    reach, r, edge, z, top = shape
    skull, scalp = rng.uniform(4.5, 8.5), rng.uniform(3.5, 7.5)
    for thick, rise, value in ((skull + scalp, 0.055, -25.0), (skull, 0.028, 0.0)):
        out = _dome(z, top + rise)[:, None, None] * (reach + thick) - r
        if value == 0.0:
            inner = np.clip(out / skull, 0, 1)
            bone = rng.uniform(950, 1250) - 1500 * inner * (1 - inner) + 40 * folds
            _blend(hu, _ramp(out / edge), bone)
        else:
            _blend(hu, _ramp(out / edge), -25 + 70 * (out > scalp * 0.5).astype(np.float32))


def _face(
    hu: Floats,
    xyz: tuple[Floats, Floats, Floats],
    base: tuple[Floats, Floats, Floats],
    folds: Floats,
    pixel_mm: float,
) -> None:
    """Fill the vault under the skull base: muscle, sinuses, orbits, then the bony base on top."""
    above, petrous, inside = base
    low = slice(0, int(np.searchsorted(xyz[2], 0.48)))
    above, inside, folds = above[low], inside[low], folds[low]
    below = _ramp(-above / 0.02) * inside
    _blend(hu[low], below, 45 + 25 * folds)
    for centre, radii, value, _ in _mirrored(FACE):
        box, share = _ball(xyz, centre, radii, pixel_mm=pixel_mm)
        _blend(hu[box], share * (below[box] if hu[box].size else share), value)
    bone = below * _ramp((above + 0.035 + 0.13 * petrous) / 0.03)
    _blend(hu[low], bone, 620 + 260 * petrous + 110 * folds)


def _ventricles(
    shape: tuple[int, ...],
    xyz: tuple[Floats, Floats, Floats],
    age: float,
    pixel_mm: float,
    rng: np.random.Generator,
) -> Floats:
    """(N, h, w) share of each pixel that is a ventricle; wider with age, left and right unequal."""
    spaces = np.zeros(shape, np.float32)
    sides = {side: (0.75 + 0.55 * age) * rng.uniform(0.92, 1.08) for side in (1, -1)}
    for (x, y, z), (a, b, c), turn, side in _mirrored(VENTRICLES):
        wide = sides[side]
        radii = (a * wide, b * (0.6 + 0.4 * wide), c)
        box, share = _ball(xyz, (x, y, z), radii, pixel_mm=pixel_mm, turn=side * turn)
        spaces[box] = np.maximum(spaces[box], share)
    return spaces


def _parenchyma(head: Head, age: float, rng: np.random.Generator) -> None:
    """Grey and white matter, fluid spaces, falx and tentorium, hardening of the beam."""
    inward = np.clip((head.depth - 4) / 10 + 0.35 * head.folds, 0, 1)
    tissue = rng.uniform(35.0, 38.5) - 7.5 * inward + 1.2 * head.folds
    tissue += 6 * np.clip(1 - head.depth / 5, 0, 1)  # cupping: the brain looks denser along bone
    fluid = np.maximum(head.sulci * 0.85, np.clip(1.2 - head.depth / (1.2 + 2.2 * age), 0, 1))
    near = _segments(head.x, head.y)
    middle = np.exp(-(((head.z - 0.37) / 0.06) ** 2))[:, None, None]
    fluid = np.maximum(fluid, _ramp((2.0 + age - near) / head.pixel_mm) * middle)
    fissure = np.clip(1.6 - np.abs(head.x), 0, 1) * (np.abs(head.y) > 30)
    fluid = np.maximum(fluid, 0.6 * fissure * (head.z > 0.45)[:, None, None])
    _blend(tissue, np.minimum(fluid, 1) * 0.9, 9.0)
    falx = np.clip(1.3 - np.abs(head.x + 1.0), 0, 1) * ((head.y > 38) | (head.y < -34))
    _blend(tissue, falx * np.clip((head.z - 0.45) / 0.1, 0, 1)[:, None, None], rng.uniform(42, 66))
    spread = np.abs(np.abs(head.x) - 0.75 * (head.y - 20)) * (head.y > 20)
    tent = np.clip(1.5 - spread, 0, 1) * (head.y > 20) * (head.y < 62)
    _blend(tissue, tent * np.exp(-(((head.z - 0.38) / 0.04) ** 2))[:, None, None] * 0.7, 50.0)
    sinus = _ramp((4.0 - np.hypot(head.x, head.depth - 3)) / head.pixel_mm) * (head.y > 0)
    _blend(tissue, sinus * (head.z > 0.3)[:, None, None] * 0.8, rng.uniform(48, 60))
    _blend(tissue, head.ventricles, rng.uniform(4, 11))
    bands = np.sin(head.y * rng.uniform(0.5, 0.9) + 2) * np.exp(-(((head.y - 12) / 16) ** 2))
    hard = np.exp(-(((head.z - 0.2) / 0.09) ** 2))[:, None, None] * rng.uniform(2, 8)
    tissue += hard * (bands - 0.6 * np.exp(-(((head.y - 8) / 9) ** 2)))
    _blend(head.hu, head.brain, tissue)


SWOLLEN_SCALP, AIR_INSIDE = 0.20, 0.04  # ours: shares of the patients
OUTER_TABLE_MM = 9.5  # deep enough for the thickest skull of `_cover` and its edge


def _findings(head: Head, age: float, rng: np.random.Generator) -> None:
    """What a reader must not take for a bleed: calcifications and old infarcts."""
    finds: list[tuple[Triple, Triple, float]] = []
    if rng.random() < 0.35 + 0.6 * age:  # choroid plexus, pineal gland
        for x in (rng.normal(25, 1), rng.normal(-25, 1)):
            finds.append(((x, 29.0, 0.50), (2.6, 3.4, 0.03), rng.uniform(80, 190)))
        finds.append(((rng.normal(0, 1), 17.0, 0.46), (2.6, 2.6, 0.025), rng.uniform(90, 260)))
    if rng.random() < 0.12 * (1 + age):  # basal ganglia
        finds += [((s * 17.0, -6.0, 0.50), (3.5, 7.0, 0.03), rng.uniform(55, 85)) for s in (1, -1)]
    if rng.random() < 0.10:
        spot = (rng.uniform(-40, 40), rng.uniform(-45, 45), rng.uniform(0.45, 0.75))
        finds.append((spot, (3.0, 3.0, 0.025), rng.uniform(90, 300)))
    if rng.random() < 0.08 * (1 + age):
        where = (rng.choice([-1, 1]) * 46.0, rng.uniform(-25, 40), rng.uniform(0.5, 0.7))
        finds.append((where, (15, rng.uniform(10, 22), 0.12), rng.uniform(18, 26)))
    for centre, radii, value in finds:
        box, share = _ball((head.x, head.y, head.z), centre, radii, pixel_mm=head.pixel_mm)
        ragged = np.clip(1 + 0.5 * head.folds[box], 0, 1) if value < 30 else 1
        _blend(head.hu[box], share * head.brain[box] * ragged, value)


def _injuries(head: Head, rng: np.random.Generator) -> None:
    """What comes with a blow or an operation and is no bleed inside the skull: a swollen scalp, air."""
    up = np.sqrt(np.clip(1 - ((head.z - rng.uniform(0.3, 0.8)) / rng.uniform(0.1, 0.3)) ** 2, 0, None))
    off = np.angle(np.exp(1j * (head.angle - rng.uniform(-np.pi, np.pi)))) / rng.uniform(0.25, 0.7)
    bulge = np.sqrt(np.clip(up[:, None, None] ** 2 - off**2, 0, None)).astype(np.float32)
    if rng.random() < SWOLLEN_SCALP:
        under = head.depth + OUTER_TABLE_MM
        swollen = _ramp((rng.uniform(5, 15) * bulge + under) / head.pixel_mm) * _ramp(-under / head.pixel_mm)
        _blend(head.hu, np.where(bulge > 0, swollen, 0), rng.uniform(40, 70) + 8 * head.folds)
    if rng.random() < AIR_INSIDE:
        air = _ramp((rng.uniform(3, 14) * bulge - head.depth) / head.pixel_mm) * (head.y < 0)
        _blend(head.hu, np.where(bulge > 0, air, 0) * head.brain, float(AIR_HU))


def _extra_axial(head: Head, body: Body, size: Floats, rng: np.random.Generator) -> Floats:
    """Epidural: a biconvex lens on the inner table. Subdural: a long thin crescent along it."""
    lens = body.subtype == "epidural"
    width = rng.uniform(0.36, 0.62) if lens else rng.uniform(0.8, 1.7)
    thick = rng.uniform(4, 26) if lens else rng.uniform(3, 13)
    low = float(head.z[body.first]) < 0.30
    at = rng.uniform(0.7, 1.1) if low else rng.uniform(-0.9, 0.7)  # from the side, towards the back
    at = at if rng.random() < 0.5 else np.pi - at
    off = (np.angle(np.exp(1j * (head.angle - at))) / width).astype(np.float32)
    bulge = np.sqrt(np.clip(size[:, None, None] ** 2 - off**2, 0, None))
    share = _ramp((thick * bulge - head.depth) / head.pixel_mm)
    return np.where(bulge > 0, share, np.float32(0))


def _intraparenchymal(head: Head, body: Body, size: Floats, rng: np.random.Generator) -> Floats:
    """A lobed ellipsoid, deep, lobar or in the posterior fossa after its height; > 1 is oedema."""
    middle = float(head.z[(body.first + body.last) // 2])
    if middle < 0.33:
        x, y = rng.uniform(-26, 26), rng.uniform(34, 48)
    else:
        tall = 1.0 if middle < 0.7 else 0.65
        x, y = rng.choice([-1, 1]) * rng.uniform(16, 44) * tall, rng.uniform(-42, 42) * tall
    radius = float(np.clip(3.5 + 1.5 * (body.last - body.first) * rng.uniform(0.6, 1.3), 4, 27))
    aspect, turn = rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    dx, dy = head.x - x, head.y - y
    q = np.hypot((dx * c + dy * s) / aspect, dy * c - dx * s).astype(np.float32) / radius
    lobed = q + 0.13 * head.folds * (q < 2)
    return np.asarray((size[:, None, None] - lobed) * (radius / head.pixel_mm), np.float32)


def _intraventricular(head: Head, size: Floats, rng: np.random.Generator) -> Floats:
    """Ventricles filled whole, on one side, or up to a fluid level at the back."""
    spaces = head.ventricles.copy()
    style = rng.random()
    if style < 0.3:
        spaces *= head.x * rng.choice([-1, 1]) > -4
    elif style < 0.7:
        part = rng.uniform(0.25, 0.6)
        for k in np.flatnonzero(size):
            held = head.y[spaces[k] > 0.3]
            level = np.quantile(held, 1 - part * size[k]) if held.size else 0.0
            spaces[k] *= _ramp((head.y - level) / 2)
    return spaces


def _subarachnoid(head: Head, body: Body, size: Floats, rng: np.random.Generator) -> Floats:
    """Sulci of one region and, low enough, the basal cisterns."""
    low = float(head.z[body.first]) < 0.30  # only the back holds brain there
    at = rng.uniform(0.7, 2.4) if low else rng.uniform(-np.pi, np.pi)
    width = rng.uniform(0.5, 1.6)
    off = np.abs(np.angle(np.exp(1j * (head.angle - at)))) / width
    region = np.clip(3 * (size[:, None, None] - off), 0, 1)
    rim = np.clip(1.3 - head.depth / 2.5, 0, 1) * (head.z < 0.34)[:, None, None]
    share = np.maximum(np.minimum(1, 1.3 * head.sulci), rim) * region
    if rng.random() < 0.6:
        near = np.exp(-(((head.z - 0.36) / 0.07) ** 2))[:, None, None]
        thin = _ramp((2.4 - _segments(head.x, head.y)) / head.pixel_mm)
        share = np.maximum(share, thin * near * size[:, None, None])
    return np.asarray(share, np.float32)


# HU of the blood and the share of it: fresh clot 55-75; subdural blood may be as old as isodense.
SUBTLE = 0.25  # ours: share of the bleeds that are drawn faint
OLD_SUBDURAL = 0.25


def draw_bleed(head: Head, body: Body, rng: np.random.Generator) -> None:
    """Draw one body into `head.hu`, (N, h, w) HU, in place; its ends fade as its size does.

    `body.last` is below N. Place, shape and density come from `rng`; pixels outside `head.brain` stay as
    they are. Refuses nothing.
    """
    size = body.size(len(head.z))
    blood, strength = rng.uniform(57, 75), rng.uniform(0.4, 0.6)
    if rng.random() >= SUBTLE:
        strength = rng.uniform(0.75, 1.0)
    if body.subtype == "subdural" and rng.random() < OLD_SUBDURAL:
        blood = rng.uniform(42, 52)
    if body.subtype == "intraparenchymal":
        edge = _intraparenchymal(head, body, size, rng)
        ring = _ramp(edge / 4 + 1) * (size > 0)[:, None, None]
        _blend(head.hu, ring * head.brain * 0.7 * strength, 21.0)
        share = _ramp(edge) * (size > 0)[:, None, None]
    elif body.subtype == "intraventricular":
        share = _intraventricular(head, size, rng)
    elif body.subtype == "subarachnoid":
        share = _subarachnoid(head, body, size, rng)
    else:
        share = _extra_axial(head, body, size, rng)
    fade = (strength * np.clip(1.5 * size - 0.3, 0, 1)).astype(np.float32)[:, None, None]
    _blend(head.hu, share * head.brain * fade, blood + 2.5 * head.folds)
