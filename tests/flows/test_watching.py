"""What people see of a run while it goes on and when it is over, and what is tried again without their asking."""

from __future__ import annotations

import base64
import errno
import io
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows import showing
from flows.command_line import run_command
from flows.config import EditConfig, RuntimeConfig
from flows.ending import way_out
from flows.markdown import cell, code, fenced, plain
from flows.plan import Plan
from flows.prefect_engine import may_pass, stage_part
from flows.run import run_edit
from flows.showing import lasting, progress_key
from flows.summary import URI_BYTES, artifact_key, before_after
from stages import decode_frames
from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.checks import FullDeviceError, NonFiniteLatents
from store.errors import FullPlaceError, InputError, SchemaError, SilentPlaceError, StoreError, StorePlaceError
from store.layout import writing
from store.store import Store
from tests.flows.server import PATIENCE, last_flow_run, task_runs, wait_for
from tests.flows.watched import Event, watch
from tests.stages.clips import write_clip

# text of strangers


@pytest.mark.parametrize(
    "text", ["a `b` c", "``", "`", "a|b", "<script>", "![x](http://elsewhere/x.png)", "כדור 🎾", " "]
)
def test_code_ends_where_it_should_whatever_is_in_it(text: str) -> None:
    whole = code(text)
    fence = re.match("`+", whole)
    assert fence is not None
    inside = whole[len(fence[0]) : -len(fence[0])]
    assert whole.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inside)
    assert inside.strip() == text.strip()
    assert "|" not in cell(text)


def test_plain_text_is_no_markup() -> None:
    said = plain("![x](http://elsewhere/x.png) <script>&lt; **a** _b_ ~~c~~ `d`\n# e")
    assert not re.search(r"(?<!\\)[!\[\]<>&*_~`#]", said)
    assert "\n" not in said


def test_a_block_of_code_is_not_ended_by_what_is_in_it() -> None:
    first, *_, last = fenced("one\n```\n![x](y)")
    assert first == last == "````"


def test_the_command_of_a_page_is_the_one_that_makes_the_run() -> None:
    config = EditConfig(video=Path("a b.mp4"), prompts=("it's `x`", "y"), steps=6, editor_settings={"feature": 0.6},
                        loras=("a b.safetensors:0.5", "c.safetensors"), prompt_weighting=True)  # fmt: skip
    runtime = RuntimeConfig(precision="float32", allow_pickle=True)
    wrapped = run_command(config, "s3://bucket/store", runtime=runtime, wrapped=True)
    words = shlex.split(wrapped.replace("\\\n", ""))
    assert words == shlex.split(run_command(config, "s3://bucket/store", runtime=runtime))
    assert words == [
        "tf", "run", "a b.mp4", "--prompt", "it's `x`", "--prompt", "y", "--lora", "a b.safetensors:0.5", "--lora",
        "c.safetensors", "--prompt-weighting", "--steps", "6", "--set", "feature=0.6",
        "--precision", "float32", "--allow-pickle", "--store", "s3://bucket/store",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["My ball_1", "כדור", "x" * 200, "---"])
def test_names_of_artifacts_are_such_as_prefect_takes(name: str) -> None:
    for key in (artifact_key(Path(f"{name}.mp4")), progress_key("edit_keyframes", name)):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)


def test_videos_whose_names_have_no_latin_letters_do_not_share_their_pages() -> None:
    assert artifact_key(Path("כדור.mp4")) != artifact_key(Path("球.mp4"))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (89, "89 s"), (400, "7 min"), (5700, "1 h 35 min")],
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


# the picture


class Frames:
    """Enough of an artifact to be looked at."""

    def __init__(self, rgb: Any, durations: Any) -> None:
        self.values = {"rgb": rgb, "duration": durations, "pts": np.concatenate([[0], np.cumsum(durations)[:-1]])}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@pytest.mark.parametrize("size", [64, 512])
def test_before_and_after_fit_their_limit_whatever_they_show_and_last_as_long_as_the_clip(size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, size, size, 3), np.uint8)
    durations = np.where(np.arange(40) % 2, 0.02, 0.06)
    clip: Any = Frames(noise, durations)
    for limit in (URI_BYTES, URI_BYTES // 4):
        uri = before_after(clip, clip, range(40), limit=limit)
        assert limit / 4 < len(uri) <= limit
        picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        shown = [frame_milliseconds(picture, k) for k in range(picture.n_frames)]  # type: ignore[attr-defined]
        assert sum(shown) == pytest.approx(1000 * durations.sum(), rel=0.02)


def frame_milliseconds(picture: Image.Image, number: int) -> int:
    picture.seek(number)
    picture.load()
    return int(picture.info["duration"])


def test_a_calm_picture_is_shown_large() -> None:
    rgb = np.linspace(0, 255, 20 * 512 * 512 * 3).astype(np.uint8).reshape(20, 512, 512, 3)
    clip: Any = Frames(rgb, np.full(20, 0.1))
    uri = before_after(clip, clip, range(20))
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).width >= 2 * 256


