import torch

from fairanon.seeding import keyed_randint, keyed_randn, keyed_seed, keyed_uniform, uniform_rows


def test_draws_belong_to_their_key():
    keys = [(0, "a", n) for n in range(4)]
    noise = keyed_randn(keys, (2, 3))
    assert torch.equal(noise[2], keyed_randn(keys[2:3], (2, 3))[0])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(keyed_randint(keys, 1000)[1:2], keyed_randint(keys[1:2], 1000))
    assert torch.equal(keyed_uniform(keys)[3:], keyed_uniform(keys[3:]))
    assert len({keyed_seed(0, "1"), keyed_seed(0, 1), keyed_seed(1, 0), keyed_seed("01")}) == 4


def test_many_keys_look_random():
    keys = [("x", n) for n in range(4000)]
    noise, numbers = keyed_randn(keys, (1,)), keyed_uniform(keys)
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.04
    assert abs(numbers.mean() - 0.5) < 0.02
    rows = uniform_rows(1, range(4000), 2)
    assert abs(torch.corrcoef(rows.T)[0, 1]) < 0.05 and abs(rows.mean() - 0.5) < 0.02
    assert torch.equal(uniform_rows(1, [7], 5)[:, :2], rows[7:8])
