"""What is there on this machine, what is wrong with it, and the way out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from store.errors import TokenflowError
from store.layout import human_bytes
from store.schemas import Frozen
from store.store import Store

PACKAGES = ("torch", "diffusers", "transformers", "prefect", "zarr", "xarray", "pandera", "av", "fastapi")
LOW_DISK = 10 << 30


class Finding(Frozen):
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool = True
    way_out: str | None = None


def examine(open_store: Callable[[], Store], mend: bool = False) -> list[Finding]:
    """Look at everything, whatever else is broken.

    mend    mark flow runs whose process is dead as Crashed
    """
    return [*_versions(), _device(), *_store(open_store), _model(), _prefect(), *_runs(mend), _codecs()]


def _versions() -> list[Finding]:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    findings = [Finding(what="packages", found=", ".join(found))]
    if missing:
        findings.append(
            Finding(
                what="packages", found=f"not installed: {', '.join(missing)}", ok=False, way_out="pip install tokenflow"
            )
        )
    with suppress(PackageNotFoundError):
        found_torchvision, usable = version("torchvision"), _imports_pipeline()
        way_out = None if usable else "uninstall torchvision, or install the build that fits torch"
        findings.append(Finding(what="torchvision", found=found_torchvision, ok=usable, way_out=way_out))
    return findings


def _imports_pipeline() -> bool:
    try:
        from diffusers import StableDiffusionPipeline  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding(what="device", found=f"{name}, {human_bytes(free)} of {human_bytes(total)} free, float16")
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return Finding(
        what="device", found=f"CPU, {threads}, float32",
        way_out="fine for the pocket model; full-size models want a CUDA GPU and a CUDA build of torch",
    )  # fmt: skip


def _store(open_store: Callable[[], Store]) -> list[Finding]:
    try:
        store = open_store()
        answer = store.check_answers()
        store.check_writable()
    except TokenflowError as error:
        return [Finding(what="store", found=str(error), ok=False)]
    if answer:
        return _shared_store(store, answer)
    records = list(store.summaries())
    size = sum({record.digest: record.bytes for record in records}.values())
    free = shutil.disk_usage(store.root).free
    low = free < LOW_DISK
    return [
        Finding(what="store", found=f"{store.place}: {len(records)} artifacts, {human_bytes(size)}"),
        Finding(
            what="disk",
            found=f"{human_bytes(free)} free at the store",
            ok=not low,
            way_out="free some space, or choose another place with --store" if low else None,
        ),
    ]


def _shared_store(store: Store, answer: str) -> list[Finding]:
    """A shared store may be large: it is asked whether it answers and can be written, not what it holds."""
    free = shutil.disk_usage(store.root).free
    low = free < LOW_DISK
    return [
        Finding(what="store", found=f"{store.place} answers and can be written: {answer}"),
        Finding(
            what="disk",
            found=f"{human_bytes(free)} free at its cache {store.root}",
            ok=not low,
            way_out="free some space, or set --cache-size" if low else None,
        ),
    ]


def _model() -> Finding:
    from pocket import model_folder
    from stages.backbones.folders import check_folder

    try:
        check_folder(model_folder())
    except TokenflowError as error:
        return Finding(what="pocket model", found=str(error), ok=False, way_out="install tokenflow again")
    return Finding(what="pocket model", found=str(model_folder()))


def _prefect() -> Finding:
    from .engine import describe_api

    found, ok, way_out = describe_api()
    return Finding(what="prefect", found=found, ok=ok, way_out=way_out)


def _runs(mend: bool) -> list[Finding]:
    """Flow runs that say they are running and are dead; nothing where no server answers."""
    from .engine import answers, configured_url, use_server

    url = configured_url()
    if url is None or not answers(url):
        return []
    use_server()
    from .remote_control import bury, dead_runs

    try:
        dead = dead_runs()
        if mend:
            bury(dead)
    except TokenflowError as error:
        return [Finding(what="flow runs", found=str(error), ok=False)]
    if not dead:
        return [Finding(what="flow runs", found="every one that says so is running")]
    names = "; ".join(f"{run.name} ({run.id}): {sign}" for run, sign in dead)
    if mend:
        return [Finding(what="flow runs", found=f"marked as Crashed: {names}")]
    way_out = "tf doctor --mend marks them as Crashed; retried, they go on from what they finished"
    return [Finding(what="flow runs", found=names, ok=False, way_out=way_out)]


def _codecs() -> Finding:
    import av

    wanted = {"h264", "hevc", "vp9", "av1", "prores", "ffv1"}
    missing = sorted(wanted - av.codecs_available)
    encoder = "libx264" in av.codecs_available
    return Finding(
        what="ffmpeg",
        found=f"PyAV {av.__version__}, {len(av.codecs_available)} codecs"
        + (f", without {', '.join(missing)}" if missing else "")
        + ("" if encoder else ", no H.264 encoder"),
        ok=encoder,
        way_out=None if encoder else "install the av wheel from PyPI, which brings libx264",
    )
