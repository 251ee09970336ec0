"""A video made to do harm costs little memory, opens nothing else, and reaches no network."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import numpy as np
import pytest

from stages.media import declared
from stages.media.declared import check_declared
from stages.media.video import CONTAINERS, probe, read_pictures, survey
from store.errors import InputError
from tests.stages.clips import write_clip

ROOT = Path(__file__).parents[2]
MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def box(name: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I4s", 8 + len(inside), name) + inside


def full(name: bytes, *content: bytes, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", flags), *content)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def mp4(
    samples: int, *, width: int = 64, height: int = 48, codec: bytes = b"mjpa", handler: bytes = b"vide",
    delta: int = 1, scale: int = 1000, edits: int = 0, data: bytes = bytes(64), reference: bytes = b"",
    extra: bytes = b"",
) -> bytes:  # fmt: skip
    """An mp4 of one kilobyte whose tables declare `samples` frames, all equally large and in one chunk."""
    duration = min(samples * delta, 2**32 - 1)
    kind = box(b"ftyp", b"isom", numbers(512), b"isom")
    entry = box(
        codec, bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", width & 0xFFFF, height & 0xFFFF),
        struct.pack(">IIIH", 0x480000, 0x480000, 0, 1), bytes(32), struct.pack(">Hh", 24, -1),
    )  # fmt: skip
    tables = box(
        b"stbl", full(b"stsd", numbers(1), entry), full(b"stts", numbers(1, samples, delta)),
        full(b"stsc", numbers(1, 1, samples, 1)), full(b"stsz", numbers(max(len(data) // max(samples, 1), 1), samples)),
        full(b"stco", numbers(1, len(kind) + 8)),
    )  # fmt: skip
    link = full(b"url ", reference) if reference else full(b"url ", flags=1)
    media = box(
        b"mdia", full(b"mdhd", numbers(0, 0, scale, duration), struct.pack(">HH", 0x55C4, 0)),
        full(b"hdlr", bytes(4), handler, bytes(13)),
        box(b"minf", full(b"vmhd", bytes(8), flags=1), box(b"dinf", full(b"dref", numbers(1), link)), tables),
    )  # fmt: skip
    listed = b"".join(struct.pack(">IiI", duration, 0, 1 << 16) for _ in range(edits))
    edited = box(b"edts", full(b"elst", numbers(edits), listed)) if edits else b""
    track = box(
        b"trak",
        full(b"tkhd", numbers(0, 0, 1, 0, duration), bytes(16), MATRIX, numbers(width << 16, height << 16), flags=7),
        edited, media,
    )  # fmt: skip
    movie = full(
        b"mvhd",
        numbers(0, 0, scale, duration, 1 << 16),
        struct.pack(">H", 256),
        bytes(10),
        MATRIX,
        bytes(24),
        numbers(2),
    )
    return kind + box(b"mdat", data) + box(b"moov", movie, track, extra)


# a billion frames


@pytest.mark.parametrize("samples", [1_100_000, 10**9, 2**32 - 1])
def test_more_frames_than_a_file_can_hold_are_refused(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "billion.mp4"
    path.write_bytes(mp4(samples))
    with pytest.raises(
        InputError, match=rf"declares {samples} frames or more, which its \d+ bytes cannot hold"
    ) as said:
        probe(path)
    assert "\n" not in str(said.value)


BILLIONS = {
    "edits": mp4(900_000, edits=2000),
    "sound that is none": mp4(10**9, handler=b"soun", delta=2),
    "two handlers": mp4(10**9, handler=b"soun", extra=full(b"hdlr", bytes(4), b"vide", bytes(13))),
    "two tracks": mp4(900_000, extra=box(b"trak", full(b"stsz", numbers(1, 900_000)))),
    "fragment": mp4(1) + box(b"moof", box(b"traf", full(b"trun", numbers(10**9)))),
    "many fragments": mp4(1) + box(b"moof", box(b"traf", full(b"trun", numbers(10**5)))) * 11,
    "padding that is a header": mp4(10**9).replace(b"moov", b"hoov"),
    "compact sizes": mp4(10**9).replace(b"stsz", b"stz2"),
    "long box": mp4(1) + struct.pack(">I4sQ", 1, b"moof", 2**62) + box(b"traf", full(b"trun", numbers(10**9))),
    "to the end": mp4(1) + struct.pack(">I4s", 0, b"moof") + box(b"traf", full(b"trun", numbers(10**9))),
}


@pytest.mark.parametrize("case", BILLIONS)
def test_wherever_they_are_declared(tmp_path: Path, case: str) -> None:
    path = tmp_path / "billion.mp4"
    path.write_bytes(BILLIONS[case])
    with pytest.raises(InputError, match=r"which its .* bytes cannot hold"):
        check_declared(path)


def test_a_compressed_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    path.write_bytes(mp4(1, extra=box(b"cmov", box(b"cmvd", bytes(20)))))
    with pytest.raises(InputError, match="has a compressed header"):
        probe(path)


def test_a_header_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mov"
    path.write_bytes(mp4(1, extra=box(b"udta", bytes(5000))))
    monkeypatch.setattr(declared, "LARGEST_HEADER", 4000)
    with pytest.raises(InputError, match="has a header of more than"):
        check_declared(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.ts"])
def test_an_honest_file_declares_nothing_odd(tmp_path: Path, name: str) -> None:
    check_declared(write_clip(tmp_path / name))


def test_hours_of_sound_beside_a_short_clip_are_honest(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    path.write_bytes(mp4(172_800_000, handler=b"soun"))
    check_declared(path)  # plain PCM: FFmpeg keeps its chunks, not its samples


# sizes, rates and times


COST = """
import json, resource, sys
from pathlib import Path
from stages.media.video import read_pictures, survey
from store.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = []
for name in json.load(sys.stdin):
    try:
        clip = survey(Path(name))
        for picture in read_pictures(clip, 2):
            pass
        said.append([name, "read"])
    except InputError as error:
        said.append([name, str(error)])
    except BaseException as error:
        raise RuntimeError(name) from error
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said]))
"""


def cost(*paths: Path) -> tuple[int, list[tuple[str, str]]]:
    """Kilobytes that describing and reading these files took in a process of its own, and what each came to."""
    command, given = [sys.executable, "-c", COST], json.dumps([str(path) for path in paths])
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    kilobytes, said = json.loads(done.stdout.splitlines()[-1])
    return kilobytes, [tuple(each) for each in said]


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds a few bytes."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b"x\x9c" + bytes(40)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", crc32(n + d)) for n, d in chunks
    )


def ivf(codec: bytes, width: int, height: int, frame: bytes, frames: int = 1) -> bytes:
    head = b"DKIF" + struct.pack(
        "<HH4sHHIIII", 0, 32, codec, width & 0xFFFF, height & 0xFFFF, 30, 1, frames & 0xFFFFFFFF, 0
    )
    return head + struct.pack("<IQ", len(frame), 0) + frame


def y4m(width: int, height: int, rate: str = "25:1") -> bytes:
    return f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C420\nFRAME\n".encode() + bytes(64 * 48 * 3 // 2)


def jpeg(width: int, height: int) -> bytes:
    """The head of a JPEG with its size put in."""
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 16, 16, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p").reformat(format="yuvj420p")
    data = bytearray(b"".join(bytes(packet) for packet in context.encode(frame)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def vp8(width: int, height: int) -> bytes:
    return b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + bytes(30)


GIANTS = {
    "100000.png": png(100_000, 100_000),
    "16384.png": png(16_384, 16_384),
    "long.png": png(2**31 - 1, 1),
    "100000.y4m": y4m(100_000, 100_000),
    "16384.y4m": y4m(16_384, 16_384),
    "65535.jpg": jpeg(65_535, 65_535),
    "16000.jpg": jpeg(16_000, 16_000),
    "16383.ivf": ivf(b"VP80", 16_383, 16_383, vp8(16_383, 16_383)),
    "liar.ivf": ivf(b"VP80", 64, 48, vp8(16_383, 16_383)),
    "65535.mp4": mp4(1, width=65_535, height=65_535, codec=b"jpeg", data=jpeg(65_535, 65_535)),
    "16000.mp4": mp4(1, width=16_000, height=16_000, codec=b"jpeg", data=jpeg(16_000, 16_000)),
    "liar.mp4": mp4(1, codec=b"jpeg", data=jpeg(16_000, 16_000)),
    "raw.mp4": mp4(1, width=65_535, height=65_535, codec=b"raw "),
}


def test_giant_pictures_are_refused_and_cost_little(tmp_path: Path) -> None:
    for name, data in GIANTS.items():
        (tmp_path / name).write_bytes(data)
    kilobytes, said = cost(*(tmp_path / name for name in GIANTS))
    assert [name for name, sentence in said if sentence == "read"] == []
    assert all("\n" not in sentence for _, sentence in said)
    assert kilobytes < 150_000


def test_the_largest_pictures_that_are_taken_cost_what_they_are(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "large.mp4", frames=2, width=8192, height=4320)
    kilobytes, said = cost(path)
    assert said == [(str(path), "read")]
    assert kilobytes < 1_500_000


ODD_TIMES = {
    "fast.y4m": y4m(64, 48, "2147483647:1"),
    "slow.y4m": y4m(64, 48, "1:2147483647"),
    "never.y4m": y4m(64, 48, "0:0"),
    "scale.mp4": mp4(1, width=16, height=16, scale=0, codec=b"jpeg", data=jpeg(16, 16)),
    "ticks.mp4": mp4(1, width=16, height=16, scale=2**32 - 1, delta=2**31, codec=b"jpeg", data=jpeg(16, 16)),
    "long.mp4": mp4(1, width=16, height=16, scale=1, delta=2**32 - 1, codec=b"jpeg", data=jpeg(16, 16)),
    "none.mp4": mp4(0, codec=b"jpeg", data=jpeg(16, 16)),
    "million.mp4": mp4(900_000, codec=b"jpeg", data=jpeg(16, 16)),
    "frames.ivf": ivf(b"VP80", 64, 48, vp8(64, 48), frames=2**32 - 1),
}


def test_absurd_rates_and_times_are_a_sentence_or_harmless(tmp_path: Path) -> None:
    for name, data in ODD_TIMES.items():
        (tmp_path / name).write_bytes(data)
    kilobytes, said = cost(*(tmp_path / name for name in ODD_TIMES))
    assert len(said) == len(ODD_TIMES)
    assert all("\n" not in sentence for _, sentence in said)
    assert kilobytes < 300_000


def broken_clips(folder: Path, count: int) -> Iterator[Path]:
    """Small clips in every container with bytes changed in their headers."""
    chance = random.Random(7)
    sound = [
        write_clip(folder / name, frames=3)
        for name in ("clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.ts", "clip.flv", "clip.gif")
        if name != "clip.gif"
    ]
    for number in range(count):
        source = sound[number % len(sound)]
        data = bytearray(source.read_bytes())
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(min(len(data), 4096)) if chance.random() < 0.5 else chance.randrange(len(data))
            data[at : at + 4] = chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), chance.randbytes(4)])
        path = folder / f"{number}{source.suffix}"
        path.write_bytes(data)
        yield path


@pytest.mark.slow
def test_headers_changed_at_random_cost_little_and_end_in_one_sentence(tmp_path: Path) -> None:
    count = int(os.environ.get("FUZZ_EXAMPLES", "50"))
    kilobytes, said = cost(*broken_clips(tmp_path, 6 * count))
    assert len(said) == 6 * count
    assert all("\n" not in sentence for _, sentence in said)
    assert kilobytes < 500_000


# other files and addresses


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket on loopback to which nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_playlist_or_reference_is_followed(tmp_path: Path, listening: socket.socket) -> None:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/clip.mp4"
    good = write_clip(tmp_path / "good.mp4")
    files = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n",
        "local.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{good}\n#EXT-X-ENDLIST\n",
        "key.m3u8": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:5,\n{good}\n#EXT-X-ENDLIST\n',
        "marked.m3u8": f"\ufeff#EXTM3U\n#EXTINF:5,\n{url}\n",
        "concat.ffconcat": f"ffconcat version 1.0\nfile '{url}'\n",
        "concat.txt": f"file '{good}'\nfile '{url}'\n",
        "dash.mpd": f'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{url}</BaseURL></MPD>',
        "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "link.ram": f"{url}\n",
        "link.asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "link.pls": f"[playlist]\nFile1={url}\n",
        "link.url": f"[InternetShortcut]\nURL={url}\n",
        "reference.asf": f"[Reference]\nRef1={url}\n",
        "smil.smil": f'<smil><body><video src="{url}"/></body></smil>',
        "picture.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
        "imf.xml": f'<?xml version="1.0"?><CompositionPlaylist><Id>{url}</Id></CompositionPlaylist>',
        "script.avs": f'DirectShowSource("{url}")',
        "subtitles.idx": f"# VobSub index file, v7\nid: en, index: 0\n{url}\n",
        "filter.lavfi": "testsrc",
    }
    for name, text in files.items():
        for suffix in ("", ".mp4"):
            (tmp_path / f"{name}{suffix}").write_text(text)
            with pytest.raises(InputError) as said:
                probe(tmp_path / f"{name}{suffix}")
            assert "\n" not in str(said.value)


def test_a_reference_inside_an_mp4_is_not_followed(tmp_path: Path, listening: socket.socket) -> None:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/clip.mp4"
    path = tmp_path / "reference.mp4"
    for reference in (url.encode() + b"\0", str(write_clip(tmp_path / "other.mp4")).encode() + b"\0"):
        path.write_bytes(mp4(1, width=16, height=16, codec=b"jpeg", data=jpeg(16, 16), reference=reference))
        assert [picture.index for picture in read_pictures(survey(path))] == [0]


def test_names_that_are_protocols_are_names(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = write_clip(tmp_path / "good.mp4")
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    for name in (
        f"http://{address}/a.mp4", f"tcp://{address}", f"rtsp://{address}/", f"udp://{address}", "file:good.mp4",
        f"subfile,,start,0,end,0,,:{good.name}", "concat:good.mp4|good.mp4", "data:video/mp4;base64,AAAA", "pipe:0",
        "async:good.mp4", "cache:good.mp4", "crypto:good.mp4", "img%d.png", "img*.png", "lavfi:testsrc", "-", "fd:",
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"does not exist|is an address"):
            probe(Path(name))


def test_only_containers_are_opened(tmp_path: Path) -> None:
    """Every demuxer that is allowed is there, and none of those that open other files is."""
    followers = {"hls", "dash", "concat", "sdp", "rtp", "rtsp", "image2", "lavfi", "imf", "mlv", "vobsub", "tty", "sap"}
    assert not followers & set(CONTAINERS)
    known = {part for name in av.formats_available for part in name.split(",")}
    assert set(CONTAINERS) <= known
