"""The same run again, from what lies beside its clip; refused beforehand where it would not be the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.media.encoding import HOLDS, Encoding, first_codec
from store.errors import InputError
from store.keys import ArtifactKey
from store.records import software
from store.store import Store

from .config import EditConfig, RuntimeConfig, make_config
from .export import clip_hash
from .models import adapters_of, find_model
from .plan import STAGES, Plan
from .run import Result
from .sidecar import Sidecar, read_sidecar


def plan_again(
    file: Path, store: Store, runtime: RuntimeConfig, *, video: Path | None = None, model: str | None = None,
    output: Path | None = None,
) -> tuple[Plan, Sidecar]:  # fmt: skip
    """The plan of the run whose sidecar is `file`, and that sidecar.

    video, model   where they are now; as the sidecar names them without
    output         the clip, if it has another name: one whose ending holds no such codec is written in its own
    raises         InputError where the sidecar is damaged, the video or the model is missing or has other bytes, or a
                   stage computes something else than it did then
    """
    sidecar = read_sidecar(file)
    place = video or sidecar.config.video
    if not place.is_file():
        raise InputError(f"the video {place} of {file} is not there; say where it is with --video PATH")
    _check_bytes(f"the video {place}", f"blake3:{store.file_hash(place)}", sidecar.video.key, file, "--video PATH")
    name = model or sidecar.config.model
    now = find_model(name, store, runtime.allow_pickle, adapters_of(sidecar.config))
    what = f"the model {name}" + (" with its LoRAs and embeddings" if now.adapters else "")
    _check_bytes(what, now.key, sidecar.model.key, file, "--model NAME")
    encoding, otherwise = _encoding(sidecar, output)
    encoded = runtime.model_copy(update={**dict(encoding), "codec": encoding.codec or "auto"})
    plan = Plan(_config(sidecar, place, name), encoded, store)
    plan.notes = [note for note in (other_software(sidecar), otherwise) if note]
    for node, then in zip([node for node in plan.nodes if node.stage in STAGES], sidecar.recipes, strict=True):
        _check_recipe(then, node.key, sidecar, file)
    return plan, sidecar


def output_again(file: Path, sidecar: Sidecar, output: Path | None, store: Store) -> Path:
    """Where the clip goes: `output`, else beside the sidecar under its first name.

    raises   InputError where without `output` another file than the sidecar's clip would be overwritten
    """
    if output:
        return output
    clip = file.with_name(sidecar.clip.name)
    if clip.exists() and f"blake3:{clip_hash(store, clip)}" != sidecar.clip.key:
        raise InputError(
            f"{clip} is not the clip that {file} tells of; name another with -o, or -o {clip} to replace it"
        )
    return clip


def same_edit(sidecar: Sidecar, result: Result) -> bool:
    """Whether the edit that came out has the very bytes of the first one."""
    return result.uses[-1].artifact.digest == sidecar.digest


def verdict(sidecar: Sidecar, result: Result) -> str:
    """The same in one sentence."""
    if same_edit(sidecar, result):
        return "bit for bit the same edit"
    return "the same keys, but other bits: floats were rounded otherwise on this machine or by these libraries"


def other_software(sidecar: Sidecar) -> str | None:
    """One sentence where the libraries are others: no key depends on them, though the last bits of a float may."""
    now: dict[str, Any] = dict(software())
    others = [
        f"{name} {then} then, {now[name]} now"
        for name in ("torch", "diffusers")
        if (then := sidecar.software.get(name)) != now[name]
    ]
    return f"the keys are the same, but floats may be rounded otherwise: {'; '.join(others)}" if others else None


def _encoding(sidecar: Sidecar, output: Path | None) -> tuple[Encoding, str | None]:
    """What the clip is written as, and one sentence where that is not what it was."""
    then = sidecar.encoding
    suffix = Path(sidecar.clip.name).suffix.lower()
    codec = then.codec or (first_codec(suffix, then.keep_alpha) if suffix in HOLDS else None)
    held = HOLDS.get(output.suffix.lower()) if output else None
    if held is None or codec in held:
        return then, None
    quality = None if "png" in held else then.quality
    what = f"a {output.suffix.lower()} file" if output and output.suffix else "a folder of pictures"
    other = first_codec(output.suffix.lower() if output else "", then.keep_alpha)
    encoding = Encoding(codec=other, quality=quality, keep_alpha=then.keep_alpha, source_rate=then.source_rate)
    return encoding, f"{what} holds no {codec}: the clip is written as {other}"


def _config(sidecar: Sidecar, video: Path, model: str) -> EditConfig:
    """The sidecar's configuration, checked as the command line's would be."""
    return make_config(**dict(sidecar.config) | {"video": video, "model": model})


def _check_bytes(what: str, now: str, then: str, file: Path, option: str) -> None:
    if now != then:
        raise InputError(
            f"{what} has other bytes than the one of {file} ({now[:19]}… instead of {then[:19]}…); "
            f"name the right one with {option}, or make a new edit with tf run"
        )


def _check_recipe(then: ArtifactKey, now: ArtifactKey, sidecar: Sidecar, file: Path) -> None:
    """InputError for the first stage that would compute something else; those below follow from it."""
    if now.hex == then.hex:
        return
    if now.version != then.version:
        differs = f"is version {now.version} here and was version {then.version}"
    else:
        names = sorted(name for name in {*now.spec, *then.spec} if now.spec.get(name) != then.spec.get(name))
        differs = f"is asked for another {' and '.join(names) or 'input'}"
    then_version = sidecar.software.get("tokenflow")
    raise InputError(
        f"{file} cannot be reproduced: {then.stage} {differs}; use tokenflow {then_version} "
        f"(commit {str(sidecar.software.get('commit'))[:12]}) that made it, or make a new edit with tf run"
    )
