import pytest
import torch

from data_modules.synthetic_faces.identities import SyntheticIdentities
from fairanon.backbones import Conditioning, Sampling, StableDiffusion
from fairanon.backbones.adapters import Lora
from fairanon.batches import IdentityBatch, PromptRow
from fairanon.degradation import Degradation
from fairanon.evaluators import FaceDescription, TinyAttributes, TinyFeatureMaps, TinyGeometry, TinyRecognizer
from fairanon.methods.id2face import Fit, ID2Face, LossWeights, Widths
from tests.methods.common import trained, trainer

NAMES = ("images", "references", "masks", "landmarks")


def method(**settings):
    torch.manual_seed(0)
    small = {
        "widths": Widths(16, 32, 2, side=4), "degradation": Degradation(), "fit": Fit(pairs=8, steps=3),
        "description": FaceDescription(TinyGeometry()),
    }  # fmt: skip
    return ID2Face(StableDiffusion("tiny"), TinyRecognizer(), TinyFeatureMaps(), **{**small, **settings})


def data(batch_size=4):
    return SyntheticIdentities(batch_size=batch_size, people=16, val_people=4)


def test_the_objective_has_its_parts_and_the_ablations_leave_them_out():
    batch = next(iter(data().train_dataloader()))
    value, parts = method().train().loss(batch)
    assert set(parts) == {"noise", "reconstruction", "similarity", "region"}
    torch.testing.assert_close(value.detach(), torch.stack(list(parts.values())).sum())
    for settings, gone in (
        ({"weights": LossWeights(reconstruction=0.0)}, "reconstruction"), ({"weights": LossWeights(region=0.0)}, "region"),
        ({"harmonized": False}, "region"), ({"weights": LossWeights(similarity=0.0)}, "similarity"),
    ):  # fmt: skip
        _, found = method(**settings).train().loss(batch)
        assert set(parts) - set(found) == {gone}
    assert set(method(fit=Fit("joint")).train().loss(batch)[1]) - set(parts) == {"vae", "divergence"}
    with pytest.raises(ValueError, match=r"weights\.region must not be negative"):
        LossWeights(region=-1.0)
    with pytest.raises(ValueError, match=r"fit\.mixture: an ID-VAE that goes on learning"):
        Fit("joint", mixture=3)
    with pytest.raises(ValueError, match="landmarks: new ones need a description"):
        method(description=None)


@pytest.mark.parametrize("id_vae", ["first", "joint"])
def test_which_gradient_reaches_what(id_vae):
    module = method(fit=Fit(id_vae), weights=LossWeights(0.0, 0.0, region=0.0)).eval()
    batch = next(iter(data().train_dataloader()))
    parts = {
        "vae": module.networks.id_vae, "recomposer": module.networks.recomposer, "harmonizer": module.harmonizer,
        "unet": module.backbone.unet, "spatial": module.networks.spatial, "landmarks": module.networks.landmarks,
    }  # fmt: skip

    def reached(value):
        module.zero_grad()
        value.backward(retain_graph=True)
        return {
            name
            for name, part in parts.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
        }

    joint = {"vae"} if id_vae == "joint" else set()
    with torch.enable_grad():
        assert reached(module.loss(batch)[0]) == {"recomposer", "harmonizer", "unet", "spatial"} | joint
        if joint:
            identity = module.recognizer.recognize(batch.references.float() / 127.5 - 1)
            control, _, _ = module.networks.id_vae(identity)
            assert reached((identity - control).square().sum()) == {"vae"}


@pytest.mark.parametrize("settings", [
    {"fit": Fit(pairs=8, steps=3, mixture=2)},
    pytest.param({"fit": Fit("joint", 8, 3)}, marks=pytest.mark.slow),
    pytest.param({"harmonized": False, "conditioning": "tokens"}, marks=pytest.mark.slow),
    {"aligned": False, "degradation": None, "description": None, "landmarks": "source"},
])  # fmt: skip
def test_everything_that_trains_moves_and_nothing_else(settings, tmp_path):
    module = method(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **settings)
    before = trained(module)
    fitted = {id(p) for part in module._fitted_first() for p in part.parameters()}
    frozen = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad and id(p) not in fitted}
    trainer(tmp_path, 4).fit(module, datamodule=data())  # the paths beside the tokens begin with layers of zeros
    still = [name for name, value in trained(module).items() if torch.equal(value, before[name])]
    assert not still, still
    assert all(torch.equal(p, frozen[name]) for name, p in module.named_parameters() if name in frozen)
    assert frozen and any(name.startswith("recognizer") for name in frozen)


