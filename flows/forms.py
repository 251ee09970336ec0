"""What a form asks for, beside `EditConfig`: the parameters of the deployed flows. Titles and ranges are the form's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, create_model

from store.schemas import Frozen

from .config import MOST_PROMPTS, EditConfig, Prompt, editor_names, make_config, plain_fields
from .controls import Control
from .presets import Preset, with_preset

MOST_EDITS = 1000  # of one sweep

PREPARING = (
    "video", "model", "loras", "embeddings", "prompt_weighting", "source_prompt", "frames", "fps", "size", "letterbox",
    "background_colour", "vae_tiling", "steps", "inversion_steps", "inversion_evaluations", "solver",
    "timestep_spacing", "seed",
    "keyframe_interval", "keyframe_offsets", "blend", "cuts", "keyframe_placement",
)  # fmt: skip

_FIELDS: dict[str, Any] = {
    name: (EditConfig.model_fields[name].annotation, EditConfig.model_fields[name]) for name in PREPARING
}


class _Form(Frozen):
    model_config = ConfigDict(json_schema_extra=plain_fields)


PrepareConfig: Any = create_model(
    "PrepareConfig",
    __base__=_Form,
    __doc__="A video, a model, and all that its first four stages depend on.",
    **_FIELDS,
)


class CachedEdit(_Form):
    """A new prompt on a video that is prepared already."""

    video: str = Field(
        title="Video", description="one that the store has prepared, or the first digits of its key", min_length=1
    )
    prompts: tuple[Prompt, ...] = Field(
        title="Prompts", description="what the edit shows; one edit each", min_length=1, max_length=MOST_PROMPTS
    )
    preset: Literal["fast", "balanced"] = Field(
        "balanced", title="Preset", description="fast: less guidance, deep features computed at every second step"
    )
    editor: str = Field("pnp", title="Editor", description="the editing base", json_schema_extra=editor_names)
    guidance_scale: float = Field(
        0, title="Guidance scale", description="how strongly the prompt is followed; 0: what the model advises", ge=0,
        le=100,
    )  # fmt: skip
    negative_prompt: str = Field("", title="Negative prompt", description="what to keep away from", max_length=2000)
    editor_settings: dict[str, JsonValue] = Field(
        {}, title="Editor settings", description='its own settings by name, such as {"feature": 0.6}'
    )
    controls: tuple[Control, ...] = EditConfig.model_fields["controls"]  # type: ignore[assignment]
    mask: str | None = Field(
        None, title="Mask", description="white is edited, black is kept: a picture, a folder of pictures or a video, "
        "as the machine that computes sees it; or the first digits of the key of a mask (read_masks) in the store",
        min_length=1,
    )  # fmt: skip
    mask_from: str | None = EditConfig.model_fields["mask_from"]  # type: ignore[assignment]
    mask_feather: int | None = EditConfig.model_fields["mask_feather"]  # type: ignore[assignment]
    loras: tuple[str, ...] = Field(
        (), title="LoRAs", description="those that the video was prepared with, as FILE.safetensors:WEIGHT",
        max_length=16,
    )  # fmt: skip


class Setting(_Form):
    """One way to edit, of several that are tried."""

    preset: Preset = Field("balanced", title="Preset")
    editor: str = Field("pnp", title="Editor", json_schema_extra=editor_names)
    guidance_scale: float = Field(0, title="Guidance scale", description="0: what the model advises", ge=0, le=100)
    negative_prompt: str = Field("", title="Negative prompt", max_length=2000)
    editor_settings: dict[str, JsonValue] = Field({}, title="Editor settings")
    controls: tuple[Control, ...] = EditConfig.model_fields["controls"]  # type: ignore[assignment]
    mask: Path | None = EditConfig.model_fields["mask"]  # type: ignore[assignment]
    mask_from: str | None = EditConfig.model_fields["mask_from"]  # type: ignore[assignment]
    mask_feather: int | None = EditConfig.model_fields["mask_feather"]  # type: ignore[assignment]
    options: dict[str, JsonValue] = Field(
        {}, title="Other options", description='of `tf run` by name, such as {"seed": 3}; they go first'
    )


class Sweep(_Form):
    """Every video with every prompt in every setting; what they share is computed once."""

    videos: tuple[Annotated[Path, Field(title="Video")], ...] = Field(
        title="Videos", description="files, as the machine that computes sees them", min_length=1, max_length=1000
    )
    prompts: tuple[Prompt, ...] = Field(
        title="Prompts", description="what the edits show", min_length=1, max_length=MOST_PROMPTS
    )
    settings: tuple[Setting, ...] = Field(
        (Setting(),), title="Settings", description="ways to edit that are tried", min_length=1, max_length=MOST_EDITS
    )
    model: str = EditConfig.model_fields["model"]  # type: ignore[assignment]
    loras: tuple[str, ...] = EditConfig.model_fields["loras"]  # type: ignore[assignment]
    source_prompt: str = EditConfig.model_fields["source_prompt"]  # type: ignore[assignment]
    frames: str | None = EditConfig.model_fields["frames"]  # type: ignore[assignment]
    size: str | None = EditConfig.model_fields["size"]  # type: ignore[assignment]
    steps: int = EditConfig.model_fields["steps"]  # type: ignore[assignment]

    @property
    def title(self) -> str:
        """What a run of it is called."""
        counts = ((self.videos, "video"), (self.prompts, "prompt"), (self.settings, "setting"))
        return "sweep · " + " × ".join(f"{len(each)} {noun}{'s' * (len(each) > 1)}" for each, noun in counts)

    def edits(self) -> Iterator[tuple[EditConfig, int]]:
        """One run per edit, so that one which fails takes no other with it; and the number of its setting, from 1.

        raises   InputError for a value that cannot be used
        """
        shared = self.model_dump(include=SHARED)
        for video in dict.fromkeys(self.videos):
            for number, setting in enumerate(self.settings, 1):
                for prompt in dict.fromkeys(self.prompts):
                    yield make_config(**_options(setting, shared) | {"video": video, "prompts": (prompt,)}), number


SHARED = {"model", "loras", "source_prompt", "frames", "size", "steps"}  # by all settings, where none says otherwise


def sweep_of(edits: Sequence[EditConfig]) -> Sweep:
    """The form that asks for these edits of one video, a prompt each: every prompt of theirs in every setting."""
    first = edits[0]
    shared = first.model_dump(include=SHARED)
    settings: list[Setting] = []
    for each in edits:
        setting = _setting(each, shared)
        settings += [] if setting in settings else [setting]
    prompts = tuple(dict.fromkeys(prompt for each in edits for prompt in each.prompts))
    return Sweep(videos=(first.video,), prompts=prompts, settings=tuple(settings), **shared)


def _setting(edit: EditConfig, shared: dict[str, Any]) -> Setting:
    """A setting with the form's own fields, and what they cannot say among its other options."""
    own = edit.model_dump(include={*Setting.model_fields} - {"preset", "options"})
    setting = Setting(**own | {"guidance_scale": edit.guidance_scale or 0})
    said = EditConfig(video=edit.video, prompts=edit.prompts, **_options(setting, shared)).model_dump(mode="json")
    others = {name: value for name, value in edit.model_dump(mode="json").items() if said[name] != value}
    return setting.model_copy(update={"options": others})


