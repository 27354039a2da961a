"""The queues of one weight against sorted lists; the orders built on them have their own tests."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "withdraw", "pick", "pick", "pick"]),
        st.integers(0, 11),
        st.integers(1, 4),
        st.integers(-3, 3) | st.integers(-(2**90), 2**90),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_queues_equal_sorted_lists(kernels, reference, steps):
    one, other = kernels.weight_groups.Queues(12), reference.weight_groups.Queues(12)
    members = set()
    for step, i, weight, number in steps:
        if step == "enter" and i not in members:
            members.add(i)
            one.enter(i, weight, number)
            other.enter(i, weight, number)
        elif step == "withdraw" and i in members:
            members.remove(i)
            assert one.withdraw(i) == other.withdraw(i)
        else:
            most = 1 + abs(number) % 7
            served = one.pick_of(weight, most)
            # The kernel may stop early; never with nobody, where there is somebody.
            assert served == other.pick_of(weight, len(served))
            assert bool(served) == (other.leader(weight) is not None)
            assert len(served) <= most
        for w in range(1, 5):
            assert one.leader(w) == other.leader(w)


def test_a_queue_becomes_a_ring_again(impl):
    """Who came out of order is behind the tail after one pick: equals come in one go again."""
    queues = impl.weight_groups.Queues(9)
    for i, key in enumerate([0, 0, 0, 0, 0, 0, -2, -1, 0]):
        queues.enter(i, 7, key)
    served = []
    while len(served) < 12:
        served += queues.pick_of(7, 1)
    assert served == [6, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert queues.pick_of(7, 64) == list(range(9))


def test_groups_come_and_go(kernels, reference):
    """More weights than there is room for at first, and gaps in the hash table."""
    one, other = kernels.weight_groups.Queues(300), reference.weight_groups.Queues(300)
    for queues in (one, other):
        for i in range(300):
            queues.enter(i, 1 + i * 2**50, i)
        for i in range(0, 300, 3):
            assert queues.withdraw(i) == i
    for i in range(300):
        assert one.leader(1 + i * 2**50) == other.leader(1 + i * 2**50) == (i if i % 3 else None)


@pytest.mark.parametrize("i", [-1, 3, 10**9])
def test_who_is_nobody_is_refused(impl, i):
    queues = impl.weight_groups.Queues(3)
    queues.enter(0, 1, 0)
    for call in (lambda: queues.enter(i, 1, 0), lambda: queues.withdraw(i)):
        with pytest.raises(ValueError, match="i must be"):
            call()
    with pytest.raises(ValueError, match="out of"):
        queues.enter(0, 1, 0)
    with pytest.raises(ValueError, match="weight"):
        queues.enter(1, 0, 0)
    with pytest.raises(ValueError, match="in the"):
        queues.withdraw(1)
