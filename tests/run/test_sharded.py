"""What trains is laid over two devices, and everything is as on one."""

import os

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from fairanon.backbones import StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.config.experiments import UserError
from fairanon.methods import PairwisePreference
from fairanon.run.sharded import PutTogether, Sharded
from tests.methods.common import trained, trainer, two_ranks
from tests.methods.test_fairhuman import method as fairhuman
from tests.methods.test_id2face import method as id2face
from tests.methods.test_popalign import data, method, plain_steps
from tests.methods.test_step_preference import method as spo

_RANKS = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{tests!r}]
from lightning.pytorch import Callback
from fairanon.run.sharded import PutTogether, Sharded
from tests.methods.common import trained, trainer
from tests.methods.test_popalign import data, method, plain_steps
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
noise, steps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

@torch.no_grad()
def predicted(backbone):
    return backbone.predict(noise, steps, backbone.encode_prompts(["a doctor"]))

class Before(Callback):
    def on_train_end(self, run, module):
        run.save_checkpoint({out!r} + "/two.ckpt")
        parts = [p.to_local().numel() for p in module.parameters() if p.requires_grad]
        assert 0.4 < sum(parts) / {count} < 0.6, "each holds half"
        with module.backbone.gathered():
            for _ in range(2 - run.global_rank):  # each computes as often as it likes
                self.found = predicted(module.backbone)

module, before = method({model!r}, optimizer=plain_steps, **{settings!r}), Before()
run = trainer({out!r} + "/two/run", 4, devices=2, strategy=Sharded(), callbacks=[PutTogether(), before])
run.fit(module, data({preferences!r}, batch_size=2))
assert torch.equal(before.found, predicted(module.backbone)), "put together it is the same"
if run.is_global_zero:
    module.export_weights(Path({out!r}), "two")
    torch.save((trained(module), float(run.callback_metrics["train/gradient_norm"])), {out!r} + "/two.pt")
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd"))


@pytest.mark.parametrize(
    ("lora", "settings"),
    [
        (False, {"reference": "beforehand", "prior_weight": 1.0}),
        (False, {"objective": "dpo"}),
        (True, {"objective": "simpo"}),
        (True, {"micro_batch_size": 2}),
    ],
)
@pytest.mark.slow
def test_two_devices_are_one(model_folder, preferences, tmp_path, lora, settings):
    settings = {"lora": lora, **settings}
    one = method(model_folder, optimizer=plain_steps, **settings)
    run = trainer(tmp_path / "one" / "run", 4)
    run.fit(one, data(preferences, batch_size=4))
    expected, norm = trained(one), float(run.callback_metrics["train/gradient_norm"])
    count = sum(value.numel() for value in expected.values())
    text = _RANKS.format(
        tests=os.getcwd(),
        model=model_folder,
        preferences=str(preferences),
        out=str(tmp_path),
        settings=settings,
        count=count,
    )
    two_ranks(tmp_path / "ranks.py", text)
    found, other_norm = torch.load(tmp_path / "two.pt")
    assert found.keys() == expected.keys() and other_norm == pytest.approx(norm, rel=1e-4)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == expected.keys() and saved["base_model"] == one.backbone.fingerprint()
    assert all(torch.equal(saved["state_dict"][name], found[name]) for name in found), "one file, whole tensors"
    if not lora:
        unet = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(unet[name.removeprefix("backbone.unet.")], value) for name, value in found.items())

    rest = method(model_folder, optimizer=plain_steps, **settings)
    trainer(tmp_path / "rest" / "run", 6).fit(
        rest, data(preferences, batch_size=4), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )
    whole = method(model_folder, optimizer=plain_steps, **settings)
    trainer(tmp_path / "whole" / "run", 6).fit(whole, data(preferences, batch_size=4))
    for name, value in trained(rest).items():
        torch.testing.assert_close(value, trained(whole)[name], rtol=1e-4, atol=1e-6, msg=f"gone on by one: {name}")


