"""What a user may choose, in two halves: `EditConfig` is what is asked (identity), `RuntimeConfig` how it is done.

Nothing of `RuntimeConfig` can change a result beyond float tolerance, and none of it enters a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from stages.diffusion.choices import MOST_REGIONS, Blend, Placement, Solver, Spacing
from stages.media.encoding import QUALITY, Codec, Encoding
from store.errors import InputError
from store.guard import CONTROLS
from store.schemas import Frozen

from .controls import Control
from .presets import PRESETS
from .regions import Region

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


NUMBER = r"\d*\.?\d+"
MASK_FROM = rf"(cross-attention:.*\S.*|sam:.*\S@{NUMBER},{NUMBER}(,{NUMBER},{NUMBER})*)"
MOST_PROMPTS = 100  # of one run: each is an edit of the whole video

REPEATED = {
    "--prompts": "--prompt", "--loras": "--lora", "--embeddings": "--embedding", "--regions": "--region",
}  # fmt: skip  # given once for each value
FORM_BEGINS = ("video", "prompts", "model", "preset", "source_prompt", "size", "frames", "editor", "guidance_scale",
               "negative_prompt")  # fmt: skip
OF_PRESETS = frozenset(option for options in PRESETS.values() for option in options)

LONGEST_PROMPT = 2000  # characters
LONGEST_SHOWN = 120  # of a value that cannot be used
Prompt = Annotated[str, Field(min_length=1, pattern=r"\S", max_length=LONGEST_PROMPT)]


def editor_names(schema: dict[str, Any]) -> None:
    """Have a form offer the editors there are."""
    from stages import editors

    schema["enum"] = editors.names()


def plain_fields(schema: dict[str, Any]) -> None:
    """Have a form show what may be left out as an empty field: of "a text or null" it makes two tabs.

    Null stays allowed, as Prefect takes it for every field that is not required and has no default.
    """
    for field in schema["properties"].values():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1 and len(field["anyOf"]) == 2:
            del field["anyOf"]
            field |= kinds[0]
            if field.get("default", 0) is None:
                del field["default"]


def _edit_form(schema: dict[str, Any]) -> None:
    """What most people need comes first; what a preset decides is empty, since a form sends what it shows."""
    plain_fields(schema)
    fields = schema["properties"]
    fields["preset"] = {
        "title": "Preset", "type": "string", "enum": [*PRESETS], "default": "balanced",
        "description": "fast: less guidance, deep features at every second step; best: more places for keyframes",
    }  # fmt: skip
    for name in OF_PRESETS:
        fields[name]["description"] += "; as the preset has it without it"
        del fields[name]["default"]
    order = [*FORM_BEGINS, *(name for name in fields if name not in FORM_BEGINS)]
    schema["properties"] = {name: fields[name] for name in order}


def is_none(value: Any) -> bool:
    """Whether what is said of an option that names a place is that there is none."""
    return str(value) in ("", "none")


class EditConfig(Frozen):
    """One video, one or more prompts, one model, and how the edit is made."""

    model_config = ConfigDict(json_schema_extra=_edit_form)

    video: Path = Field(title="Video", description="a video file, as the machine that computes sees it")
    prompts: tuple[Prompt, ...] = Field(
        title="Prompts", description="one edit each; all share what can be shared", min_length=1,
        max_length=MOST_PROMPTS,
    )  # fmt: skip
    model: str = Field(
        "pocket", title="Model", description="'pocket', a diffusers folder, a .safetensors file or a hub id"
    )
    loras: tuple[str, ...] = Field(
        (), title="LoRAs", description="each FILE.safetensors or FILE.safetensors:WEIGHT, on top of the model",
        max_length=16,
    )  # fmt: skip
    embeddings: tuple[str, ...] = Field(
        (), title="Embeddings", description="textual inversion, each FILE.safetensors or FILE.safetensors:TOKEN",
        max_length=64,
    )  # fmt: skip
    prompt_weighting: bool = Field(
        False, title="Prompt weighting", description="read (words)1.3, words++ and long prompts as compel does"
    )
    source_prompt: str = Field("", title="Source prompt", description="what the video shows; may be empty")
    frames: str | None = Field(
        None, title="Frames", description="START:STOP or START:STOP:STEP, such as 0:40; all without it",
        json_schema_extra={"pattern": r"^\d+:\d+(:\d+)?$", "examples": ["0:40"]},
    )  # fmt: skip
    fps: float | None = Field(
        None, title="Frames per second", gt=0, le=1000,
        description="edited, of those that the video has; the clip keeps times, length and sound; all without it",
    )  # fmt: skip
    size: str | None = Field(
        None, title="Size", description="WIDTHxHEIGHT in pixels, such as 512x512; as large as the source without it",
        json_schema_extra={"pattern": r"^\d+x\d+$", "examples": ["512x512"]},
    )  # fmt: skip
    letterbox: str = Field(
        "auto", title="Letterbox", description="auto: black bars that are found are cut off, and put back on the clip; "
        "keep: they are edited along; or TOP,RIGHT,BOTTOM,LEFT in pixels",
        json_schema_extra={"pattern": r"^(auto|keep|\d+,\d+,\d+,\d+)$", "examples": ["auto", "60,0,60,0"]},
    )  # fmt: skip
    background_colour: str = Field(
        "black", title="Background colour", description="under what is transparent: a name such as white, or #RRGGBB",
        max_length=40,
    )  # fmt: skip
    vae_tiling: Literal["auto", "on", "off"] = Field(
        "auto", title="Tiled autoencoder", description="frames are encoded and decoded in tiles, which takes less "
        "memory; auto: those above 1080p",
    )  # fmt: skip
    steps: int = Field(50, title="Steps", description="denoising steps of the edit", ge=1, le=1000)
    inversion_steps: int | None = Field(
        None, title="Inversion steps", description="as many as steps without it", ge=1, le=1000
    )
    inversion_evaluations: int = Field(
        2, title="Inversion evaluations", description="of the model per inversion step; beyond 1 each refines it", ge=1,
        le=10,
    )  # fmt: skip
    solver: Solver = Field(
        "ddim", title="Solver", description="ddim, or dpmpp_2m of second order, for fewer steps; of inversion and edit"
    )
    timestep_spacing: Spacing = Field(
        "auto", title="Timestep spacing", description="auto: as the model's own file says; leading, trailing, "
        "linspace, or lcm for a LoRA of latent consistency",
    )  # fmt: skip
    seed: int = Field(0, title="Seed", description="of the keyframe schedule, and of an editor's noise", ge=0, lt=2**63)
    editor: str = Field("pnp", title="Editor", description="the editing base", json_schema_extra=editor_names)
    editor_settings: dict[str, JsonValue] = Field({}, title="Editor settings", description="its own settings by name")
    controls: tuple[Control, ...] = Field(
        (), title="Controls", description="of the editor controlnet: what holds the layout", max_length=8
    )
    guidance_scale: float | None = Field(
        None, title="Guidance scale", description="1 is none; 7.5 or what the model advises without it", ge=0, le=100
    )
    guidance_start: float = Field(
        0.0, title="Guidance start", description="share of the steps before which guidance is off", ge=0, le=1
    )
    guidance_stop: float = Field(
        1.0, title="Guidance stop", description="share of the steps after which guidance is off", ge=0, le=1
    )
    guidance_rescale: float = Field(
        0.0, title="Guidance rescale", description="how far contrast that guidance adds is taken back; 0 not at all",
        ge=0, le=1,
    )  # fmt: skip
    feature_reuse: int = Field(
        1, title="Feature reuse", description="every how many steps deep features are computed anew", ge=1, le=10
    )
    negative_prompt: str = Field("", title="Negative prompt", description="what to keep away from")
    mask: Path | None = Field(
        None, title="Mask", description="a picture, a folder of pictures or a video: white is edited, black is kept"
    )
    mask_from: str | None = Field(
        None, title="Mask from", description="cross-attention:WORD of the source prompt: what it names is edited; "
        "sam:FOLDER@X,Y: the object at this point of the first frame",
        json_schema_extra={"pattern": MASK_FROM, "examples": ["cross-attention:dog", "sam:sam2/@0.5,0.4"]},
    )  # fmt: skip
    mask_feather: int | None = Field(
        None, title="Mask feather", ge=0, le=512,
        description="width of the mask's soft edge in pixels; half a latent's without it, of regions a whole one",
    )  # fmt: skip
    regions: tuple[str, ...] = Field(
        (), title="Regions", description="each MASK=PROMPT: where the mask is white this prompt rules; MASK "
        "as mask takes it, or cross-attention:WORD",
        max_length=MOST_REGIONS, examples=[["cross-attention:dog=a golden dog"]],
    )  # fmt: skip
    keyframe_interval: int = Field(8, title="Keyframe interval", description="frames per keyframe", ge=1, le=64)
    keyframe_offsets: int = Field(
        2, title="Keyframe offsets", description="places in an interval a keyframe may have", ge=1, le=64
    )
    cuts: str = Field(
        "auto", title="Cuts", description="auto, none, or frames at which a new shot begins, such as 12,48; no frame "
        "follows a keyframe of another shot",
        json_schema_extra={"pattern": r"^(auto|none|\d+(,\d+)*)$", "examples": ["auto", "12,48"]},
    )  # fmt: skip
    keyframe_placement: Placement = Field(
        "interval", title="Keyframe placement", description="interval, or adaptive: shorter intervals where more moves"
    )
    attended_keyframes: int = Field(
        8, title="Attended keyframes", description="beyond so many, not all attend to all", ge=1, le=4096
    )
    blend: Blend = Field("linear", title="Blend", description="how two keyframes are mixed")
    deflicker: float = Field(
        0.0, title="Deflicker", description="how far patches of the picture are drawn to their keyframes' colours; 0: "
        "not at all", ge=0, le=1,
    )  # fmt: skip
    match_colours: float = Field(
        0.0, title="Match colours", description="how far pictures are moved to the source's colours on the whole; 0: "
        "not at all", ge=0, le=1,
    )  # fmt: skip
    decoder: Path | None = Field(
        None, title="Decoder", description="folder of an autoencoder with the same latents, such as a temporal one, "
        "that decodes the clip in the place of the model's own",
    )  # fmt: skip

    @field_validator("mask", "mask_from", "decoder", mode="before")
    @classmethod
    def _none_where_empty(cls, value: Any) -> Any:
        """An empty text is no place, where a path of nothing would be the folder one is in; `none` says so aloud."""
        return None if is_none(value) else value

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """A mapping, as a form gives it, may name a preset, whose options it takes where it has none of its own."""
        if not isinstance(given, dict):
            return given
        left_out = {name for name in OF_PRESETS if given.get(name, 0) is None}
        options = {name: value for name, value in given.items() if name != "preset" and name not in left_out}
        name = given.get("preset") or "balanced"
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; have {', '.join(PRESETS)}")
        return PRESETS[name] | options

    def anywhere(self) -> EditConfig:
        """The same with paths that are understood from any folder."""
        from stages.backbones.adapters import absolute  # which imports torch: whoever asks has a plan, and torch

        from .models import absolute_place

        paths = {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Path)}
        if self.mask_from is not None and self.mask_model is not None:
            points = self.mask_from.rpartition("@")[2]
            paths_in_texts = {"mask_from": f"sam:{self.mask_model.absolute()}@{points}"}
        else:
            paths_in_texts = {}
        return self.model_copy(
            update={name: path.absolute() for name, path in paths.items()}
            | paths_in_texts
            | {name: tuple(absolute(text) for text in getattr(self, name)) for name in ("loras", "embeddings")}
            | {"model": absolute_place(self.model), "controls": tuple(each.anywhere() for each in self.controls)}
            | {"regions": tuple(str(region.within(Path.cwd())) for region in self.parted)}
        )

    @property
    def parted(self) -> list[Region]:
        """The regions, read; InputError where one is not MASK=PROMPT."""
        return [Region.read(text) for text in self.regions]

    @property
    def mask_words(self) -> str:
        """The words whose attention is the mask."""
        assert self.mask_from is not None, "a mask is found by words"
        return self.mask_from.partition(":")[2].strip()

    @property
    def mask_model(self) -> Path | None:
        """The folder of the segmentation model that finds the mask; None where none does."""
        kind, _, rest = (self.mask_from or "").partition(":")
        return Path(rest.rpartition("@")[0]).expanduser() if kind == "sam" else None

    @property
    def mask_points(self) -> tuple[tuple[float, float], ...]:
        """Its points on the first frame, as shares of width and height."""
        numbers = [float(number) for number in (self.mask_from or "").rpartition("@")[2].split(",")]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    @model_validator(mode="after")
    def _one_mask(self) -> EditConfig:
        if self.mask is not None and self.mask_from is not None:
            raise ValueError("--mask and --mask-from both say what is edited; leave one out")
        if self.mask_from is not None and not re.fullmatch(MASK_FROM, self.mask_from):
            raise ValueError(
                f"--mask-from {self.mask_from!r} is not cross-attention:WORD, such as cross-attention:dog, and not "
                "sam:FOLDER@X,Y[,X,Y…]"
            )
        if self.mask_model is not None and any(share > 1 for point in self.mask_points for share in point):
            raise ValueError(
                f"--mask-from {self.mask_from}: a point is off the picture; X and Y are shares of its width and height "
                "from 0 to 1, from the upper left corner"
            )
        return self

    @model_validator(mode="after")
    def _one_look(self) -> EditConfig:
        if self.decoder is not None and (self.deflicker or self.match_colours):
            raise ValueError(
                "--deflicker and --match-colours go by keyframes as the model's own decoder shows them; leave them "
                "out, or --decoder"
            )
        return self

    @model_validator(mode="after")
    def _regions_read(self) -> EditConfig:
        try:
            longest = max((region.prompt for region in self.parted), key=len, default="")
        except InputError as error:
            raise ValueError(str(error)) from None
        if len(longest) > LONGEST_PROMPT:
            raise ValueError(f"--region: a prompt has {len(longest)} characters; {LONGEST_PROMPT} are the most")
        return self

    @model_validator(mode="after")
    def _words_are_plain(self) -> EditConfig:
        found = [*filter(None, (self.mask_from, *(region.mask_from for region in self.parted)))]
        if self.prompt_weighting and any(each.startswith("cross-attention:") for each in found):
            raise ValueError(
                "words cannot be found where prompts are weighted: leave out --prompt-weighting, or draw the mask"
            )
        return self

    @model_validator(mode="after")
    def _guidance_in_order(self) -> EditConfig:
        if self.guidance_start > self.guidance_stop:
            raise ValueError(f"--guidance-start {self.guidance_start} is after --guidance-stop {self.guidance_stop}")
        return self


class RuntimeConfig(Frozen):
    """Where it runs, how much at once, what is kept, and what clips are written as."""

    model_config = ConfigDict(json_schema_extra=plain_fields)

    device: Literal["auto", "cpu", "cuda"] = Field("auto", title="Device", description="auto: a GPU where there is one")
    frames_per_pass: int | None = Field(
        None, title="Frames per pass", description="memory only, no result depends on it; as many as fit without it",
        ge=1, le=1024,
    )  # fmt: skip
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", title="Precision", description="of the model; auto: float16 on a GPU, float32 on a CPU"
    )
    allow_pickle: bool = Field(
        False, title="Allow pickle", description="open weights that are no .safetensors too, which may hold code"
    )
    runner: Literal["here", "dask", "ray"] = Field(
        "here", title="Runner", description="dask, ray: the parts of one run are spread over several workers"
    )
    address: str | None = Field(
        None, title="Address", description="of the Dask scheduler or the Ray cluster; two workers here without it",
        max_length=500,
    )  # fmt: skip
    token_budget: int = Field(8 << 30, title="Token budget", description="bytes of tokens that may be kept", ge=0)
    codec: Literal["auto", Codec] = Field(
        "auto", title="Codec", description="of the clip; auto: what the ending of its name stands for"
    )
    quality: int | None = Field(
        None, title="Quality", description=f"of the clip, 0 to 100 for every codec; {QUALITY} without it", ge=0, le=100
    )
    pixel_format: str | None = Field(
        None, title="Pixel format", description="of the clip, such as yuv444p; what most players show without it",
        max_length=20,
    )  # fmt: skip
    keep_alpha: bool = Field(
        False, title="Keep alpha", description="the clip is transparent where the video is: .mov (ProRes), .webm, "
        ".mkv, .webp, .gif or a folder of PNGs",
    )  # fmt: skip
    source_rate: bool = Field(
        False, title="Source rate", description="the clip has all frames of the video: those left out show "
        "the one before",
    )  # fmt: skip

    @property
    def encoding(self) -> Encoding:
        """What clips are written as."""
        codec = None if self.codec == "auto" else self.codec
        return Encoding(
            codec=codec, quality=self.quality, pixel_format=self.pixel_format, keep_alpha=self.keep_alpha,
            source_rate=self.source_rate,
        )  # fmt: skip


def parse_bytes(text: str, option: str = "--token-budget") -> int:
    """Read a size such as "8GiB", "500MB" or "0" (units are powers of 1024); InputError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"{option} {text!r} is not a size; write for example 8GiB, 500MB or 0")
    return int(float(match[1]) * UNITS[match[2].upper()])


