"""Tests of mmh_bids.training.share: what is drawn depends on the place in the batch, not on the process."""

import numpy as np
import pytest
import torch

from mmh_bids.errors import UsageError
from mmh_bids.training.share import Share, require_even


def drawn(share, total=8):
    return [(item.number, item.rng.random(), torch.rand(1, generator=item.noise).item()) for item in share.items(total)]


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_shares_joined_in_order_are_the_batch(world, parts):
    whole = drawn(Share(5, 7))
    joined = []
    for part in range(parts):
        for rank in range(world):
            joined += drawn(Share(5, 7, rank, world, part, parts))
    assert joined == whole
    assert len({one[1] for one in whole}) == len({one[2] for one in whole}) == 8


def test_seeds_steps_and_streams_differ_and_the_shares_own_numbers_do_not():
    first = drawn(Share(5, 7))
    assert drawn(Share(5, 8))[0][1:] != first[0][1:] != drawn(Share(6, 7))[0][1:]
    assert Share(5, 7).item(0, 8, stream=1).rng.random() != first[0][1]
    assert Share(5, 7, 1, 2).random() == Share(5, 7).random() == np.random.default_rng([5, 7]).random()


def test_uneven_shares_are_refused_for_items_and_cover_numbers():
    assert [number for place in range(4) for number in Share(0, 0, place, 4).numbers(6)] == list(range(6))
    assert [len(Share(0, 0, place, 4).numbers(3)) for place in range(4)].count(0) == 1
    with pytest.raises(UsageError, match=r"--batch 6: .* multiple of 4$"):
        Share(0, 0, 1, 4).items(6)
    with pytest.raises(UsageError, match=r"--batch 4: .* multiple of 8 \(2 scans of each person\)"):
        require_even(4, 4, 2, "scans of each person")
    require_even(3, 1, 2)


def test_what_a_process_works_on_next():
    share = Share(1, 4, rank=1, world=2, part=0, parts=2)
    following = share.following()
    places = [(one.step, one.part, one.rank, list(one.numbers(8))) for one in (next(following) for _ in range(3))]
    assert places == [(4, 1, 1, [6, 7]), (5, 0, 1, [2, 3]), (5, 1, 1, [6, 7])]
    assert (share.is_first, share.is_last) == (True, False)


def test_rows_are_gathered_with_their_own_place():
    rows = torch.arange(4.0).reshape(2, 2)
    together, begin = Share(0, 0, rank=1, world=2, gather=lambda own: torch.cat([own - 9, own])).gather(rows)
    assert torch.equal(together[begin : begin + 2], rows)
    assert Share(0, 0).gather(rows) == (rows, 0)