@pytest.fixture
def group_of_one():
    """What Lightning leaves behind: a group, and its port in the environment of whatever is started next."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-3)  # a small eps makes signs of rounding errors


def fitted(model_folder, preferences, folder, strategy, steps, checkpoint=None):
    module = method(model_folder, False, objective="simpo", optimizer=adam)
    run = trainer(folder, steps, strategy=strategy, callbacks=[PutTogether(), Save(folder / f"{steps}.ckpt")])
    run.fit(module, data(preferences), ckpt_path=checkpoint, weights_only=True)
    assert not any(isinstance(value, DTensor) for value in module.parameters())
    return trained(module)


class Save(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@pytest.mark.slow
def test_one_device_is_as_without_and_each_goes_on_with_the_others_checkpoint(
    model_folder, preferences, tmp_path, group_of_one
):
    whole = fitted(model_folder, preferences, tmp_path / "whole", "auto", 4)
    for first, then in (("auto", Sharded()), (Sharded(), "auto"), (Sharded(), Sharded())):
        folder = tmp_path / f"{type(first).__name__}-{type(then).__name__}"
        fitted(model_folder, preferences, folder, first, 2)
        found = fitted(model_folder, preferences, folder, then, 4, folder / "2.ckpt")
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{folder.name}: {name}")
    states = [
        torch.load(tmp_path / name / "4.ckpt", weights_only=True)["optimizer_states"][0]
        for name in ("whole", "Sharded-Sharded")
    ]
    assert states[0]["state"].keys() == states[1]["state"].keys(), "numbered alike"
    for number, values in states[0]["state"].items():
        torch.testing.assert_close(states[1]["state"][number]["exp_avg_sq"], values["exp_avg_sq"], rtol=1e-3, atol=1e-9)


def test_a_training_that_had_ended_is_put_together_all_the_same(model_folder, preferences, tmp_path, group_of_one):
    done = fitted(model_folder, preferences, tmp_path, Sharded(), 2)
    again = fitted(model_folder, preferences, tmp_path / "again", Sharded(), 2, tmp_path / "2.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in done.items())


def test_a_failed_forward_pass_leaves_nothing_gathered(model_folder, preferences, tmp_path, group_of_one):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            backbone = pl_module.backbone
            hook = backbone.unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError), backbone.gathered(), torch.no_grad():
                backbone.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), backbone.encode_prompts([""]))
            hook.remove()
            assert all(isinstance(value, DTensor) for value in backbone.unet.parameters())

    module = method(model_folder, False, objective="simpo", optimizer=adam)
    trainer(tmp_path, 2, strategy=Sharded(), callbacks=[PutTogether(), Fails()]).fit(module, data(preferences))


def test_what_the_weights_or_the_optimizer_forbid_is_said(model_folder, preferences, tmp_path, group_of_one):
    module = method(model_folder, False)
    module.backbone.unet.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"model\.backbone\.channels_last: .*set it to false"):
        trainer(tmp_path, 1, strategy=Sharded()).fit(module, data(preferences))
    eight = type("AdamW8bit", (torch.optim.AdamW,), {"__module__": "bitsandbytes.optim.adamw"})
    with pytest.raises(UserError, match=r"model\.optimizer: bitsandbytes does not know .*take torch's"):
        trainer(tmp_path, 1, strategy=Sharded()).fit(method(model_folder, False, optimizer=eight), data(preferences))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: fairhuman(), "FairHuman is not laid over devices .it steps its optimizer itself.; take OVERLAY=ddp"),
        (lambda: id2face(), "ID2Face is not laid over devices .* trains beside the diffusion model.; take OVERLAY=ddp"),
        (
            lambda: spo(),
            "StepPreference is not laid over devices; take OVERLAY=ddp",
        ),
        (
            lambda: PairwisePreference(StableDiffusion("tiny", train_text_encoder=True)),
            "train_text_encoder: .*OVERLAY=ddp",
        ),
    ],
    ids=["FairHuman", "ID2Face", "SPO", "a text encoder"],
)
def test_what_cannot_be_laid_over_devices_is_refused(module, said, preferences, tmp_path, group_of_one):
    with pytest.raises((UserError, ValueError), match=said):
        trainer(tmp_path, 1, strategy=Sharded(), gradient_clip_val=None).fit(module(), data(preferences))


def test_nothing_to_train_is_refused(model_folder, preferences, tmp_path, group_of_one):
    with pytest.raises(UserError, match=r"trainer\.max_steps 0 nothing trains; leave OVERLAY=shard out"):
        trainer(tmp_path, 0, strategy=Sharded()).fit(method(model_folder, False), data(preferences))
