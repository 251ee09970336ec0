"""A procedural world: one textured object moving over a textured, moving ground, with exact ground truth.

A scene is a handful of numbers; a clip is a smooth path through them. Because every pixel's colour is a function of the
scene alone, the object mask, the optical flow and the occlusion are known analytically and not estimated.

Units: positions live on the square [-1, 1]², x to the right and y down, so a scene renders at any resolution.
An object's point u appears at ``centre + scale · R(angle) · u``, a ground point g at ``offset + zoom · g``.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = [
    "COLOURS",
    "GROUNDS",
    "SHAPES",
    "SURFACES",
    "Flow",
    "Frames",
    "Scene",
    "caption",
    "displacement",
    "flow",
    "render",
    "render_two",
    "sample_clip",
    "sample_scenes",
]

SHAPES = ("ball", "square", "star", "ring")
SURFACES = ("plain", "striped", "dotted", "checkered")
GROUNDS = ("snow", "grass", "sand", "water", "brick", "lava")
_RGB = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.99, 0.88, 0.12),
    "green": (0.06, 0.58, 0.30),
    "blue": (0.13, 0.27, 0.88),
    "purple": (0.50, 0.16, 0.68),
    "pink": (1.00, 0.56, 0.76),
    "white": (0.97, 0.97, 0.97),
}
COLOURS = tuple(_RGB)

_RIM = 0.09  # width of the dark rim, object units
_DARK = 0.34  # brightness of a surface's dark half, relative to its colour
_CELL = 0.42  # side of the ground's landmark cells, ground units
_RING_RADIUS, _RING_HALF = 0.70, 0.30
_SQUARE_HALF = 0.86
_STAR_OUTER, _STAR_INNER = 1.12, 0.56


@dataclass(frozen=True)
class Scene:
    """A batch of scenes; every field has the same leading dimension ``scene``.

    shape, colour, surface, ground   (scene,) int64, positions in SHAPES, COLOURS, SURFACES, GROUNDS
    seed      (scene,) int64: which ground it is (its landmarks and their places)
    centre    (scene, 2) float: the object's centre
    scale     (scene,) float: object units → world units
    angle     (scene,) float, radians
    offset    (scene, 2) float: where the ground's origin appears
    zoom      (scene,) float: ground units → world units
    """

    shape: Tensor
    colour: Tensor
    surface: Tensor
    ground: Tensor
    seed: Tensor
    centre: Tensor
    scale: Tensor
    angle: Tensor
    offset: Tensor
    zoom: Tensor

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Scene":
        return Scene(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "Scene":
        return Scene(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Frames:
    """rgb (scene, height, width, 3) float32 in [0, 1]; mask (scene, height, width) bool: the pixel's centre is object.

    coverage (scene, height, width) float32 in [0, 1] is the anti-aliased mask that ``rgb`` was blended with.
    """

    rgb: Tensor
    mask: Tensor
    coverage: Tensor


@dataclass(frozen=True)
class Flow:
    """Displacements in pixels, (x, y) last, between each frame and its neighbour.

    forward   (pair, height, width, 2): from frame i to frame i + 1, on frame i's pixels
    backward  (pair, height, width, 2): from frame i + 1 to frame i, on frame i + 1's pixels
    occluded_forward, occluded_backward  (pair, height, width) bool: the point is hidden or outside in the other frame
    """

    forward: Tensor
    backward: Tensor
    occluded_forward: Tensor
    occluded_backward: Tensor


# ---------------------------------------------------------------------------------------------------- sampling


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _attribute(names: tuple[str, ...], name: str | None, count: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(len(names), (count,), generator=generator)
    if name is None:
        return drawn
    if name not in names:
        raise ValueError(f"no {name!r} in the world; have {', '.join(names)}")
    return torch.full_like(drawn, names.index(name))


def sample_scenes(
    count: int,
    generator: torch.Generator,
    *,
    shape: str | None = None,
    colour: str | None = None,
    surface: str | None = None,
    ground: str | None = None,
) -> Scene:
    """Draw ``count`` still scenes; attributes that are not given are uniform. Same generator state, same scenes."""
    scale = _uniform(0.44, 0.60, (count,), generator)
    reach = 0.9 * (1.0 - scale)[:, None]
    return Scene(
        shape=_attribute(SHAPES, shape, count, generator),
        colour=_attribute(COLOURS, colour, count, generator),
        surface=_attribute(SURFACES, surface, count, generator),
        ground=_attribute(GROUNDS, ground, count, generator),
        seed=torch.randint(1 << 20, (count,), generator=generator),
        centre=reach * _uniform(-1.0, 1.0, (count, 2), generator),
        scale=scale,
        angle=_uniform(-0.5, 0.5, (count,), generator),
        offset=_uniform(-1.0, 1.0, (count, 2), generator),
        zoom=_uniform(0.92, 1.08, (count,), generator),
    )


def sample_clip(
    frames: int,
    generator: torch.Generator,
    *,
    shape: str | None = None,
    colour: str | None = None,
    surface: str | None = None,
    ground: str | None = None,
) -> Scene:
    """Draw one clip: ``frames`` scenes that share attributes and ground and move gently.

    At 64 pixels the object moves about 0.6-1 pixel per frame, the ground about 0.4-0.8, over up to 24 frames; longer
    clips take the same path more slowly.
    """
    start = sample_scenes(1, generator, shape=shape, colour=colour, surface=surface, ground=ground)
    span = min(1.0, frames / 24)
    time = torch.linspace(-0.5, 0.5, frames) * span if frames > 1 else torch.zeros(1)
    heading = float(_uniform(0.0, 2 * math.pi, (1,), generator))
    stride = float(_uniform(0.4, 0.65, (1,), generator))
    bend = float(_uniform(-0.25, 0.25, (1,), generator))
    along = torch.tensor([math.cos(heading), math.sin(heading)])
    across = torch.tensor([-math.sin(heading), math.cos(heading)])
    path = stride * time[:, None] * along + bend * (4 * time[:, None] ** 2 - 0.5) * across * span
    drift_heading = float(_uniform(0.0, 2 * math.pi, (1,), generator))
    drift = float(_uniform(0.3, 0.6, (1,), generator))
    drift_by = drift * torch.tensor([math.cos(drift_heading), math.sin(drift_heading)])
    turn = float(_uniform(0.25, 0.6, (1,), generator)) * (1 if torch.rand(1, generator=generator) < 0.5 else -1)
    swell = float(_uniform(-0.12, 0.12, (1,), generator))
    approach = float(_uniform(-0.05, 0.05, (1,), generator))
    still = start[torch.zeros(frames, dtype=torch.int64)]
    return replace(
        still,
        centre=0.5 * still.centre + path,
        scale=still.scale * (1 + swell * time),
        angle=0.5 * still.angle + turn * time,
        offset=still.offset + drift_by * time[:, None],
        zoom=still.zoom * (1 + approach * time),
    )


# ---------------------------------------------------------------------------------------------------- captions


def caption(
    scene: Scene, index: int = 0, *, say: tuple[bool, bool, bool] = (True, True, True), plain: bool = False
) -> str:
    """The sentence for one scene, such as "a red dotted ring on snow".

    say     whether to name (colour, surface, ground); the shape is always named
    plain   say "plain" of a plain surface, which otherwise goes unsaid
    """
    colour, surface = COLOURS[int(scene.colour[index])], SURFACES[int(scene.surface[index])]
    words = [colour] if say[0] else []
    if say[1] and (surface != "plain" or plain):
        words.append(surface)
    words.append(SHAPES[int(scene.shape[index])])
    article = "an" if words[0][0] in "aeiou" else "a"
    place = [f"on {GROUNDS[int(scene.ground[index])]}"] if say[2] else []
    return " ".join([article, *words, *place])


# ---------------------------------------------------------------------------------------------------- geometry


def _pixel_centres(size: int, device: torch.device) -> Tensor:
    """(height, width, 2) world positions (x, y) of the pixel centres."""
    line = (torch.arange(size, device=device) + 0.5) * (2.0 / size) - 1.0
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1)


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    c, s = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    x, y = points[..., 0], points[..., 1]
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def _to_object(scene: Scene, points: Tensor) -> Tensor:
    return _rotate(points - scene.centre[:, None, None], -scene.angle) / scene.scale[:, None, None, None]


def _from_object(scene: Scene, points: Tensor) -> Tensor:
    return scene.centre[:, None, None] + scene.scale[:, None, None, None] * _rotate(points, scene.angle)


def _to_ground(scene: Scene, points: Tensor) -> Tensor:
    return (points - scene.offset[:, None, None]) / scene.zoom[:, None, None, None]


def _from_ground(scene: Scene, points: Tensor) -> Tensor:
    return scene.offset[:, None, None] + scene.zoom[:, None, None, None] * points


def _star_distance(u: Tensor) -> Tensor:
    """Signed distance to the edge line of a five-pointed star's nearest sector; exact in sign, and near the edges."""
    half = math.pi / 5
    turn = torch.atan2(u[..., 0], -u[..., 1])
    sector = turn - 2 * half * torch.round(turn / (2 * half))
    radius = u.norm(dim=-1)
    along, across = radius * torch.cos(sector), radius * torch.sin(sector).abs()
    inner = (_STAR_INNER * math.cos(half), _STAR_INNER * math.sin(half))
    edge = (inner[0] - _STAR_OUTER, inner[1])
    length = math.hypot(*edge)
    return ((along - _STAR_OUTER) * edge[1] - across * edge[0]) / length


