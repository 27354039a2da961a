"""What is believed of discovery, and when."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota import Instance, Result, UpdatePolicy
from rota.discovery.stabilizer import Stabilizer

AT_ONCE = UpdatePolicy(empty_grace=0, debounce=0)


def listed(*names):
    return Result(True, "users", [Instance(name) for name in names])


def names(result):
    return [instance.address for instance in result.instances]


def test_a_change_after_a_quiet_time_is_believed_at_once():
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(debounce=0.1))
    assert stabilizer.due() is None
    assert stabilizer.release(5) is None
    said = listed("a", "b")
    stabilizer.offer(said, 5)
    assert stabilizer.due() <= 5
    assert stabilizer.release(5) is said
    assert stabilizer.believed is said
    assert stabilizer.due() is None


def test_a_burst_is_two_changes():
    """The first at once, and all others together."""
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(debounce=0.1))
    released = []
    for k in range(50):
        now = 5 + k / 1000
        stabilizer.offer(listed("a", f"b{k}"), now)
        released.append(stabilizer.release(now))
    assert [r is None for r in released] == [False] + 49 * [True]
    assert stabilizer.due() == pytest.approx(5.1)
    assert stabilizer.release(5.0999) is None
    assert names(stabilizer.release(stabilizer.due())) == ["a", "b49"]


def test_an_empty_list_is_believed_when_it_was_said_for_long_enough():
    """Kitex believes it at once; Kratos never."""
    stabilizer = Stabilizer(listed("a", "b"), UpdatePolicy(empty_grace=30))
    for now in (0, 5, 10, 29.9):
        stabilizer.offer(listed(), now)
        assert stabilizer.due() == 30
        assert stabilizer.release(now) is None
        assert names(stabilizer.believed) == ["a", "b"]
    assert names(stabilizer.release(30)) == []
    assert stabilizer.due() is None
    # Once there is nobody, nobody is no news, and somebody is.
    stabilizer.offer(listed(), 31)
    assert stabilizer.release(31) == listed()
    stabilizer.offer(listed("c"), 32)
    assert names(stabilizer.release(32)) == ["c"]


def test_an_empty_list_that_passes_was_never_there():
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(empty_grace=30))
    stabilizer.offer(listed(), 0)
    assert stabilizer.release(29) is None
    stabilizer.offer(listed("a", "b"), 29)
    assert names(stabilizer.release(29)) == ["a", "b"]
    stabilizer.offer(listed(), 40)  # the time is counted anew
    assert stabilizer.due() == 70


def test_never_believed():
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(empty_grace=math.inf))
    stabilizer.offer(listed(), 0)
    assert stabilizer.due() is None
    assert stabilizer.release(1e12) is None


def test_what_was_said_last_of_somebody_is_believed_while_an_empty_list_is_held_back():
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(empty_grace=30, debounce=1))
    stabilizer.offer(listed("a", "b"), 0)
    stabilizer.release(0)
    stabilizer.offer(listed("b", "c"), 0.1)
    stabilizer.offer(listed(), 0.2)
    assert stabilizer.due() == 1
    assert names(stabilizer.release(1)) == ["b", "c"]
    assert stabilizer.due() == 30.2


def test_no_more_than_a_share_leaves_in_a_step():
    policy = UpdatePolicy(max_removed=0.3, step=5, debounce=0)
    stabilizer = Stabilizer(listed(*"abcdefghij"), policy)
    stabilizer.offer(listed("a", "x"), 0)
    assert sorted(names(stabilizer.release(0))) == [*"aefghij", "x"]
    assert stabilizer.due() == 5
    # Who comes meanwhile does not wait, and who would leave does.
    stabilizer.offer(listed("a", "x", "y"), 1)
    assert sorted(names(stabilizer.release(1))) == [*"aefghij", "x", "y"]
    assert stabilizer.due() == 5
    assert stabilizer.release(4.9) is None
    assert len(names(stabilizer.release(5))) == 9 - 2
    left = []
    while (due := stabilizer.due()) is not None:
        left.append((due, len(names(stabilizer.release(due)))))
    assert left == [(10, 5), (15, 4), (20, 3)]
    assert names(stabilizer.believed) == ["a", "x", "y"]


def test_who_is_back_has_never_left():
    policy = UpdatePolicy(max_removed=0.5, step=5, debounce=0)
    stabilizer = Stabilizer(listed(*"abcd"), policy)
    stabilizer.offer(listed("a"), 0)
    assert len(names(stabilizer.release(0))) == 2
    whole = listed(*"abcd")
    stabilizer.offer(whole, 1)
    assert stabilizer.release(1) is whole
    assert stabilizer.due() is None


def test_an_empty_list_goes_by_steps_too():
    policy = UpdatePolicy(empty_grace=30, max_removed=0.5, step=5, debounce=0)
    stabilizer = Stabilizer(listed(*"abcd"), policy)
    stabilizer.offer(listed(), 0)
    times = []
    while (due := stabilizer.due()) is not None:
        times.append((due, len(names(stabilizer.release(due)))))
    assert times == [(30, 2), (35, 1), (40, 0)]


@given(
    grace=st.integers(0, 5),
    debounce=st.integers(0, 3),
    share=st.none() | st.sampled_from([0.01, 0.3, 0.5, 1.0]),
    said=st.lists(st.tuples(st.integers(0, 4), st.frozensets(st.integers(0, 9))), max_size=30),
)
def test_any_story_ends_with_what_was_said_last(grace, debounce, share, said):
    policy = UpdatePolicy(empty_grace=grace, debounce=debounce, max_removed=share, step=2)
    before = listed(*map(str, range(10)))
    stabilizer = Stabilizer(before, policy)
    now, last_time = 0, -math.inf
    removed_at = []

    def release(now):
        nonlocal before, last_time
        due = stabilizer.due()
        result = stabilizer.release(now)
        # What `due` says is what happens.
        assert (result is not None) == (due is not None and due <= now)
        if result is None:
            return
        assert now - last_time >= debounce
        last_time = now
        gone = set(names(before)) - set(names(result))
        if share is not None and gone:
            assert len(gone) <= max(1, share * len(before.instances))
            assert not removed_at or now - removed_at[-1] >= 2
            removed_at.append(now)
        before = result

    for wait, members in said:
        for _ in range(wait):
            now += 1
            release(now)
        stabilizer.offer(listed(*map(str, sorted(members))), now)
        release(now)
    for _ in range(100):
        if (due := stabilizer.due()) is None:
            break
        now = max(now, due)
        release(now)
    assert stabilizer.due() is None
    if said:
        assert sorted(names(stabilizer.believed)) == sorted(map(str, said[-1][1]))


@given(
    said=st.lists(
        st.tuples(st.integers(0, 40), st.booleans()),
        max_size=40,
    )
)
def test_nobody_is_believed_only_after_the_grace(said):
    stabilizer = Stabilizer(listed("a"), UpdatePolicy(empty_grace=30, debounce=0))
    now, empty_for = 0, 0
    for wait, is_empty in said:
        for _ in range(wait):
            now += 1
            empty_for += 1
            stabilizer.release(now)
            if empty_for < 30:
                assert stabilizer.believed.instances
        stabilizer.offer(listed() if is_empty else listed("a"), now)
        stabilizer.release(now)
        if not is_empty:
            empty_for = -math.inf
            assert stabilizer.believed.instances
        elif empty_for == -math.inf:
            empty_for = 0


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"empty_grace": -1}, ValueError, "empty_grace must be a finite number of seconds >= 0"),
        ({"empty_grace": math.nan}, ValueError, "empty_grace must be a finite number of seconds"),
        ({"empty_grace": "1"}, TypeError, "empty_grace must be a number of seconds, got '1'"),
        ({"step": 0}, ValueError, "step must be in"),
        ({"step": math.inf}, ValueError, "step must be a finite number of seconds >= 0, got inf"),
        ({"debounce": math.inf}, ValueError, "debounce must be a finite number of seconds >= 0"),
        ({"debounce": 10**400}, ValueError, "debounce must be a finite number of seconds >= 0"),
        ({"debounce": []}, TypeError, r"debounce must be a number of seconds, got \[\]"),
        ({"max_removed": 0}, ValueError, r"max_removed must be in \(0, 1\], got 0"),
        ({"max_removed": 1.5}, ValueError, r"max_removed must be in \(0, 1\], got 1.5"),
        ({"max_removed": "1"}, TypeError, "max_removed must be a number or None, got '1'"),
    ],
)
def test_policies_of_no_use_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        UpdatePolicy(**options)
