import numpy as np
import torch

from fairanon.seeding import _WORDS, KeyedOrder, keyed_randint, keyed_randn, keyed_uniform, uniform_rows


def test_draws_belong_to_their_key():
    keys = [(0, "a", n) for n in range(4)]
    noise = keyed_randn(keys, (2, 3))
    assert torch.equal(noise[2], keyed_randn(keys[2:3], (2, 3))[0])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(keyed_randint(keys, 1000)[1:2], keyed_randint(keys[1:2], 1000))
    assert torch.equal(keyed_uniform(keys)[3:], keyed_uniform(keys[3:]))
    kinds = [(0, "1"), (0, 1), (1, 0), ("01",)]
    assert len({float(value) for value in keyed_uniform(kinds)}) == 4


def test_a_key_has_the_whole_state_of_its_generator():
    """`manual_seed` takes 32 bits: two of 100,000 keys would share their noise."""
    numbers = np.random.RandomState(5489).get_state()[1]
    words = torch.Generator().manual_seed(5489).get_state().numpy()[_WORDS].view(np.uint64)
    assert (words == numbers).all(), "torch keeps its state elsewhere now"
    firsts = {tuple(keyed_randn([(n,)], (2,))[0].tolist()) for n in range(200_000)}
    assert len(firsts) == 200_000


def test_many_keys_look_random():
    keys = [("x", n) for n in range(4000)]
    noise, numbers = keyed_randn(keys, (1,)), keyed_uniform(keys)
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.04
    assert abs(numbers.mean() - 0.5) < 0.02
    rows = uniform_rows(1, range(4000), 2)
    assert abs(torch.corrcoef(rows.T)[0, 1]) < 0.05 and abs(rows.mean() - 0.5) < 0.02
    assert torch.equal(uniform_rows(1, [7], 5)[:, :2], rows[7:8])


def test_an_order_that_is_not_stored_has_every_number_once():
    for size in (*range(1, 70), 1000, 4097):
        order = KeyedOrder(size, "pass", size)
        assert sorted(order) == list(range(size)) and len(order) == size
    assert list(KeyedOrder(1000, "pass", 1)) != list(KeyedOrder(1000, "pass", 2))
    assert KeyedOrder(1000, "a")[3:6] == [KeyedOrder(1000, "a")[k] for k in (3, 4, 5)]
    assert KeyedOrder(10**12, "a")[-1] == KeyedOrder(10**12, "a")[10**12 - 1] < 10**12


def test_an_order_that_is_not_stored_looks_random():
    """Where number 0, its neighbour and the distance of the two come to lie, over 4,000 keys: uniform by chi squared."""
    from scipy.stats import chisquare

    size, keys = 23, range(4000)
    orders = np.array([list(KeyedOrder(size, "pass", key)) for key in keys])
    places = orders.argsort(1)
    for found in (
        places[:, 0],
        places[:, 22],
        (places[:, 1] - places[:, 0]) % size,
        (orders[:, 7] - orders[:, 6]) % size,
    ):
        counts = np.bincount(found, minlength=size)
        apart = counts[1:] if counts[0] == 0 else counts  # a number is not at two places
        assert chisquare(apart).pvalue > 1e-4
    large = np.array(KeyedOrder(10**9, "pass", 0)[:20_000])
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.03 and abs(large.mean() / 10**9 - 0.5) < 0.01
    assert chisquare(np.bincount(large // (10**9 // 50), minlength=50)[:50]).pvalue > 1e-4
