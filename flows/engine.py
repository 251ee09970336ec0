"""Who walks a run: nobody but us, or Prefect. Decided here; Prefect is imported only when it is to walk.

Nothing to compute, or `direct`: plain function calls. Otherwise the API that Prefect is configured for, else a
server on this machine's usual port, else an ephemeral one that starts while the model loads.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from store.errors import InputError, TokenflowError

if TYPE_CHECKING:
    from .plan import Plan
    from .tasks import Session

T = TypeVar("T")
Wanted = Literal["auto", "prefect", "direct"]
Chosen = Literal["prefect", "direct"]

LOCAL_API = ("127.0.0.1", 4200, "/api")
LOADING = "load model"  # the name of a thread
SECONDS_TO_ANSWER = 10  # of a server: one that is there, and busy, is not taken for one that is not
SECONDS_WITHOUT_SIGN = 120  # of life, after which a run counts for dead: four heartbeats
DEFAULTS = {  # of Prefect's settings, where the user has none of their own
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; a run that misses four counts for dead
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # logs reach the API; the terminal shows our own lines
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else each event that a server misses is a page on the terminal
}


class EngineError(TokenflowError):
    """Prefect failed, not the run: what is finished is in the store; the command line exits with 1."""


def set_defaults() -> None:
    """Give Prefect our defaults: no telemetry, a quiet terminal, time for a first start. Before it is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def choose_engine(wanted: Wanted, work_to_do: bool) -> Chosen:
    """Who is to walk; where that is Prefect, it is left configured for the server to use.

    raises    InputError when `prefect` is wanted and the configured API does not answer; under `auto` that is a warning
              on stderr, and plain calls
    """
    if wanted == "direct" or not work_to_do:
        return "direct"
    set_defaults()
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url is None:
        local = local_server()
        if local is not None:
            os.environ["PREFECT_API_URL"] = local
            refresh_global_settings_context()
        return "prefect"
    fault = api_fault()
    if fault is None:
        return "prefect"
    if wanted == "prefect":
        raise InputError(f"the Prefect API {url} {fault.what}; {fault.way_out}")
    print(f"tf: the Prefect API {url} {fault.what}, so this run goes on without Prefect.", file=sys.stderr)
    return "direct"


def describe_api() -> tuple[str, bool, str | None]:
    """Which Prefect API a run would use, whether it works, and if not the way out (for `tf doctor`); starts nothing."""
    set_defaults()
    try:
        import prefect
        from prefect.settings import PREFECT_API_URL
    except Exception as error:  # a broken installation fails in a dozen ways
        reason = " ".join(str(error).split())[:200]
        return f"cannot be imported ({reason})", False, "install tokenflow again, or use --engine direct"
    url = PREFECT_API_URL.value()
    if url is None:
        local = local_server()
        server = f"the server at {local}" if local else "a server of its own for each run"
        return f"{prefect.__version__}, no API configured: {server}", True, None
    fault = api_fault()
    if fault is None:
        return f"{prefect.__version__}, API {url}", True, None
    return f"{prefect.__version__}, API {url} {fault.what}", False, fault.way_out


def _local_url() -> str:
    host, port, path = LOCAL_API
    return f"http://{host}:{port}{path}"


class Fault(NamedTuple):
    """What is wrong with an API, as the words that follow its address, and the way out."""

    what: str
    way_out: str


_CORRECT = "correct or unset PREFECT_API_URL (or the Prefect profile), or use --engine direct"
SILENT = Fault("does not answer", f"start its server, {_CORRECT}")


def api_fault() -> Fault | None:
    """Why the configured Prefect API cannot be used, asked once; None where it can."""
    import httpx
    from prefect import __version__
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client,
        ):
            problem = client.api_healthcheck()
            if problem is not None:
                raise problem
            version = None if client.server_type == ServerType.CLOUD else str(client.api_version())
    except PrefectHTTPStatusError as error:
        return refusal(error.response.status_code)
    except httpx.HTTPError:
        return SILENT
    except (ValueError, httpx.InvalidURL):  # what answers says nothing that Prefect would say
        return Fault("is no Prefect API, though something answers there", _CORRECT)
    if version is None or version.partition(".")[0] == __version__.partition(".")[0]:
        return None
    return Fault(
        f"is that of Prefect {version}, and this is {__version__}: their first numbers must be the same",
        "bring the server or this installation up to date, or use --engine direct",
    )


