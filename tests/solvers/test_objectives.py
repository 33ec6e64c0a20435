"""The combined gradient against plain autograd, and the same result however the batch is cut up."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fairanon.solvers import FAMO, FairGrad, LinearScalarization, ScaleInvariant, fairgrad
from fairanon.solvers.objectives import ObjectiveGradients, Part

INPUTS, OUTPUTS, SAMPLES = 6, 4, 8
MODES = ("full", "last_block", "prediction")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, OUTPUTS))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    target = torch.randn(SAMPLES, OUTPUTS, generator=generator)
    has = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]).float()
    return x, target, has


REGIONS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0]]).float()


def part(module, rows):
    x, target, has = (value[rows] for value in data())

    def sums(prediction):
        return (((prediction - target) ** 2) @ REGIONS.T / REGIONS.sum(1) * has).sum(0)

    return Part(lambda: module(x), sums, has.sum(0))


def objective_gradients(module, solver=None, **settings):
    if settings.get("gram") == "last_block":
        settings["last_block"] = module[2].parameters()
    return ObjectiveGradients(module.parameters(), solver or FairGrad(), **settings)


def gradient(module):
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def reference():
    """Separate gradients of the mean losses, (3, P), and the losses."""
    module = network()
    x, target, has = data()
    losses = (((module(x) - target) ** 2) @ REGIONS.T / REGIONS.sum(1) * has).sum(0) / has.sum(0)
    rows = [torch.autograd.grad(loss, list(module.parameters()), retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]), losses.detach()


def test_full_is_the_published_procedure():
    module = network()
    update = objective_gradients(module).backward([part(module, slice(None))], step=0)
    rows, losses = reference()
    weights = fairgrad(rows.double() @ rows.double().T).values
    torch.testing.assert_close(update.losses.float(), losses)
    torch.testing.assert_close(update.weights, weights, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(module), weights.float() @ rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(update.norm.float(), gradient(module).norm(), rtol=1e-4, atol=0)


def test_grams_of_the_last_block_and_of_the_prediction():
    rows, _ = reference()
    module = network()
    update = objective_gradients(module, gram="last_block").backward([part(module, slice(None))], step=0)
    last = rows[:, -(5 * OUTPUTS + OUTPUTS) :].double()
    torch.testing.assert_close(update.weights, fairgrad(last @ last.T).values, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(module), update.weights.float() @ rows, rtol=1e-4, atol=1e-6)

    update = objective_gradients(module, gram="prediction").backward([part(module, slice(None))], step=0)
    x, target, has = data()
    slope = 2 * (network()(x).detach() - target)[None] * (REGIONS / REGIONS.sum(1, keepdim=True))[:, None]
    slope = (slope * (has / has.sum(0)).T[..., None]).flatten(1).double()
    torch.testing.assert_close(update.weights, fairgrad(slope @ slope.T).values, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient(module), update.weights.float() @ rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", [FairGrad, LinearScalarization, ScaleInvariant, FAMO])
@pytest.mark.parametrize("gram", MODES)
def test_micro_batches_change_nothing(gram, solver):
    found = []
    for cuts in ([slice(None)], [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]):
        module = network()
        update = objective_gradients(module, solver(), gram=gram).backward([part(module, c) for c in cuts], step=0)
        found.append((update.weights.float(), update.losses.float(), gradient(module)))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-6)


def rank_gradient(rank, gram, path, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    module = network()
    rows = slice(0, 4) if rank == 0 else slice(4, 8)
    update = objective_gradients(module, gram=gram).backward([part(module, rows)], step=0)
    queue.put((rank, update.weights.tolist(), gradient(module).tolist()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("gram", MODES)
def test_two_ranks_equal_one(gram, tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank_gradient, args=(k, gram, tmp_path / "store", queue)) for k in (0, 1)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    module = network()
    update = objective_gradients(module, gram=gram).backward([part(module, slice(None))], step=0)
    for _, weights, values in found:
        torch.testing.assert_close(torch.tensor(weights).double(), update.weights, rtol=1e-4, atol=0)
        torch.testing.assert_close(torch.tensor(values), gradient(module), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gram", MODES)
def test_loss_scaling_changes_nothing_but_the_scale(gram):
    found = []
    for scale in (1.0, 65536.0):
        module = network()
        update = objective_gradients(module, gram=gram, clip=0.1).backward(
            [part(module, slice(None))], step=0, scale=torch.tensor(scale)
        )
        found.append((update.weights, gradient(module) / scale))
        torch.testing.assert_close(gradient(module).norm() / scale, torch.tensor(0.1))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


def test_an_overflow_reaches_the_scaler_and_not_the_solver():
    module = network()
    gradients = objective_gradients(module, every=3)
    gradients.backward([part(module, slice(None))], step=0)
    before = gradients.stale
    gradients.backward([part(module, slice(None))], step=3, scale=torch.tensor(float("inf")))
    assert not gradient(module).isfinite().all() and torch.equal(gradients.stale, before)


def test_stale_weights_are_those_of_the_last_solution():
    module = network()
    gradients = objective_gradients(module, every=2)
    first = gradients.backward([part(module, slice(None))], step=0).weights
    with torch.no_grad():
        module[0].weight += 0.5
    stale = gradients.backward([part(module, slice(None))], step=1).weights
    restored = objective_gradients(module, every=2)
    restored.load_state_dict(gradients.state_dict())
    again = restored.backward([part(module, slice(None))], step=1).weights
    fresh = gradients.backward([part(module, slice(None))], step=2).weights
    assert torch.equal(first, stale) and torch.equal(stale, again) and not torch.equal(first, fresh)


def test_an_objective_nobody_has_is_left_out_and_none_at_all_skips_the_step():
    module = network()
    update = objective_gradients(module).backward([part(module, slice(5, 8))], step=0)
    assert update.active.tolist() == [True, True, False] and update.weights[2] == 0 and not update.skipped
    nothing = Part(lambda: module(torch.zeros(1, INPUTS)), lambda p: p.sum() * torch.zeros(3), torch.zeros(3))
    assert objective_gradients(module).backward([nothing], step=0).skipped


def test_wrong_settings():
    with pytest.raises(ValueError, match="last_block needs trainable parameters"):
        ObjectiveGradients(network().parameters(), FairGrad(), gram="last_block")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        ObjectiveGradients(network().parameters(), FairGrad(), every=0)
