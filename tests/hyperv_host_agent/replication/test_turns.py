import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from hyperv_host_agent.replication.sending import AskTurn
from hyperv_host_agent.replication.turns import MOST, Given, Turns

_numbers = itertools.count(1)


def cycle(deadline: float, *, urgent: bool = False) -> AskTurn:
    return AskTurn(next(_numbers), deadline, 1.0, copy=False, urgent=urgent)


def copy() -> AskTurn:
    return AskTurn(next(_numbers), 0.0, 3600.0, copy=True)


def vms(given_: list[Given]) -> list[str]:
    return [one.vm for one in given_]


def test_the_earliest_deadline_goes_first():
    turns = Turns(cycles=1, copies=1)
    assert vms(turns.ask("a", cycle(10), 0)) == ["a"]
    for vm, deadline in (("b", 30), ("c", 20), ("d", 25)):
        assert turns.ask(vm, cycle(deadline), 0) == []
    order = []
    for vm in ("a", "c", "d"):
        order += vms(turns.end(vm, 1))
    assert order == ["c", "d", "b"]


def test_a_cycle_that_was_asked_for_now_goes_before_all_others():
    turns = Turns(cycles=1, copies=1)
    turns.ask("a", cycle(10), 0)
    turns.ask("b", cycle(11), 0)
    turns.ask("c", cycle(1e9, urgent=True), 5)
    assert vms(turns.end("a", 6)) == ["c"]


def test_a_waiting_cycle_that_becomes_urgent_goes_first():
    turns = Turns(cycles=1, copies=1)
    turns.ask("a", cycle(10), 0)
    turns.ask("b", cycle(11), 0)
    turns.ask("c", cycle(90), 0)
    again = cycle(90, urgent=True)
    assert turns.ask("c", again, 1) == []
    assert turns.end("a", 2) == [Given("c", again.turn)]


def test_copies_have_places_of_their_own_and_no_cycle_waits_for_one():
    turns = Turns(cycles=1, copies=2)
    assert vms([*turns.ask("a", copy(), 0), *turns.ask("b", copy(), 0), *turns.ask("c", copy(), 0)]) == ["a", "b"]
    assert vms(turns.ask("d", cycle(1), 0)) == ["d"]
    assert vms(turns.end("a", 1)) == ["c"]


def test_a_sender_that_is_gone_waits_no_longer_and_holds_nothing():
    turns = Turns(cycles=1, copies=1)
    turns.ask("a", cycle(1), 0)
    turns.ask("b", cycle(2), 0)
    turns.end("b", 0)
    assert turns.end("a", 0) == []
    assert turns.waiting == 0
    assert turns.end("a", 0) == []


def test_a_cycle_that_turns_out_to_be_a_copy_frees_its_place():
    turns = Turns(cycles=1, copies=1)
    turns.ask("a", cycle(1), 0)
    turns.ask("b", cycle(2), 0)
    assert vms(turns.ask("a", copy(), 1)) == ["b", "a"] or turns.waiting == 0


def busy(turns: Turns, rate: list[float], seconds: int) -> Iterator[int]:
    """Forty VMs that always want a turn, on a host that moves rate[places] bytes a second; places over time."""
    moved, now = 0.0, 0.0
    for vm in range(40):
        turns.ask(f"vm-{vm}", cycle(vm), now)
    for _ in range(seconds):
        now += 1
        moved += rate[min(turns.concurrency, len(rate) - 1)]
        turns.measure(int(moved), now)
        yield turns.concurrency


def test_places_are_added_while_they_move_more_and_no_longer():
    rate = [0.0, 100e6, 200e6, 300e6, 400e6, 410e6]
    places = list(busy(Turns(cycles=0, copies=1), rate, 300))
    assert set(places[50:]) <= {3, 4, 5}
    assert max(map(places[50:].count, {3, 4, 5})) == places[50:].count(4)


def test_places_that_do_not_help_are_given_up():
    turns = Turns(cycles=0, copies=1)
    list(busy(turns, [0.0, *(100e6 * n for n in range(1, 13))], 60))
    assert turns.concurrency > 8
    places = list(busy(turns, [0.0, 100e6, 100e6], 400))
    assert min(places) <= 2


def test_an_idle_host_learns_nothing():
    turns = Turns(cycles=0, copies=1)
    before = turns.concurrency
    for now in range(100):
        turns.measure(now * 1000, now)
    assert turns.concurrency == before


def test_a_set_concurrency_is_kept():
    assert set(busy(Turns(cycles=3, copies=1), [0.0, *(100e6 * n for n in range(1, 13))], 50)) == {3}


asked = st.tuples(
    st.sampled_from(["ask", "ask", "copy", "end", "measure", "urgent"]), st.integers(0, 7), st.floats(0, 100)
)


@given(st.integers(0, 4), st.integers(1, 3), st.lists(asked, max_size=80))
def test_never_more_run_than_there_are_places_and_every_turn_is_that_of_the_last_question(cycles, copies, events):
    turns = Turns(cycles=cycles, copies=copies)
    running: dict[str, bool] = {}
    last: dict[str, AskTurn] = {}
    for number, (what, vm_number, value) in enumerate(events):
        vm, now = f"vm-{vm_number}", float(number)
        match what:
            case "end":
                running.pop(vm, None)
                last.pop(vm, None)
                given_ = turns.end(vm, now)
            case "measure":
                given_ = turns.measure(int(value * number), now)
            case _:
                running.pop(vm, None)
                last[vm] = copy() if what == "copy" else cycle(value, urgent=what == "urgent")
                given_ = turns.ask(vm, last[vm], now)
        for one in given_:
            assert last[one.vm].turn == one.turn
            assert one.vm not in running
            running[one.vm] = last[one.vm].copy
            assert sum(not copies_ for copies_ in running.values()) <= min(turns.concurrency, MOST)
            assert sum(running.values()) <= copies
        # No place is free while somebody waits for one.
        waits = [order for vm, order in last.items() if vm not in running]
        if any(not order.copy for order in waits):
            assert sum(not copies_ for copies_ in running.values()) >= turns.concurrency
        if any(order.copy for order in waits):
            assert sum(running.values()) >= copies


@settings(max_examples=50)
@given(st.integers(1, 3), st.lists(st.floats(0.5, 900.0), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_nobody_starves(cycles, frequencies, chance):
    """VMs ask again at once, forever; some always as urgent. Each has its turn again and again."""
    turns = Turns(cycles=cycles, copies=1)
    had = dict.fromkeys(range(len(frequencies)), 0)
    running: list[str] = []

    def ask(vm: int, now: float) -> None:
        order = cycle(now + frequencies[vm], urgent=vm % 3 == 0 and len(frequencies) > cycles)
        took(turns.ask(f"vm-{vm}", order, now))

    def took(given_: list[Given]) -> None:
        for one in given_:
            running.append(one.vm)
            had[int(one.vm.split("-")[1])] += 1

    for vm in had:
        ask(vm, 0.0)
    for step in range(600):
        now = 10.0 * (step + 1)
        done = running.pop(chance.randrange(len(running)))
        took(turns.end(done, now))
        ask(int(done.split("-")[1]), now)
    assert min(had.values()) >= 3
