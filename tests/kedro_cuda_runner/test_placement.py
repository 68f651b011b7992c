import os

import pytest
from fake_devices import GB, FakeDevices, allocate
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from kedro_cuda_runner.devices import Device
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.resources import Resources


class Memory:
    """The one thing that placement asks of the hardware; sizes in GB."""

    def __init__(self, *sizes):
        self.devices = [
            Device(index, f"GPU-{index}", "Fake GPU", size * GB) for index, size in enumerate(sizes)
        ]
        self.free = {device.uuid: device.memory_bytes for device in self.devices}

    def free_bytes(self, device):
        return self.free[device.uuid]

    def take(self, index, gb):
        self.free[f"GPU-{index}"] -= gb * GB


def needing(gb=None, devices=1):
    return Resources(devices=devices, memory_bytes=None if gb is None else gb * GB)


def placement_on(memory, **arguments):
    return Placement(memory.devices, memory, **arguments)


def place(placement, name, required):
    devices = placement.try_place(name, required)
    return None if devices is None else [device.index for device in devices]


class TestCpu:
    def test_one_place(self):
        placement = placement_on(Memory(24))
        assert placement.try_place("one", Resources(devices=0)) == ()
        assert placement.try_place("two", Resources(devices=0)) is None
        assert place(placement, "three", needing()) == [0]
        placement.release("one")
        assert placement.try_place("two", Resources(devices=0)) == ()

    def test_more_places_and_no_devices(self):
        placement = placement_on(Memory(), max_cpu_processes=2)
        placed = [placement.try_place(str(number), Resources(devices=0)) for number in range(3)]
        assert placed == [(), (), None]

    def test_no_place_would_wait_for_ever(self):
        with pytest.raises(ValueError, match="max_cpu_processes = 0"):
            placement_on(Memory(24), max_cpu_processes=0)


class TestUnknownMemory:
    def test_alone_on_its_devices(self):
        placement = placement_on(Memory(24, 24))
        assert place(placement, "unknown", needing()) == [0]
        assert place(placement, "small", needing(1)) == [1]
        assert place(placement, "another", needing()) is None
        # nobody joins the unknown one, whatever is free there
        assert place(placement, "large", needing(23)) == [1]
        assert place(placement, "too large", needing(1)) is None

    def test_device_with_the_most_room(self):
        memory = Memory(24, 24, 24)
        memory.take(0, 20)
        assert place(placement_on(memory), "unknown", needing()) == [1]


class TestSharing:
    def test_empty_devices_come_first(self):
        placement = placement_on(Memory(24, 24))
        assert place(placement, "one", needing(1)) == [0]
        assert place(placement, "two", needing(1)) == [1]
        assert place(placement, "three", needing(1)) == [0]

    def test_the_empty_one_even_with_less_room(self):
        placement = placement_on(Memory(80, 24))
        assert place(placement, "one", needing(1)) == [0]
        assert place(placement, "two", needing(1)) == [1]

    def test_then_the_one_with_most_room(self):
        placement = placement_on(Memory(24, 24))
        place(placement, "one", needing(10))
        place(placement, "two", needing(5))
        assert place(placement, "three", needing(2)) == [1]

    def test_resources_count_before_they_are_taken(self):
        placement = placement_on(Memory(24))
        assert place(placement, "one", needing(10)) == [0]
        assert place(placement, "two", needing(15)) is None
        assert place(placement, "three", needing(14)) == [0]

    def test_resources_count_once_when_they_are_taken(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(10))
        memory.take(0, 10)
        assert place(placement, "two", needing(15)) is None
        assert place(placement, "three", needing(14)) == [0]

    def test_what_others_hold_is_left_to_them(self):
        memory = Memory(24)
        memory.take(0, 8)
        placement = placement_on(memory)
        assert place(placement, "huge", needing(17)) is None
        assert place(placement, "one", needing(10)) == [0]
        assert place(placement, "two", needing(7)) is None
        memory.take(0, 10)
        assert place(placement, "three", needing(7)) is None
        assert place(placement, "four", needing(6)) == [0]

    def test_others_that_come_later(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(10))
        memory.take(0, 10 + 9)
        assert place(placement, "two", needing(6)) is None
        assert place(placement, "three", needing(5)) == [0]

    def test_node_that_takes_more_than_it_said(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(4))
        memory.take(0, 20)
        assert place(placement, "two", needing(5)) is None
        assert place(placement, "three", needing(4)) == [0]

    def test_others_that_have_gone(self):
        memory = Memory(24)
        memory.take(0, 20)
        placement = placement_on(memory)
        place(placement, "one", needing(4))
        memory.take(0, -20)
        assert place(placement, "two", needing(21)) is None
        assert place(placement, "three", needing(20)) == [0]

    def test_what_neighbours_hold_is_not_taken_for_others(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(10))
        memory.take(0, 10)
        assert place(placement, "two", needing(2)) == [0]
        assert place(placement, "three", needing(13)) is None
        assert place(placement, "four", needing(12)) == [0]

    def test_empty_again_device_is_measured_again(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(4))
        placement.release("one")
        memory.take(0, 20)
        assert place(placement, "two", needing(5)) is None
        assert place(placement, "three", needing(2)) == [0]
        assert place(placement, "four", needing(3)) is None
        assert place(placement, "five", needing(2)) == [0]


