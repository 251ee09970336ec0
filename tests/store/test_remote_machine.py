"""Whatever two machines do to a shared store: what is there is found by both, whole, and computed once."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from store.remote import RemoteStore
from tests.store.demo import demo_blocks, demo_key, demo_schema, demo_values, stopped
from tests.store.places import PLENTY, Place

EXAMPLES = int(os.environ.get("TOKENFLOW_STATE_EXAMPLES", "4"))
PARTS = demo_schema().divided()

machines = st.sampled_from(["one", "two"])
keys = st.sampled_from([0, 1, 2])


class TwoMachines(RuleBasedStateMachine):
    """Machine "two" has a cache that holds next to nothing."""

    new_place: Place

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.place = Place(f"{self.new_place.url}/{os.path.basename(self._folder.name)}", Path(self._folder.name))  # noqa: PTH119
        self.stores: dict[str, RemoteStore] = {}
        self.there: dict[int, str] = {}  # key → digest of what is whole in the place
        self.here: set[tuple[str, int]] = set()  # what a machine may have in its cache

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        self._folder.cleanup()

    def store(self, machine: str) -> RemoteStore:
        if machine not in self.stores:
            self.stores[machine] = self.place.machine(machine, PLENTY if machine == "one" else 1)
        return self.stores[machine]

    @rule(machine=machines, key=keys)
    def make(self, machine: str, key: int) -> None:
        computed = 0
        with self.store(machine).draft(demo_key(key), demo_schema()) as draft:
            for part in draft.missing():
                draft.write(part, demo_blocks(part))
                computed += 1
            if not draft.found:
                draft.attrs["fps"] = key + 1
        if draft.found:
            assert key in self.there or (machine, key) in self.here
        else:
            assert key not in self.there
            self.there[key] = draft.artifact.digest
        self.here.add((machine, key))

    @rule(machine=machines, key=keys)
    def stop(self, machine: str, key: int) -> None:
        with stopped(), self.store(machine).draft(demo_key(key), demo_schema()) as draft:
            for part in draft.missing()[:1]:
                draft.write(part, demo_blocks(part))
            raise KeyboardInterrupt

    @rule(machine=machines, key=keys)
    def read(self, machine: str, key: int) -> None:
        found = self.store(machine).find(demo_key(key))
        if found is None:
            assert key not in self.there
            return
        assert key in self.there or (machine, key) in self.here
        assert found.attrs["fps"] == key + 1
        expected = np.concatenate([demo_values("latents", part) for part in PARTS])
        np.testing.assert_array_equal(found["latents"][:], expected)
        self.here.add((machine, key))

    @rule(machine=machines, key=keys)
    def collect(self, machine: str, key: int) -> None:
        if key in self.there:
            self.store(machine).remove_object(self.there.pop(key))

    @rule(key=keys)
    def lose_a_file(self, key: int) -> None:
        if key in self.there:
            self.place.backend().delete(f"objects/{self.there.pop(key)}/rgb/c/0/0/0")

    @rule(machine=machines)
    def reopen(self, machine: str) -> None:
        if machine in self.stores:
            self.stores.pop(machine).close()

    @invariant()
    def what_is_there_is_found_by_a_third(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            third = Place(self.place.url, Path(folder)).machine()
            for key in (0, 1, 2):
                found = third.find(demo_key(key))
                assert (found.digest if found else None) == self.there.get(key)
        assert self.place.names("locks") == []


def test_two_machines_agree_whatever_they_do(place: Place) -> None:
    machine = type("Machine", (TwoMachines,), {"new_place": place})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.slow
def test_two_machines_agree_whatever_they_do_at_length(memory: Place) -> None:
    machine = type("Machine", (TwoMachines,), {"new_place": memory})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