def parse_age(text: str, option: str) -> float:
    """Read a length of time such as "30d", "12h" or "90min", in seconds; InputError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)\s*", text)
    if match is None:
        raise InputError(f"{option} {text!r} is not a length of time; write for example 30d, 12h or 90min")
    return float(match[1]) * SECONDS[match[2]]


def parse_settings(texts: Sequence[str]) -> dict[str, JsonValue]:
    """Read NAME=VALUE texts, numbers as numbers; InputError where one has no name."""
    settings: dict[str, JsonValue] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found or not name.strip():
            raise InputError(f"--set {text!r} is not NAME=VALUE; write for example feature=0.6")
        if name.strip() in settings:
            raise InputError(f"--set {name.strip()} is said twice; say it once, or try several with tf sweep --grid")
        try:
            settings[name.strip()] = json.loads(value, parse_constant=str)
        except ValueError:
            settings[name.strip()] = value
    return settings


def make_config(**given: Any) -> EditConfig:
    """An EditConfig; InputError, naming the option, where a value is out of range."""
    if not given.get("prompts"):
        raise InputError(
            "there is no prompt: say what the edit shows with --prompt TEXT, several times for several edits"
        )
    said = [*given["prompts"], given.get("source_prompt"), given.get("negative_prompt"), *given.get("regions", ())]
    check_texts(*(text for text in said if isinstance(text, str)))
    if any(isinstance(prompt, str) and not prompt.strip() for prompt in given["prompts"]):
        raise InputError("--prompt is empty; say what the edit shows")
    return _checked(EditConfig, given)


def check_texts(*prompts: str) -> None:
    """InputError where a prompt holds what no record can: it could be written, and never be read again."""
    for prompt in prompts:
        if not _is_unicode(prompt):
            raise InputError(f"the prompt {prompt!r} is not valid UTF-8; check the terminal's encoding")
        if CONTROLS.search(prompt):
            raise InputError(f"the prompt {prompt!r} holds control characters; say it in plain text")


def make_runtime(**given: Any) -> RuntimeConfig:
    """A RuntimeConfig; InputError, naming the option, where a value is out of range."""
    return _checked(RuntimeConfig, given)


Config = TypeVar("Config", EditConfig, RuntimeConfig)


def _checked(kind: type[Config], given: dict[str, Any]) -> Config:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of options that do not go together
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        option = "--" + str(first["loc"][0]).replace("_", "-")
        option = {"--editor-settings": "--set", **REPEATED}.get(option, option)
        raise InputError(f"{option} {shortened(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def shortened(value: Any) -> str:
    """A value as a sentence can hold it."""
    whole = repr(value)
    return whole if len(whole) <= LONGEST_SHOWN else f"{whole[:LONGEST_SHOWN]}…"


def _is_unicode(text: str) -> bool:
    """Whether text can be written down: bytes that were no UTF-8 on the command line cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
