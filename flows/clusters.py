"""Dask and Ray as a run sees them: started or reached once, asked who is there, and what has come of a part."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect import State
from prefect.futures import PrefectFuture

from flows.config import RuntimeConfig
from flows.engine import EngineError
from store.errors import InputError

WORKERS_HERE = 2
SECONDS_TO_ANSWER = 5.0
SECONDS_WITHOUT_WORKERS = 30.0  # after which they do not come any more
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_GATHER = 60.0  # what has come of a part that is done
KEPT = "finished parts are kept, and the next run goes on from there"
GONE = f"the Dask scheduler is gone, or has dropped this run's parts; {KEPT}"

Futures = Collection[PrefectFuture[Any]]


class Cluster(Protocol):
    """Workers of one run.

    runner   Prefect's task runner for them
    """

    runner: Any

    def workers(self) -> int:
        """How many there are now."""

    def gpus(self) -> int:
        """How many of them have a GPU to give."""

    def on_gpu(self) -> AbstractContextManager[Any]:
        """While it is entered, what is submitted goes to workers that have a GPU."""

    def finished(self, futures: Futures) -> list[PrefectFuture[Any]]:
        """Those of the futures that are done, as soon as there is one; none after a little while."""

    def state(self, future: PrefectFuture[Any]) -> State[Any] | None:
        """How a finished task run ended; None where its worker went away with that, and it is done again.

        raises   EngineError where the cluster lost it
        """

    def cancel(self, futures: Futures) -> None:
        """Do not begin what has not begun."""


@contextmanager
def cluster(runtime: RuntimeConfig) -> Iterator[Cluster]:
    """The workers that a run asks for, with at least one of them there.

    raises    InputError where the runner's package is not installed, its address does not answer or has no workers, or
              none of them has the GPU that is asked for
    """
    with ExitStack() as stack:
        try:
            kind = DaskWorkers if runtime.runner == "dask" else RayWorkers
            there: Cluster = kind(runtime, stack)
        except ImportError as error:
            raise InputError(
                f"--runner {runtime.runner} needs a package that is not installed ({error}); "
                f"pip install 'tokenflow[{runtime.runner}]'"
            ) from None
        _expect_workers(there, runtime)
        yield there


class Watch:
    """Tells when the workers have been gone for too long."""

    def __init__(self, there: Cluster) -> None:
        self.there, self._looked, self._seen = there, time.monotonic(), time.monotonic()

    def look(self) -> None:
        """EngineError where nobody is left to do the work."""
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        if self.there.workers():
            self._seen = now
        elif now - self._seen > SECONDS_WITHOUT_WORKERS:
            raise EngineError(f"all workers are gone; {KEPT}")


class DaskWorkers:
    """A Dask cluster: the scheduler at an address, or one here for this run alone."""

    UNDER_WAY = ("pending", "lost")

    def __init__(self, runtime: RuntimeConfig, stack: ExitStack) -> None:
        import distributed
        from prefect_dask import DaskTaskRunner

        self._dask = distributed
        address = runtime.address
        if address:
            _expect_answer("dask", address, "start one with: dask scheduler")
            self.runner: Any = DaskTaskRunner(address=address, client_kwargs={"timeout": 2 * SECONDS_TO_ANSWER})
        else:
            gpu = runtime.device == "cuda"
            own: dict[str, Any] = {
                "n_workers": 1 if gpu else WORKERS_HERE, "threads_per_worker": 1, "memory_limit": 0,
                "dashboard_address": None, "silence_logs": "CRITICAL", **({"resources": {"GPU": 1}} if gpu else {}),
            }  # fmt: skip
            self.runner = DaskTaskRunner(cluster_kwargs=own)
        stack.enter_context(self.runner)
        try:
            self._client = self.runner.client
        except (OSError, TimeoutError) as error:
            raise InputError(
                f"no Dask scheduler answers at {address} ({' '.join(str(error).split())[:120]}); start one with: dask "
                "scheduler, correct --address, or leave it out for workers of this run's own"
            ) from None

    def workers(self) -> int:
        """How many the scheduler knows; none where it is gone."""
        return len(self._known())

    def gpus(self) -> int:
        """How many were started with --resources GPU=1."""
        return sum(bool(worker.get("resources", {}).get("GPU")) for worker in self._known().values())

    def _known(self) -> dict[str, Any]:
        try:
            return dict(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TimeoutError, KeyError):
            return {}

    def on_gpu(self) -> AbstractContextManager[Any]:
        """By the workers' resource GPU."""
        import dask

        return dask.annotate(resources={"GPU": 1})

    def finished(self, futures: Futures) -> list[Any]:
        """As `Cluster.finished`."""
        theirs: dict[Any, Any] = {future.wrapped_future: future for future in futures}  # type: ignore[attr-defined]
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            ended = [one for one in theirs if one.status not in self.UNDER_WAY]  # known here: the scheduler tells
            if ended:
                return [theirs[one] for one in ended]
            time.sleep(0.02)
        return []

    def state(self, future: Any) -> State[Any] | None:
        """As `Cluster.state`."""
        deadline = time.monotonic() + SECONDS_TO_GATHER
        while time.monotonic() < deadline:
            with suppress(self._dask.TimeoutError):
                return self._result(future.wrapped_future)
            if future.wrapped_future.status in self.UNDER_WAY:
                return None
        raise EngineError(GONE)

    def _result(self, one: Any) -> State[Any]:
        """What the workers give; TimeoutError where it takes long, EngineError where they have nothing."""
        try:
            state: State[Any] = one.result(timeout=SECONDS_TO_ANSWER)
        except self._dask.TimeoutError:
            raise
        except self._dask.scheduler.KilledWorker as error:
            raise EngineError(
                f"one part took {error.allowed_failures + 1} workers with it, one after the other: they may lack "
                f"memory, see their logs; {KEPT}"
            ) from None
        except self._dask.CancelledError:
            raise EngineError(GONE) from None
        except Exception as error:
            raise _unable(error) from None
        return state

    def cancel(self, futures: Futures) -> None:
        """As `Cluster.cancel`."""
        self._client.cancel([future.wrapped_future for future in futures], force=True)  # type: ignore[attr-defined]