def _distance(scene: Scene, u: Tensor) -> Tensor:
    """Signed distance (object units, negative inside) from object points u (scene, height, width, 2) to the outline."""
    radius = u.norm(dim=-1)
    candidates = torch.stack(
        [
            radius - 1.0,
            u.abs().amax(dim=-1) - _SQUARE_HALF,
            _star_distance(u),
            (radius - _RING_RADIUS).abs() - _RING_HALF,
        ]
    )
    return candidates.gather(0, scene.shape[None, :, None, None].expand(1, *radius.shape))[0]


def flow(clip: Scene, size: int) -> Flow:
    """Exact optical flow between neighbouring scenes of a clip at ``size`` × ``size`` pixels (see Flow)."""
    earlier, later = clip[:-1], clip[1:]
    forward, hidden_forward = displacement(earlier, later, size)
    backward, hidden_backward = displacement(later, earlier, size)
    return Flow(forward, backward, hidden_forward, hidden_backward)


def displacement(source: Scene, target: Scene, size: int, *, border: float | None = None) -> tuple[Tensor, Tensor]:
    """Where the points under the pixels of each scene of `source` are in the scene of `target` at the same place.

    border    how far from the middle a point is outside; without it at the centres of the outermost pixels, beyond
              which nothing can be interpolated. 1 is the picture's edge, which is right for tokens
    returns   displacement (scene, height, width, 2), (x, y) in pixels of a `size` × `size` picture, and hidden
              (scene, height, width) bool: the point is covered or outside in `target`
    """
    pixels = _pixel_centres(size, source.centre.device).expand(len(source), size, size, 2)
    u = _to_object(source, pixels)
    is_object = _distance(source, u) < 0
    landed = torch.where(
        is_object[..., None], _from_object(target, u), _from_ground(target, _to_ground(source, pixels))
    )
    outside = (landed.abs() > (1 - 1 / size if border is None else border)).any(dim=-1)
    covered = ~is_object & (_distance(target, _to_object(target, landed)) < 0)
    return (landed - pixels) * (size / 2), outside | covered