class TestSeveralDevices:
    def test_all_or_none(self):
        memory = Memory(24, 24, 24)
        memory.take(1, 10)
        placement = placement_on(memory)
        assert place(placement, "three", needing(20, devices=3)) is None
        # what was refused holds nothing
        assert place(placement, "two", needing(20, devices=2)) == [0, 2]
        assert place(placement, "unknown", needing(devices=2)) is None
        placement.release("two")
        assert place(placement, "unknown", needing(devices=3)) == [0, 1, 2]

    def test_in_cuda_s_order(self):
        memory = Memory(24, 80)
        assert place(placement_on(memory), "both", needing(1, devices=2)) == [0, 1]

    def test_empty_and_shared_together(self):
        placement = placement_on(Memory(24, 24))
        place(placement, "one", needing(10))
        assert place(placement, "both", needing(14, devices=2)) == [0, 1]
        assert place(placement, "on 1", needing(10)) == [1]
        assert place(placement, "on 0", needing(1)) is None


class TestErrors:
    @pytest.mark.parametrize("devices", [0, 1])
    def test_placed_twice(self, devices):
        placement = placement_on(Memory(24, 24), max_cpu_processes=2)
        placement.try_place("one", Resources(devices=devices))
        with pytest.raises(ValueError, match="'one' has its place already"):
            placement.try_place("one", Resources(devices=devices))

    def test_released_twice(self):
        placement = placement_on(Memory(24))
        place(placement, "one", needing())
        placement.release("one")
        with pytest.raises(KeyError):
            placement.release("one")


class TestCouldEverFit:
    def test_it_could(self):
        placement = placement_on(Memory(24, 48))
        for required in (
            Resources(devices=0),
            needing(),
            needing(devices=2),
            needing(48),
            needing(24, 2),
        ):
            assert placement.could_ever_fit(required) is None

    def test_too_few_devices(self):
        said = placement_on(Memory(24)).could_ever_fit(needing(devices=2))
        assert said == "it needs 2 CUDA devices, there are 1"

    def test_too_little_memory(self):
        memory = Memory(24, 48)
        memory.take(1, 8)
        said = placement_on(memory).could_ever_fit(needing(41))
        assert said == (
            "it needs 41.0 GB on one device; free are: cuda:0 (Fake GPU) 24.0 of 24.0 GB, "
            "cuda:1 (Fake GPU) 40.0 of 48.0 GB"
        )

    def test_too_little_memory_on_one_of_several(self):
        said = placement_on(Memory(24, 48)).could_ever_fit(needing(25, devices=2))
        assert said.startswith("it needs 25.0 GB on each of 2 devices; free are: cuda:0")

    def test_this_run_s_nodes_do_not_count(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(20))
        memory.take(0, 20)
        assert placement.could_ever_fit(needing(24)) is None
        placement.release("one")
        assert placement.could_ever_fit(needing(24)) is not None


def test_on_fake_devices_shared_with_a_process(tmp_path):
    layer = FakeDevices(tmp_path)
    placement = Placement(layer.find(), layer)
    assert place(placement, "one", needing(10)) == [0]
    allocate(tmp_path, "GPU-fake-0", 10)
    assert place(placement, "two", needing(24)) == [1]
    assert place(placement, "three", needing(15)) is None
    assert place(placement, "four", needing(14)) == [0]
    assert layer.process_bytes(layer.find()[0], {os.getpid()}) == 10 * GB


RESOURCES = st.builds(
    needing,
    gb=st.none() | st.integers(min_value=0, max_value=30),
    devices=st.integers(min_value=0, max_value=4),
)