# what may pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "input/output error"), OSError(errno.ETIMEDOUT, "timed out"), ConnectionResetError(),
        TimeoutError(), SilentPlaceError("the store s3://x does not answer"), torch.OutOfMemoryError("CUDA is full"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error, 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space"), PermissionError(errno.EACCES, "denied"), FileNotFoundError(2, "?"),
        InputError("no such video"), StorePlaceError("no store"), FullPlaceError("full"), SchemaError("damaged"),
        FullDeviceError("one frame does not fit"), NonFiniteLatents("not finite"), ValueError("a mistake"), None,
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_pass_is_not(error: Exception | None) -> None:
    assert not may_pass(error, 1)


def test_a_full_gpu_is_tried_again_once() -> None:
    assert not may_pass(torch.OutOfMemoryError("CUDA out of memory"), 2)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, SilentPlaceError), (errno.ENOSPC, FullPlaceError)])
def test_what_a_disk_says_while_the_store_writes_tells_whether_it_may_pass(
    number: int, kind: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(kind), writing(tmp_path, "a draft"):
        raise OSError(number, "said the disk")
    with pytest.raises(StorePlaceError) as denied, writing(tmp_path, "a draft"):
        raise PermissionError(errno.EACCES, "denied")
    assert not isinstance(denied.value, SilentPlaceError | FullPlaceError)


def test_each_kind_of_error_has_one_way_out() -> None:
    said = {
        FullDeviceError("x"): "--size", torch.OutOfMemoryError("x"): "--frames-per-pass", FullPlaceError("x"): "tf gc",
        SilentPlaceError("x"): "tf doctor", SchemaError("x"): "tf verify --repair", StoreError("x"): "tf verify",
        ValueError("x"): "TOKENFLOW_DEBUG",
    }  # fmt: skip
    for error, option in said.items():
        assert option in str(way_out(error, None)), error
    assert way_out(InputError("its sentence names the way out"), None) is None


# at a real server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen frames, which are two chunks of frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "ball.mp4", frames=18, width=32, height=32)


@pytest.fixture(scope="module")
def prepared(clip: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which one edit of the clip was made: others find four stages there."""
    folder = tmp_path_factory.mktemp("prepared")
    store = Store(folder / "store")
    run_edit(plan_of(clip, tiny_folder, store, "a red ball"), folder / "out.mp4", "direct")
    return store


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(stage_part, "retry_delay_seconds", [0.01])


def plan_of(clip: Path, model: Path, store: Store, *prompts: str, **more: Any) -> Plan:
    config = EditConfig(video=clip, prompts=prompts, model=str(model), steps=6, **more)
    return Plan(config, RuntimeConfig(device="cpu"), store)


def artifacts(run: Any, kind: str) -> list[Any]:
    from prefect.client.orchestration import get_client

    asked = {"flow_run_id": {"any_": [str(run.id)]}, "type": {"any_": [kind]}}
    with get_client(sync_client=True) as client:
        return list(client.request("POST", "/artifacts/filter", json={"artifacts": asked}).json())


def page(run: Any) -> str:
    """The one page of a run."""
    (found,) = artifacts(run, "markdown")
    return str(found["data"])


def log(run: Any) -> list[str]:
    """The run's log, once it has come to its end."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    with get_client(sync_client=True) as client:

        def lines() -> list[str] | None:
            found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
            ended = any(line.name == "prefect.flow_runs" and line.message.startswith("Finished in") for line in found)
            return [line.message for line in found] if ended else None

        return list(wait_for(lines, "the log has no end"))


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestAtAServer:
    """Runs whose pages, logs, states and progress are read from the API."""

    def test_stages_show_how_many_steps_are_done_and_say_so_at_their_beginning_and_end(
        self, api: str, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(showing, "SECONDS_BETWEEN_SIGHTS", 0.02)
        plan = plan_of(clip, tiny_folder, Store(tmp_path / "store"), "a blue ball")
        run_edit(plan, tmp_path / "out.mp4", "prefect")
        run = last_flow_run()
        shown = {each["key"]: each for each in artifacts(run, "progress")}
        for stage, counted in {"invert-frames": "12 of 12 steps", "propagate-tokens": "6 of 6 steps"}.items():
            last = shown[f"progress-{stage}-ball"]
            assert last["data"] == 100
            assert f"{counted} · done in" in last["description"]
        said = log(run)
        for begun in ("decode frames · 0 of 18 frames", "propagate tokens · 'a blue ball' · 0 of 6 steps"):
            assert begun in said
        assert sum("propagate tokens" in line for line in said) == 2  # no more of what takes a second

    def test_a_server_that_does_not_answer_slows_no_work(
        self, api: str, clip: Path, tiny_folder: Path, prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, waited, over = [], [], threading.Event()

        def never(*given: Any, **named: Any) -> None:
            asked.append(given)
            waited.append(not over.wait(PATIENCE))

        monkeypatch.setattr(showing, "SECONDS_BETWEEN_SIGHTS", 0.02)
        monkeypatch.setattr(showing, "create_progress_artifact", never)
        run_edit(plan_of(clip, tiny_folder, prepared, "a slow ball"), tmp_path / "out.mp4", "prefect")
        assert asked and not waited
        over.set()
        assert last_flow_run().state.is_completed()

    def test_what_fails_inside_an_edit_goes_on_from_its_last_step_and_comes_to_the_same_bytes(
        self, api: str, soon: None, clip: Path, tiny_folder: Path, prepared: Store, tmp_path: Path
    ) -> None:
        calm, shaken = (Store(copied(prepared, tmp_path / name)) for name in ("calm", "shaken"))
        passes: list[Event] = []
        with watching(passes):
            whole = run_edit(plan_of(clip, tiny_folder, calm, "a green ball"), tmp_path / "calm.mp4", "direct")
        again: list[Event] = []
        with watching(again, failing_at=len(passes) * 2 // 3):
            plan = plan_of(clip, tiny_folder, shaken, "a green ball")
            result = run_edit(plan, tmp_path / "shaken.mp4", "prefect")
        assert result.uses[-1].artifact.digest == whole.uses[-1].artifact.digest
        assert len(passes) <= len(again) < len(passes) * 4 // 3
        run = last_flow_run()
        assert run.state.is_completed()
        counts = {each.name.split(" · ")[0]: each.run_count for each in task_runs(run, 6)}
        assert counts["edit"] == 2
        said = log(run)
        assert any("is tried again: unexpected OSError: [Errno 5]" in line for line in said)

    def test_a_store_that_never_answers_is_given_up_after_four_tries(
        self, api: str, soon: None, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode_frames, "run", raising(SilentPlaceError("the store s3://x failed while reading y")))
        with pytest.raises(SilentPlaceError):
            run_edit(plan_of(clip, tiny_folder, Store(tmp_path / "s"), "x"), tmp_path / "out.mp4", "prefect")
        run = last_flow_run()
        assert [each.run_count for each in task_runs(run, 1)] == [4]
        assert "tf doctor" in page(run)
        assert not any("Traceback" in line or "NoneType" in line for line in log(run))

    @pytest.mark.parametrize(
        "error", [InputError("the video x.mp4 is no video; name another"), FullPlaceError("the disk is full: x"),
                  PermissionError(errno.EACCES, "Permission denied"), ValueError("a mistake of ours")], ids=repr,
    )  # fmt: skip
    def test_what_cannot_pass_fails_at_once_with_one_sentence(
        self, api: str, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        monkeypatch.setattr(decode_frames, "run", raising(error))
        with pytest.raises(type(error)) as raised:
            run_edit(plan_of(clip, tiny_folder, Store(tmp_path / "s"), "x"), tmp_path / "out.mp4", "prefect")
        assert raised.value is error
        run = last_flow_run()
        expected = isinstance(error, StoreError | InputError)
        sentence = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
        assert (run.state.name, run.state.message) == ("Failed", sentence)
        assert [(each.run_count, each.state.message) for each in task_runs(run, 1)] == [(1, sentence)]
        said = log(run)
        assert sum("Traceback" in line for line in said) == (0 if expected else 1)
        assert plain(sentence) in page(run)

    def test_a_gpu_that_was_full_once_is_tried_again_in_smaller_passes(
        self, api: str, soon: None, clip: Path, tiny_folder: Path, prepared: Store, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        told: list[int] = []
        make_room = StableDiffusion.make_room

        def noted(backbone: StableDiffusion, *tried: int) -> None:
            make_room(backbone, *tried)
            told.append(backbone.at_once)

        monkeypatch.setattr(StableDiffusion, "make_room", noted)
        with watching([], failing_at=3, error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
            run_edit(plan_of(clip, tiny_folder, prepared, "a full ball"), tmp_path / "out.mp4", "prefect")
        run = last_flow_run()
        assert run.state.is_completed()
        assert told

    def test_a_full_gpu_is_given_up_after_the_second_try(
        self, api: str, soon: None, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode_frames, "run", raising(torch.OutOfMemoryError("CUDA out of memory. Tried to …")))
        with pytest.raises(torch.OutOfMemoryError):
            run_edit(plan_of(clip, tiny_folder, Store(tmp_path / "s"), "x"), tmp_path / "out.mp4", "prefect")
        run = last_flow_run()
        assert [each.run_count for each in task_runs(run, 1)] == [2]
        assert run.state.message == "the GPU's memory is full (CUDA out of memory)"
        assert "--frames-per-pass" in page(run)

    def test_a_failed_page_says_at_which_frame_and_timestep_what_to_do_and_what_is_kept(
        self, api: str, clip: Path, tiny_folder: Path, prepared: Store, tmp_path: Path
    ) -> None:
        def no_number(backbone: Any, noise: Any) -> Any:
            return torch.full_like(noise, float("nan"))

        plan = plan_of(clip, tiny_folder, prepared, "a <b>black</b> ball")
        with watching([], failing_at=5, instead=no_number), pytest.raises(NonFiniteLatents) as raised:
            run_edit(plan, tmp_path / "out.mp4", "prefect")
        run, error = last_flow_run(), raised.value
        text = page(run)
        assert text.startswith("# ball: failed")
        assert run.state.message == str(error)
        for name in ("stage", "frame", "timestep"):
            assert f"| {name} | `{getattr(error, name)}` |" in text
        assert error.frame in range(18)
        assert error.timestep in plan.timesteps
        assert "What to do: lower `--guidance-scale`" in text
        assert "Kept: `decode_frames`, `invert_frames`, `extract_tokens`, `match_tokens`." in text
        assert "goes on at `propagate_tokens`" in text
        assert "--prompt 'a <b>black</b> ball'" in text.partition("```")[2]
        assert "<b>" not in text.partition("```")[0]

    def test_a_cancelled_run_has_a_page_too(
        self, api: str, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode_frames, "run", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run_edit(plan_of(clip, tiny_folder, Store(tmp_path / "s"), "x"), tmp_path / "out.mp4", "prefect")
        run = last_flow_run()
        assert run.state.name == "Cancelled"
        assert page(run).startswith("# ball: cancelled")

    def test_a_report_that_cannot_be_written_fails_no_run(
        self, api: str, clip: Path, tiny_folder: Path, prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flows.edit_flow import edit_video

        monkeypatch.setenv("TOKENFLOW_REPORTS", str(tmp_path / "nowhere"))
        monkeypatch.setenv("TOKENFLOW_REPORTS_URL", "http://127.0.0.1:9")
        plan = plan_of(clip, tiny_folder, prepared, "a red ball", "a | `second` ball")
        edit_video(plan.config, prepared.place, plan.runtime, tmp_path / "out.mp4")
        run = last_flow_run()
        assert run.state.is_completed()
        text = page(run)
        pictures = re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", text)
        assert len(pictures) == 2
        assert sum(map(len, pictures)) <= URI_BYTES
        assert "**Edit 2** ``a | `second` ball``" in text
        assert "| propagate_tokens | 1 | reused |" in text
        assert "| propagate_tokens | 2 | computed |" in text
        assert text.count("tf reproduce ") == 2
        assert "127.0.0.1:9" not in text
        assert any("report could not be written" in line for line in log(run))


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        raise error

    return run


def copied(store: Store, place: Path) -> Path:
    shutil.copytree(store.root, place)
    return place


@contextmanager
def watching(
    seen: list[Event], failing_at: int | None = None, error: BaseException | None = None,
    instead: Callable[..., Any] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Note every UNet pass and reading of tokens; at one of them, once, fail, or have other noise come out."""
    error = error or OSError(errno.EIO, "Input/output error")

    def told(event: Event) -> None:
        seen.append(event)
        if len(seen) == failing_at and instead is None:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, told)
        if instead is not None:
            predict = StableDiffusion.predict_noise

            def predicts(backbone: Any, latents: Any, timestep: int, text: Any, residuals: Any = None) -> Any:
                noise = predict(backbone, latents, timestep, text, residuals)
                return instead(backbone, noise) if len(seen) == failing_at else noise

            patch.setattr(StableDiffusion, "predict_noise", predicts)
        yield