# ---------------------------------------------------------------------------------------------------- appearance


def _hash(i: Tensor, j: Tensor, seed: Tensor, salt: int) -> Tensor:
    """Uniform [0, 1) numbers that depend on nothing but the lattice point, the scene's seed and the salt."""
    h = i * 73856093 + j * 19349663 + seed * 83492791 + salt * 2654435761
    h = (h ^ (h >> 13)) * 1103515245 & 0x7FFFFFFF
    h = (h ^ (h >> 11)) * 668265263 & 0x7FFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFF).float() / 65536.0


def _step(distance: Tensor, width: Tensor) -> Tensor:
    """Anti-aliased [distance < 0]: 1 inside, 0 outside, a smooth ramp ``2 · width`` wide between."""
    t = (0.5 - distance / (2 * width)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _noise(g: Tensor, seed: Tensor, frequency: float, salt: int) -> Tensor:
    """Smooth value noise in [0, 1] over ground points g."""
    p = g * frequency
    cell = p.floor()
    f = p - cell
    f = f * f * (3 - 2 * f)
    i, j = cell[..., 0].long(), cell[..., 1].long()
    fx, fy = f[..., 0], f[..., 1]
    top = _hash(i, j, seed, salt) * (1 - fx) + _hash(i + 1, j, seed, salt) * fx
    low = _hash(i, j + 1, seed, salt) * (1 - fx) + _hash(i + 1, j + 1, seed, salt) * fx
    return top * (1 - fy) + low * fy


def _mix(rgb: Tensor, colour: tuple[float, float, float] | Tensor, amount: Tensor) -> Tensor:
    over = torch.as_tensor(colour, dtype=rgb.dtype, device=rgb.device)
    return rgb + amount[..., None] * (over - rgb)


def _fill(like: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colour, dtype=like.dtype, device=like.device).expand(*like.shape[:-1], 3)


@dataclass(frozen=True)
class _Cells:
    """One landmark per lattice cell: the point's place relative to it, and the cell's own random numbers."""

    x: Tensor
    y: Tensor
    present: Tensor
    kind: Tensor
    size: Tensor


def _cells(g: Tensor, seed: Tensor, side: float, share: float, salt: int) -> _Cells:
    """Landmarks stay inside their own cell, so that a pixel asks one cell only."""
    p = g / side
    cell = p.floor()
    i, j = cell[..., 0].long(), cell[..., 1].long()
    local = p - cell
    jitter_x = 0.36 + 0.28 * _hash(i, j, seed, salt)
    jitter_y = 0.36 + 0.28 * _hash(i, j, seed, salt + 1)
    return _Cells(
        x=(local[..., 0] - jitter_x) * side,
        y=(local[..., 1] - jitter_y) * side,
        present=(_hash(i, j, seed, salt + 2) < share).to(g.dtype),
        kind=_hash(i, j, seed, salt + 3),
        size=0.75 + 0.4 * _hash(i, j, seed, salt + 4),
    )


def _snow(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """Pale blue drifts with small fir trees and grey stones."""
    drift = _noise(g, seed, 1.6, 1)
    rgb = _mix(_fill(g, (0.93, 0.96, 1.0)), (0.74, 0.83, 0.94), drift)
    c = _cells(g, seed, _CELL, 0.62, 10)
    half = 0.13 * c.size
    tree = torch.maximum(c.y - half, (c.x.abs() * 2.0 - (c.y + half)) / 2.2)
    stone = (c.x**2 + (1.5 * c.y) ** 2).sqrt() - 0.09 * c.size
    is_tree = (c.kind < 0.6).to(g.dtype)
    rgb = _mix(rgb, (0.16, 0.36, 0.34), _step(tree, w) * c.present * is_tree)
    return _mix(rgb, (0.48, 0.52, 0.60), _step(stone, w) * c.present * (1 - is_tree))


def _grass(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """A yellow-green meadow with daisies and tufts."""
    rgb = _mix(_fill(g, (0.60, 0.78, 0.28)), (0.42, 0.64, 0.18), _noise(g, seed, 2.0, 1))
    c = _cells(g, seed, _CELL, 0.7, 10)
    radius = (c.x**2 + c.y**2).sqrt()
    flower = (c.kind < 0.55).to(g.dtype) * c.present
    rgb = _mix(rgb, (1.0, 0.98, 0.90), _step(radius - 0.115 * c.size, w) * flower)
    rgb = _mix(rgb, (0.93, 0.62, 0.10), _step(radius - 0.05 * c.size, w) * flower)
    tuft = torch.maximum(c.y.abs() - 0.10, (c.x.abs() - 0.045 - 0.06 * (0.10 - c.y) / 0.2))
    return _mix(rgb, (0.20, 0.42, 0.12), _step(tuft, w) * (c.present - flower))


def _sand(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """Tan dunes with pebbles and pale shells."""
    dune = 0.5 + 0.5 * torch.sin(5.0 * g[..., 1] + 5.0 * _noise(g, seed, 1.3, 1))
    rgb = _mix(_fill(g, (0.90, 0.78, 0.54)), (0.78, 0.64, 0.40), dune)
    c = _cells(g, seed, _CELL, 0.62, 10)
    radius = (c.x**2 + (1.3 * c.y) ** 2).sqrt()
    pebble = (c.kind < 0.55).to(g.dtype) * c.present
    rgb = _mix(rgb, (0.42, 0.33, 0.25), _step(radius - 0.095 * c.size, w) * pebble)
    shell = (radius - 0.075 * c.size).abs() - 0.035
    return _mix(rgb, (1.0, 0.95, 0.86), _step(shell, w) * (c.present - pebble))


def _water(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """Teal water with white wave crests and lily pads."""
    rgb = _mix(_fill(g, (0.20, 0.66, 0.78)), (0.08, 0.46, 0.66), _noise(g, seed, 1.8, 1))
    c = _cells(g, seed, _CELL, 0.66, 10)
    wave = torch.maximum((c.y + 2.2 * c.x**2 - 0.03).abs() - 0.03, c.x.abs() - 0.14 * c.size)
    radius = (c.x**2 + c.y**2).sqrt()
    pad = torch.maximum(radius - 0.11 * c.size, 0.02 - (c.x + c.y.abs() * -0.9 + 0.03).abs())
    is_wave = (c.kind < 0.6).to(g.dtype)
    rgb = _mix(rgb, (0.88, 0.97, 1.0), _step(wave, w) * c.present * is_wave)
    return _mix(rgb, (0.10, 0.34, 0.28), _step(pad, w) * c.present * (1 - is_wave))


def _brick(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """A wall of dusty bricks, each with its own shade."""
    high, wide, joint = 0.25, 0.5, 0.028
    row = (g[..., 1] / high).floor()
    x = g[..., 0] / wide + 0.5 * (row.long() % 2)
    column = x.floor()
    shade = _hash(column.long(), row.long(), seed, 1)
    rgb = _mix(_fill(g, (0.50, 0.27, 0.22)), (0.76, 0.52, 0.44), shade)
    inside_y = (g[..., 1] - (row + 0.5) * high).abs() - (high / 2 - joint)
    inside_x = (x - column - 0.5).abs() * wide - (wide / 2 - joint)
    return _mix(rgb, (0.86, 0.83, 0.78), 1 - _step(torch.maximum(inside_x, inside_y), w))


def _lava(g: Tensor, seed: Tensor, w: Tensor) -> Tensor:
    """Black rock with glowing cracks and a few embers."""
    height = _noise(g, seed, 1.9, 1)
    slope = 1.9 * 1.1
    rgb = _mix(_fill(g, (0.10, 0.08, 0.10)), (0.24, 0.19, 0.22), _noise(g, seed, 3.0, 2))
    crack = ((height - 0.5) / slope).abs() - 0.022
    rgb = _mix(rgb, (0.95, 0.33, 0.05), _step(crack, w * 1.2))
    c = _cells(g, seed, _CELL, 0.4, 10)
    ember = (c.x**2 + c.y**2).sqrt() - 0.07 * c.size
    return _mix(rgb, (1.0, 0.72, 0.20), _step(ember, w) * c.present)


_GROUND_PAINTERS = (_snow, _grass, _sand, _water, _brick, _lava)


def _surface_pattern(surface: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """How dark the surface is at object points u: 0 its colour, 1 its dark half."""
    x, y = u[..., 0], u[..., 1]
    stripe = _step((torch.remainder(y + 0.125, 0.5) - 0.25).abs() - 0.125, w)
    pitch = 0.5
    dot_x = torch.remainder(x, pitch) - pitch / 2
    dot_y = torch.remainder(y, pitch) - pitch / 2
    dot = _step((dot_x**2 + dot_y**2).sqrt() - 0.135, w)
    side = 0.43
    sign_x = 1 - 2 * _step((torch.remainder(x, 2 * side) - side).abs() - side / 2, w)
    sign_y = 1 - 2 * _step((torch.remainder(y, 2 * side) - side).abs() - side / 2, w)
    check = 0.5 - 0.5 * sign_x * sign_y
    candidates = torch.stack([torch.zeros_like(x), stripe, dot, check])
    return candidates.gather(0, surface[None, :, None, None].expand(1, *x.shape))[0]


def _object_colour(scene: Scene, u: Tensor, distance: Tensor, w: Tensor) -> Tensor:
    """Paint, pattern, a soft highlight and a dark rim, all fixed to the object so that they move with it."""
    palette = torch.tensor([_RGB[name] for name in COLOURS], dtype=u.dtype, device=u.device)
    base = palette[scene.colour][:, None, None, :]
    light = ((u[..., 0] + 0.35) ** 2 + (u[..., 1] + 0.4) ** 2).sqrt()
    shade = (1.0 - 0.16 * (light - 0.6)).clamp(0.75, 1.04)[..., None]
    dark = _surface_pattern(scene.surface, u, w)[..., None]
    rgb = base * shade * (1 - (1 - _DARK) * dark)
    rgb = _mix(rgb, (1.0, 1.0, 1.0), 0.35 * torch.exp(-((light / 0.28) ** 2)) * (1 - dark[..., 0]))
    rim = 1 - _step(distance + _RIM, w)
    return (rgb + rim[..., None] * (base * 0.25 - rgb)).clamp(0, 1)


def render(scene: Scene, size: int) -> Frames:
    """Paint every scene at ``size`` × ``size`` pixels on the scene's own device (see Frames)."""
    pixels = _pixel_centres(size, scene.centre.device).expand(len(scene), size, size, 2)
    pixel = 2.0 / size
    u = _to_object(scene, pixels)
    distance = _distance(scene, u)
    width_object = (0.8 * pixel / scene.scale)[:, None, None]
    rgb = torch.empty(len(scene), size, size, 3, device=pixels.device)
    g = _to_ground(scene, pixels)
    for index, painter in enumerate(_GROUND_PAINTERS):
        chosen = torch.nonzero(scene.ground == index)[:, 0]
        if len(chosen):
            width = (0.8 * pixel / scene.zoom[chosen])[:, None, None]
            rgb[chosen] = painter(g[chosen], scene.seed[chosen][:, None, None], width)
    coverage = _step(distance, width_object)
    paint = _object_colour(scene, u, distance, width_object)
    rgb = (rgb + coverage[..., None] * (paint - rgb)).clamp(0, 1)
    return Frames(rgb=rgb, mask=distance < 0, coverage=coverage)


def render_two(first: Scene, second: Scene, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Paint the objects of two clips on the ground of `first`, that of `second` in front.

    returns   rgb (scene, size, size, 3) float32 in [0, 1]; where each object is seen (scene, size, size) bool
    """
    ground = {name: getattr(first, name) for name in ("ground", "seed", "offset", "zoom")}
    behind, front = render(first, size), render(replace(second, **ground), size)
    bare = render(replace(first, centre=torch.full_like(first.centre, 9.0)), size).rgb
    rgb = front.rgb + (1 - front.coverage[..., None]) * (behind.rgb - bare)
    return rgb.clamp(0, 1), behind.mask & ~front.mask, front.mask
