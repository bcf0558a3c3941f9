"""Tests of mmh_bids.training.stream: the order is a function of the step, and what is next is read meanwhile."""

import threading
from collections import Counter

import pytest

from mmh_bids.training.stream import Ahead, ShuffledOrder


def test_each_group_is_seen_whole_before_any_of_it_again():
    order = ShuffledOrder([list("abcde"), list("xyz")])
    drawn = [order.thing(3, number) for number in range(30)]
    for group, size in (("abcde", 5), ("xyz", 3)):
        own = [thing for thing in drawn if thing in group]
        assert len(own) == 15
        for begin in range(0, 15, size):
            assert sorted(own[begin : begin + size]) == sorted(group)
    assert [order.thing(3, number) for number in reversed(range(30))] == drawn[::-1]


def test_epochs_groups_and_seeds_differ():
    order = ShuffledOrder([range(50), range(100, 150)])
    drawn = [order.thing(0, number) for number in range(200)]
    first = [thing for thing in drawn if thing < 100]
    assert first[:50] != first[50:]
    assert [thing - 100 for thing in drawn if thing >= 100] != first
    assert [order.thing(1, number) for number in range(200)] != drawn
    turns = Counter(drawn[number] < 100 for number in range(0, 200, 2))
    assert 25 < turns[True] < 75  # which of the two comes first is drawn as well


def test_what_follows_is_read_before_it_is_asked_for():
    asked, done = [], threading.Semaphore(0)

    def read(key):
        asked.append(key)
        done.release()
        return 10 * key

    ahead = Ahead(read)
    assert ahead.get([0, 1], iter(range(2, 99))) == [0, 10]
    for _ in range(4):
        assert done.acquire(timeout=10)
    assert asked == [0, 1, 2, 3] and ahead.held == 2
    assert ahead.get([2, 3], iter(range(4, 99))) == [20, 30]
    assert asked[:4] == [0, 1, 2, 3]  # not read twice
    ahead.close()
    assert asked.count(2) == 1


def test_more_threads_than_images_look_further_ahead_and_what_is_not_needed_is_dropped():
    ahead = Ahead(lambda key: key, threads=3)
    ahead.get([0], iter(range(1, 99)))
    assert ahead.held == 3
    assert ahead.get([50], iter(range(51, 99))) == [50]
    assert sorted(ahead._pending) == [51, 52, 53]
    ahead.close()
    assert Ahead(lambda key: key, threads=0).get([4, 2], iter(())) == [4, 2]


def test_an_error_is_raised_when_its_value_is_asked_for():
    def read(key):
        if key == 1:
            raise ValueError("no such thing")
        return key

    ahead = Ahead(read)
    assert ahead.get([0], iter([1])) == [0]
    with pytest.raises(ValueError, match="no such thing"):
        ahead.get([1], iter([2]))
    ahead.close()