def _options(setting: Setting, shared: dict[str, Any]) -> dict[str, Any]:
    own = setting.model_dump(exclude={"preset", "options"}) | {"guidance_scale": setting.guidance_scale or None}
    return with_preset(setting.preset, {**shared, **own, **setting.options})


class Collection(Frozen):
    """What may leave the store."""

    max_size: str = Field(
        "", title="Keep at most", description="such as 500GB: the least recently used leave until so much is left",
        pattern=r"^\s*(\d+(\.\d+)?\s*[KMGTkmgt]?[iI]?[bB]?)?\s*$",
    )  # fmt: skip
    older_than: str = Field(
        "", title="Older than", description="such as 30d or 12h: what was last used longer ago leaves",
        pattern=r"^\s*(\d+(\.\d+)?\s*(s|min|h|d|w))?\s*$",
    )  # fmt: skip
    keep_edits: bool = Field(True, title="Keep edits", description="whatever their age")
    dry_run: bool = Field(False, title="Only say", description="what would be removed, and remove nothing")


TITLES = {"config": "Edit", "edit": "Edit", "store": "Store", "runtime": "Runtime", "output": "Output",
          "sweep": "Sweep", "collection": "What may leave"}  # fmt: skip


def titled(schema: dict[str, Any]) -> None:
    """Give the schema of a flow's parameters what a form shows, where Prefect puts the bare names and two tabs."""
    plain_fields(schema)
    for name, field in schema["properties"].items():
        field["title"] = TITLES.get(name, name.capitalize())