class RayWorkers:
    """A Ray cluster: the one at an address, or one here for this run alone."""

    def __init__(self, runtime: RuntimeConfig, stack: ExitStack) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from prefect_ray import RayTaskRunner

        self._ray = ray
        own: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if runtime.address:
            _expect_answer("ray", runtime.address, "start one with: ray start --head")
        else:
            own |= {"include_dashboard": False, **({} if runtime.device == "cuda" else {"num_cpus": WORKERS_HERE})}
        self.runner: Any = RayTaskRunner(address=runtime.address, init_kwargs=own)
        try:
            stack.enter_context(self.runner)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {runtime.address or 'this machine'} "
                f"({' '.join(str(error).split())[:120]}); start one with: ray start --head, correct --address, or "
                "leave it out for workers of this run's own"
            ) from None

    def workers(self) -> int:
        """How many nodes live."""
        return sum(bool(node["Alive"]) for node in self._ray.nodes())

    def gpus(self) -> int:
        """How many GPUs the nodes have."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def on_gpu(self) -> AbstractContextManager[Any]:
        """A whole GPU for each part."""
        from prefect_ray.context import remote_options

        return remote_options(num_gpus=1)

    def finished(self, futures: Futures) -> list[Any]:
        """As `Cluster.finished`."""
        theirs: dict[Any, Any] = {future.wrapped_future: future for future in futures}  # type: ignore[attr-defined]
        ended, _ = self._ray.wait(list(theirs), num_returns=1, timeout=0.5)
        return [theirs[one] for one in ended]

    def state(self, future: Any) -> State[Any] | None:
        """As `Cluster.state`."""
        try:
            state: State[Any] = self._ray.get(future.wrapped_future, timeout=SECONDS_TO_ANSWER)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except Exception as error:
            raise _unable(error) from None
        return state

    def cancel(self, futures: Futures) -> None:
        """As `Cluster.cancel`."""
        for future in futures:
            self._ray.cancel(future.wrapped_future, force=False)  # type: ignore[attr-defined]


def placed(there: Cluster, device: str) -> AbstractContextManager[Any]:
    """While it is entered, what is submitted goes to a worker that has the device."""
    return there.on_gpu() if device == "cuda" else nullcontext()


def expect_api(api: str, address: str | None) -> None:
    """InputError where workers at an address cannot reach the run's Prefect API: it listens on this machine alone."""
    host = urlsplit(api).hostname or ""
    if address and _is_loopback(host) and not _is_here(urlsplit(address).hostname or address):
        raise InputError(
            f"workers at {address} cannot reach this run's Prefect API {api}, which listens on this machine alone; "
            "start a server that they reach, and name it in PREFECT_API_URL"
        )


def _expect_answer(runner: str, address: str, how: str) -> None:
    """InputError where nobody listens at an address; one without host and port is left to the library."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"--address {address} is no address; write for example tcp://10.0.0.1:8786") from None
    if not host or not port:
        return
    try:
        socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise InputError(
            f"nobody answers at {address} ({error.strerror or error}); {how}, correct --address, or leave it out for "
            f"{runner} workers of this run's own"
        ) from None


def _expect_workers(there: Cluster, runtime: RuntimeConfig) -> None:
    """Wait a little for the first worker; InputError where none comes, or none has the GPU that is asked for."""
    deadline = time.monotonic() + SECONDS_WITHOUT_WORKERS
    while not there.workers():
        if time.monotonic() > deadline:
            raise InputError(
                f"the cluster at {runtime.address or 'this machine'} has no workers; start some, for example with: "
                f"dask worker {runtime.address or 'ADDRESS'} --nthreads 1"
            )
        time.sleep(0.1)
    if runtime.device == "cuda" and not there.gpus():
        raise InputError(
            "--device cuda: no worker says that it has a GPU; start Dask's with --resources GPU=1 (one per GPU), Ray's "
            "nodes with --num-gpus, or use --device cpu"
        )


def _unable(error: BaseException) -> EngineError:
    """What a library says of a part that was not even begun, or was lost."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) or "ModuleNotFoundError" in said:
        return EngineError(f"a worker has not what it takes ({said[-200:]}); install this version of tokenflow on it")
    return EngineError(f"a worker could not do its part ({type(error).__name__}: {said[:300]}); {KEPT}")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _is_here(host: str) -> bool:
    """Whether a host name is this machine's: only then can something listen there."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as listener:
            listener.bind(found[0][4])
        return True
    except OSError:
        return False
