import pytest
from fake_devices import GB
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
    """The part of the hardware that placement uses; sizes in GB."""

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


LESS = Resources(memory_bytes=30 * GB, memory_min_bytes=18 * GB)


def placement_on(memory):
    return Placement(memory.devices, memory)


def place(placement, name, required):
    devices = placement.try_place(name, required)
    return None if devices is None else [device.index for device in devices]


CPU, ANY = needing(devices=0), needing()
# what the state machine below does not see: preferences, and memory of others that changes;
# sizes of the devices in GB, and steps: ("take", device, GB) by others, ("release", node), or a
# node, what it requires, and the devices that it gets, None if it must wait
SCENARIOS = {
    "one node at a time on the CPU": (
        (24,),
        [("one", CPU, []), ("two", CPU, None), ("three", ANY, [0])],
        [("release", "one"), ("two", CPU, [])],
    ),
    "unknown memory: device with the most room": (
        (24, 24, 24),
        [("take", 0, 20), ("unknown", ANY, [1])],
    ),
    "empty devices come first": (
        (24, 24),
        [("one", needing(1), [0]), ("two", needing(1), [1]), ("three", needing(1), [0])],
    ),
    "an empty device even with less room": (
        (80, 24),
        [("one", needing(1), [0]), ("two", needing(1), [1])],
    ),
    "then the device with most room": (
        (24, 24),
        [("one", needing(10), [0]), ("two", needing(5), [1]), ("three", needing(2), [1])],
    ),
    "others that come later": (
        (24,),
        [("one", needing(10), [0]), ("take", 0, 10 + 9)],
        [("two", needing(6), None), ("three", needing(5), [0])],
    ),
    "a node that uses more than it declared": (
        (24,),
        [("one", needing(4), [0]), ("take", 0, 20)],
        [("two", needing(5), None), ("three", needing(4), [0])],
    ),
    "others that have gone": (
        (24,),
        [("take", 0, 20), ("one", needing(4), [0]), ("take", 0, -20)],
        [("two", needing(21), None), ("three", needing(20), [0])],
    ),
    "a device that is empty again is measured again": (
        (24,),
        [("one", needing(4), [0]), ("release", "one"), ("take", 0, 20)],
        [("two", needing(5), None), ("three", needing(2), [0])],
        [("four", needing(3), None), ("five", needing(2), [0])],
    ),
    "several devices: all or none": (
        (24, 24, 24),
        # a refused node holds nothing
        [("take", 1, 10), ("three", needing(20, 3), None), ("two", needing(20, 2), [0, 2])],
        [("unknown", needing(devices=2), None), ("release", "two")],
        [("unknown", needing(devices=3), [0, 1, 2])],
    ),
    "several devices: in CUDA's order": ((24, 80), [("both", needing(1, 2), [0, 1])]),
    "several devices: empty and shared": (
        (24, 24),
        [("one", needing(10), [0]), ("both", needing(14, 2), [0, 1])],
        [("on 1", needing(10), [1]), ("on 0", needing(1), None)],
    ),
    "a minimum suffices on a device that is not shared": (
        (24,),
        [("train", LESS, [0]), ("other", needing(1), None)],
    ),
    "a node joins others only with its peak": (
        (40,),
        [("other", needing(15), [0]), ("t", LESS, None)],
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    sizes, *lines = SCENARIOS[name]
    memory = Memory(*sizes)
    placement = placement_on(memory)
    for step in (step for line in lines for step in line):
        match step:
            case ("take", index, gb):
                memory.take(index, gb)
            case ("release", node):
                placement.release(node)
            case (node, required, expected):
                assert place(placement, node, required) == expected, node


@pytest.mark.parametrize("devices", [0, 1])
def test_placed_or_released_twice(devices):
    placement = placement_on(Memory(24, 24))
    placement.try_place("one", Resources(devices=devices))
    with pytest.raises(ValueError, match="'one' is placed already"):
        placement.try_place("one", Resources(devices=devices))
    placement.release("one")
    with pytest.raises(KeyError):
        placement.release("one")


class TestWhyNeverFits:
    def test_fits(self):
        placement = placement_on(Memory(24, 48))
        for required in (CPU, ANY, needing(devices=2), needing(48), needing(24, 2)):
            assert placement.why_never_fits(required) is None
        assert placement_on(Memory(24)).why_never_fits(LESS) is None

    @pytest.mark.parametrize(
        ("sizes", "required", "reason"),
        [
            ((24,), needing(devices=2), "it needs 2 CUDA devices, there are 1"),
            (
                (24, 48),
                needing(41),
                "it needs 41.0 GB on one device; free are: cuda:0 (Fake GPU) 16.0 of 24.0 GB, "
                "cuda:1 (Fake GPU) 40.0 of 48.0 GB",
            ),
            ((24, 48), needing(25, devices=2), "it needs 25.0 GB on each of 2 devices; free are: "),
            ((24,), LESS, "it needs 18.0 GB on one device; free are: "),
        ],
    )
    def test_reason(self, sizes, required, reason):
        memory = Memory(*sizes)
        for index in range(len(sizes)):
            memory.take(index, 8)
        assert placement_on(memory).why_never_fits(required).startswith(reason)

    def test_this_run_s_nodes_do_not_count(self):
        memory = Memory(24)
        placement = placement_on(memory)
        place(placement, "one", needing(20))
        memory.take(0, 20)
        assert placement.why_never_fits(needing(24)) is None
        placement.release("one")
        assert placement.why_never_fits(needing(24)) is not None


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
        )
    )
    def start(self, devices):
        self.memory = Memory(*(size for size, _ in devices))
        self.capacity = [max(0, size - foreign) for size, foreign in devices]
        self.placement = placement_on(self.memory)
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

    @rule(name=consumes(running))
    def go(self, name):
        _, indices = self.placed.pop(name)
        for index in indices:
            self.held.pop((name, index), None)
        self.placement.release(name)
        self.update()

    @invariant()
    def all_have_what_they_were_promised(self):
        on_cpu = [
            required
            for required, _ in getattr(self, "placed", {}).values()
            if required.devices == 0
        ]
        assert len(on_cpu) <= 1
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
        fits = fitting >= required.devices if required.devices else on_cpu < 1
        assert (devices is not None) == fits
        if devices is not None:
            self.placement.release("tried")

    @rule(required=RESOURCES)
    def why_never_fits_is_true(self, required):
        """It holds now and later, which a second, unused machine shows."""
        alone = Memory(*(device.memory_bytes // GB for device in self.memory.devices))
        for index, capacity in enumerate(self.capacity):
            alone.free[f"GPU-{index}"] = capacity * GB
        fits = placement_on(alone).try_place("tried", required) is not None
        assert (self.placement.why_never_fits(required) is None) == fits


TestMachine = Machine.TestCase
