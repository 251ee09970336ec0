"""GIF: one palette for the whole clip, its pictures dithered to it, by FFmpeg's palettegen and paletteuse.

One palette, since colours of a palette per frame flicker. Frames are read twice, so that no more than one is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

Frames = Callable[[], Iterable[VideoFrame]]
RGB, RGBA = VideoFormat("rgb24"), VideoFormat("rgba")


def with_palette(frames: Frames, size: tuple[int, int], colours: int, alpha: bool = False) -> Iterator[VideoFrame]:
    """Frames in pal8, all with the palette of `colours` that suits them best.

    frames    gives the frames (rgb24, or rgba with `alpha`, of `size`) anew each time it is called
    alpha     one of the colours is transparent: that of pixels of which less than half is seen
    """
    palette = _palette(frames(), size, colours, alpha)
    graph = Graph()
    form = RGBA if alpha else RGB
    pictures = graph.add_buffer(width=size[0], height=size[1], format=form, time_base=Fraction(1, 100))
    chosen = graph.add_buffer(width=16, height=16, format=palette.format, time_base=Fraction(1, 100))
    use, sink = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle"), graph.add("buffersink")
    pictures.link_to(use, 0, 0)
    chosen.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    palette.pts, palette.time_base = 0, Fraction(1, 100)
    chosen.push(palette)
    chosen.push(None)
    for index, frame in enumerate(frames()):
        frame.pts, frame.time_base = index, Fraction(1, 100)
        pictures.push(frame)
        yield from _ready(graph)
    pictures.push(None)
    yield from _ready(graph)


def _palette(frames: Iterable[VideoFrame], size: tuple[int, int], colours: int, alpha: bool) -> VideoFrame:
    graph = Graph()
    form = RGBA if alpha else RGB
    pictures = graph.add_buffer(width=size[0], height=size[1], format=form, time_base=Fraction(1, 100))
    make = graph.add("palettegen", f"max_colors={colours}:reserve_transparent={int(alpha)}:stats_mode=full")
    sink = graph.add("buffersink")
    pictures.link_to(make)
    make.link_to(sink)
    graph.configure()
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index, Fraction(1, 100)
        pictures.push(frame)
    pictures.push(None)
    return next(_ready(graph))


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    """What has come out of a graph by now."""
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(frame, VideoFrame)
        yield frame