def test_what_knows_identities_alone_is_fitted_before_the_first_step(tmp_path):
    """And the diffusion training leaves it as it is."""
    module = method(appearance=TinyAttributes(), attributes=("tone",), fit=Fit(pairs=64, steps=150, mixture=2))
    before = {name: p.clone() for name, p in module.networks.named_parameters()}
    seen = []
    module.on_train_start = lambda: seen.append({name: p.clone() for name, p in module.networks.named_parameters()})
    trainer(tmp_path, 1).fit(module, datamodule=data(8))
    for name, value in module.networks.named_parameters():
        if name.startswith(("id_vae", "mixture", "landmarks", "appearance")):
            assert not torch.equal(value, before[name]), name
            assert torch.equal(value, seen[0][name]) and f"networks.{name}" in module.state_dict(), name
        else:
            assert torch.equal(seen[0][name], before[name]), name
    batch = next(iter(data(8).train_dataloader()))
    identity = module.recognizer.recognize(batch.references.float() / 127.5 - 1)
    rebuilt = module.networks.id_vae.decode(module.networks.id_vae.encode(identity)[0])
    fresh = method().networks.id_vae
    assert (rebuilt * identity).sum(1).mean() > 0.5 + (fresh(identity)[0] * identity).sum(1).mean()
    assert module.networks.appearance.floor.item() > 1 / 6


def test_a_run_that_goes_on_equals_an_uninterrupted_one(tmp_path):
    whole, first, second = (method(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)) for _ in range(3))
    trainer(tmp_path / "a", 3).fit(whole, datamodule=data())
    part = trainer(tmp_path / "b", 2)
    part.fit(first, datamodule=data())
    part.save_checkpoint(tmp_path / "half.ckpt")
    goes_on = {"ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    trainer(tmp_path / "c", 3).fit(second, datamodule=data(), **goes_on)
    found = second.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, found[name]), name


def test_samples_without_signal_are_not_decoded():
    batch = next(iter(data(8).train_dataloader()))
    module = method().eval()  # the same noise in every pass
    timesteps = module.noised(
        torch.zeros(8, 1, 1, 1, device=module.device), batch.keys, Conditioning(torch.zeros(8, 1, 1))
    ).timesteps
    abar = module.backbone.alphas_cumprod(timesteps)
    seen = []
    recognize = module.recognizer.recognize
    module.recognizer.recognize = lambda images: seen.append(len(images)) or recognize(images)
    whole = module.loss(batch)[1]["similarity"]
    floor = float(abar.sort().values[5])
    module.weights = LossWeights(similarity_floor=floor)
    part = module.loss(batch)[1]["similarity"]
    assert seen == [8, 8, 8, 3] and 0 < part < whole
    module.weights = LossWeights(similarity_floor=0.9999)
    assert abar.max() < 0.9999 and module.loss(batch)[1]["similarity"] == 0
    with pytest.raises(ValueError, match="similarity_floor must be in"):
        LossWeights(similarity_floor=1.0)


def test_images_are_redrawn_or_keep_their_appearance(tmp_path):
    batch = next(iter(data(8).train_dataloader()))
    module = method(appearance=TinyAttributes(), attributes=("tone", "gender"), fit=Fit(pairs=64, steps=150))
    trainer(tmp_path, 1).fit(module, datamodule=data(8))
    rows = [PromptRow("", "people", {}, image=batch.images[k], mask=batch.masks[k], landmarks=batch.landmarks[k])
            for k in range(2)]  # fmt: skip
    assert torch.equal(module.images(rows, [(0,), (1,)], Sampling(1, reference=True)), batch.images[:2])
    redrawn = module.images(rows, [(0,), (1,)], Sampling(1))
    module.kept = True
    assert not torch.equal(module.images(rows, [(0,), (1,)], Sampling(1)), redrawn)
    with pytest.raises(ValueError, match="neither guidance nor adapters"):
        module.check_use(rows, Sampling(1, 5.0))
    with pytest.raises(ValueError, match="an image, a mask and landmarks"):
        module.check_use([PromptRow("a doctor", "people", {})], Sampling(1))
    with pytest.raises(ValueError, match="nobody judges tone"):
        method(attributes=("tone",))
    with pytest.raises(ValueError, match="name the attributes"):
        method(kept=True)
    found = module.held_out(batch, reference=False)
    keys = {"identity/cosine", "identity/rebuilt", "recomposed/error", "recomposed/autoencoder"}
    assert set(found) == keys and all(value.shape == (8,) for value in found.values())
    assert (found["recomposed/error"] > found["recomposed/autoencoder"]).all(), "hardly trained"
    assert module.held_out(batch, reference=True) == {}


def test_two_halves_of_a_batch_are_the_batch():
    """What accumulation and ranks rest on: every part is a mean over samples whose draws are their own."""
    batch = next(iter(data(4).train_dataloader()))
    halves = [IdentityBatch(batch.keys[part], *(getattr(batch, name)[part] for name in NAMES))
              for part in (slice(0, 2), slice(2, 4))]  # fmt: skip
    module = method(weights=LossWeights(similarity_floor=0.2)).train()

    def gradient(*batches):
        module.zero_grad()
        for one in batches:
            (module.loss(one)[0] / len(batches)).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    whole, parts = gradient(batch), gradient(*halves)
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_half_precision_is_close(tmp_path):
    batch = next(iter(data(4).train_dataloader()))
    module = method().train()
    whole = module.loss(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = module.loss(batch)[0]
    assert torch.isfinite(half) and abs(float(half / whole) - 1) < 0.05


@pytest.mark.parametrize("settings", [{"lora": Lora(rank=2, alpha=2)}, {"model": "tiny-inpainting"}])
def test_other_backbones_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=r"model\.backbone: ID2Face trains the whole U-Net"):
        ID2Face(StableDiffusion(**settings), TinyRecognizer(), TinyFeatureMaps())