def refusal(code: int) -> Fault:
    """What an HTTP status says of an API that should have said yes."""
    if code in (401, 403):
        return Fault(
            f"refuses this machine ({code})", "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY, or use --engine direct"
        )
    if code >= 500:
        return Fault(f"fails ({code})", f"look at its server's log, {_CORRECT}")
    return Fault(f"is no Prefect API: it answers {code}", _CORRECT)


def local_server() -> str | None:
    """URL of the API of a Prefect server on this machine: at the usual port, or where `tf up` started it."""
    return next((url for url in (_local_url(), desk_url()) if url and answers(url)), None)


def configured_url() -> str | None:
    """The API that Prefect is configured for, else that of a server on this machine; None where there is neither."""
    set_defaults()
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or local_server()


def use_server() -> str:
    """Have Prefect in this process use the server that is configured, or one on this machine; returns its API's URL.

    raises    EngineError where there is none, or it cannot be used
    """
    url = configured_url()
    if url is None:
        raise EngineError(
            "no Prefect server is known here: set PREFECT_API_URL, or start one with tf up; tf run does without"
        )
    from prefect.context import refresh_global_settings_context

    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    fault = api_fault()
    if fault is not None:
        raise EngineError(f"the Prefect API {url} {fault.what}; {fault.way_out.replace('use --', 'tf run --')}")
    return url


def desk_file() -> Path:
    """Where `tf up` writes what it started."""
    import platformdirs

    return Path(platformdirs.user_state_dir("tokenflow")) / "desk.json"


def desk_url() -> str | None:
    """The API that `tf up` left running, as its file says."""
    with suppress(OSError, ValueError, AttributeError):
        url = json.loads(desk_file().read_bytes()).get("api")
        return url if isinstance(url, str) else None
    return None


def answers(url: str) -> bool:
    """Whether a Prefect API answers at `url`, asked once, without Prefect."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=SECONDS_TO_ANSWER)
    except (ValueError, http.client.HTTPException):
        return False
    try:
        connection.request("GET", f"{parts.path}/health")
        answer = connection.getresponse()
        return answer.status == 200 and answer.read(16).strip() == b"true"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def needs_model(plan: Plan, *, preview: bool = False) -> bool:
    """Whether computing what a run (or a preview) lacks takes the model: all but decoding and matching kept tokens."""
    without = {"decode_frames", "control_frames"} | ({"match_tokens"} if plan.keeps_tokens else set())
    return any(node.stage not in without for node in plan.to_compute(preview=preview))


def run_with_prefect(session: Session, work: Callable[[Session], T], name: str) -> T:
    """Do `work` inside a Prefect flow run, one task run per part of a stage; returns what `work` returns.

    session   its engine becomes Prefect's for the run
    name      of the flow
    raises    what `work` raises, the same object, KeyboardInterrupt too (the flow run is then Cancelled);
              EngineError when Prefect itself fails
    """
    set_defaults()
    from flows import edit_flow

    server_is_up = start_server()
    if session.plan.runtime.runner == "here" and needs_model(session.plan, preview=name == "preview-video"):
        preload(session)
    server_is_up()
    flow = edit_flow.edit_video if name == "edit-video" else edit_flow.preview_video
    return edit_flow.run(session, work, flow)


def start_server() -> Callable[[], None]:
    """Start Prefect's ephemeral server where no API is configured.

    What is returned waits until the server answers, and raises EngineError when it does not come up.

    It is started by a thread that blocks SIGINT, which the server inherits: Ctrl-C reaches every process of the
    terminal, and without its server Prefect would retry for minutes to say that the run was cancelled.
    """
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is not None:
        return lambda: None
    from prefect.server.api.server import SubprocessASGIServer

    failure: list[Exception] = []

    def start() -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            SubprocessASGIServer().start()
        except Exception as error:
            failure.append(error)

    starting = threading.Thread(target=copy_context().run, args=(start,), name="start Prefect's server", daemon=True)
    starting.start()

    def wait() -> None:
        starting.join()
        if failure:
            reason = " ".join(str(failure[0]).split())[:300]
            raise EngineError(f"Prefect's own server does not start ({reason}); use --engine direct") from failure[0]

    return wait


def preload(session: Session) -> None:
    """Load the model in the background: Prefect's server starts meanwhile.

    An error is left to whoever asks for `session.backbone`: nothing was loaded, so asking meets it again.
    """

    def load() -> None:
        with suppress(Exception):
            _ = session.backbone

    threading.Thread(target=load, name=LOADING, daemon=True).start()
    atexit.register(loaded)


def loaded() -> None:
    """Wait for models that are being loaded: an end of Python that meets a thread within torch aborts the process."""
    for thread in threading.enumerate():
        if thread.name == LOADING:
            thread.join()