class Machine(RuleBasedStateMachine):
    """Nodes come, take up to what they require, and go; what they hold is known here alone.

    Others' processes hold ``foreign`` GB throughout, so every promise can be checked.
    """

    running = Bundle("running")

    @initialize(
        devices=st.lists(
            st.tuples(
                st.integers(min_value=1, max_value=32), st.integers(min_value=0, max_value=32)
            ),
            max_size=4,
        ),
        cpu=st.integers(min_value=1, max_value=2),
    )
    def start(self, devices, cpu):
        self.memory = Memory(*(size for size, _ in devices))
        self.capacity = [max(0, size - foreign) for size, foreign in devices]
        self.placement = placement_on(self.memory, max_cpu_processes=cpu)
        self.cpu = cpu
        self.placed = {}
        self.held = {}
        self.count = 0
        self.update()

    def update(self):
        for index, capacity in enumerate(self.capacity):
            held = sum(gb for (_, device), gb in self.held.items() if device == index)
            self.memory.free[f"GPU-{index}"] = (capacity - held) * GB

    def gb_of(self, required):
        return None if required.memory_bytes is None else required.memory_bytes // GB

    @rule(target=running, required=RESOURCES)
    def come(self, required):
        self.count += 1
        name = f"node-{self.count}"
        indices = place(self.placement, name, required)
        if indices is None:
            return multiple()
        assert len(set(indices)) == required.devices
        assert indices == sorted(indices)
        self.placed[name] = (required, indices)
        return name

    @rule(name=running, share=st.fractions(min_value=0, max_value=1))
    def take(self, name, share):
        required, indices = self.placed[name]
        for index in indices:
            gb = self.gb_of(required)
            self.held[name, index] = share * (self.capacity[index] if gb is None else gb)
        self.update()

    def leave(self, name):
        _, indices = self.placed.pop(name)
        for index in indices:
            self.held.pop((name, index), None)
        self.placement.release(name)
        self.update()

    @rule(name=consumes(running))
    def go(self, name):
        self.leave(name)

    @invariant()
    def all_have_what_they_were_promised(self):
        on_cpu = [
            required
            for required, _ in getattr(self, "placed", {}).values()
            if required.devices == 0
        ]
        assert len(on_cpu) <= getattr(self, "cpu", 0)
        for index, capacity in enumerate(getattr(self, "capacity", [])):
            needs = [self.gb_of(required) for required, on in self.placed.values() if index in on]
            if None in needs:
                assert len(needs) == 1
            elif needs:
                assert sum(needs) <= capacity

    @rule(required=RESOURCES)
    def waits_only_for_a_reason(self, required):
        """A node that must wait would not fit, and fits at the latest when all others are gone."""
        fitting = 0
        for index, capacity in enumerate(self.capacity):
            others = [self.gb_of(other) for other, on in self.placed.values() if index in on]
            wanted = self.gb_of(required)
            if not others:
                fitting += wanted is None or wanted <= capacity
            elif wanted is not None and None not in others:
                fitting += sum(others) + wanted <= capacity
        on_cpu = sum(other.devices == 0 for other, _ in self.placed.values())
        devices = self.placement.try_place("tried", required)
        fits = fitting >= required.devices if required.devices else on_cpu < self.cpu
        assert (devices is not None) == fits
        if devices is not None:
            self.placement.release("tried")

    @rule(required=RESOURCES)
    def could_ever_fit_is_true(self, required):
        """What it says holds now and later: checked in a second machine that nobody uses."""
        alone = Memory(*(device.memory_bytes // GB for device in self.memory.devices))
        for index, capacity in enumerate(self.capacity):
            alone.free[f"GPU-{index}"] = capacity * GB
        fits = placement_on(alone).try_place("tried", required) is not None
        assert (self.placement.could_ever_fit(required) is None) == fits

    def teardown(self):
        """Whatever could ever fit does so once everything else is released."""
        for name in list(getattr(self, "placed", {})):
            self.leave(name)
        for devices in range(5) if hasattr(self, "capacity") else ():
            for gb in (None, 0, 1, 8, 30):
                required = needing(gb, devices)
                placed = self.placement.try_place("last", required)
                assert (placed is None) == (self.placement.could_ever_fit(required) is not None)
                if placed is not None:
                    self.placement.release("last")


TestMachine = Machine.TestCase


@given(needs=st.lists(RESOURCES, max_size=12))
def test_queue_is_worked_off(needs):
    """Whoever could ever fit gets a turn when the others go, first come first served or not."""
    memory = Memory(24, 24, 16)
    placement = placement_on(memory)
    waiting = {
        f"node-{number}": required
        for number, required in enumerate(needs)
        if placement.could_ever_fit(required) is None
    }
    while waiting:
        started = [
            name
            for name, required in waiting.items()
            if place(placement, name, required) is not None
        ]
        assert started
        for name in started:
            del waiting[name]
            placement.release(name)


class TestNodeThatCanMakeDoWithLess:
    RESOURCES = Resources(memory_bytes=30 * GB, memory_min_bytes=18 * GB)

    def test_gets_a_smaller_device_for_itself(self, tmp_path):
        layer = FakeDevices(tmp_path, count=1, memory_bytes=24e9)
        placement = Placement(layer.find(), layer)
        assert placement.could_ever_fit(self.RESOURCES) is None
        assert placement.try_place("train", self.RESOURCES) == tuple(layer.find())
        assert placement.try_place("other", Resources(memory_bytes=1 * GB)) is None

    def test_is_refused_where_not_even_that_is_free(self, tmp_path):
        layer = FakeDevices(tmp_path, count=1, memory_bytes=16e9)
        assert "it needs 18.0 GB on one device" in Placement(layer.find(), layer).could_ever_fit(
            self.RESOURCES
        )

    def test_joins_nobody_with_less_than_its_peak(self, tmp_path):
        layer = FakeDevices(tmp_path, count=1, memory_bytes=40e9)
        placement = Placement(layer.find(), layer)
        assert placement.try_place("other", Resources(memory_bytes=15 * GB)) is not None
        assert placement.try_place("train", self.RESOURCES) is None
