"""ID2Face at the size of the paper, counted without memory for it."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from fairanon.evaluators.recognizers import ConvNextFeatures
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face_networks import IdentityNetworks

PAPER = 1128.08e6  # section IV.B gives the total alone; the split is our reading
STATED = {  # millions
    "U-Net of Stable Diffusion 2.1": 865.91,
    "autoencoder": 83.65,
    "ConvNeXt-B image encoder": 87.57,
    "ID-VAE": 3.94,
    "non-identity stream": 19.99,
    "identity projection": 4.73,
    "bidirectional alignment": 25.20,
    "self-attention of the tokens": 8.40,
    "IGLH: keys and values": 25.56,
    "IGLH: gates": 3.10,
}
OURS = {"paths beside the tokens": 4.54, "new landmarks": 0.24}
"""What `experiments/id2face_sd21_256.yaml` has besides, whose description has 15 numbers."""


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_full_size_parameter_count():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024, use_linear_projection=True,
        )  # fmt: skip
        base = count(unet)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        harmonizer = Harmonizer(unet, 4)
        networks = IdentityNetworks(512, (128, 256, 512, 1024), 1024)
        ours = IdentityNetworks(512, (128, 256, 512, 1024), 1024, description=15, spatial=(320, 1280, 8))
    encoder = ConvNextFeatures("convnext_base_w", None)
    recomposer, branches = networks.recomposer, harmonizer.branches.values()
    found = {
        "U-Net of Stable Diffusion 2.1": base,
        "autoencoder": count(vae),
        "ConvNeXt-B image encoder": count(encoder),
        "ID-VAE": count(networks.id_vae),
        "non-identity stream": count(recomposer.stream),
        "identity projection": count(recomposer.identity, recomposer.norm),
        "bidirectional alignment": count(recomposer.to_rest, recomposer.to_identity),
        "self-attention of the tokens": count(
            recomposer.rest_self, recomposer.identity_self, recomposer.rest_norm, recomposer.identity_norm
        ),
        "IGLH: keys and values": count(*(part for branch in branches for part in (branch.key, branch.value))),
        "IGLH: gates": count(*(branch.gate for branch in branches)),
    }
    assert count(unet, vae, encoder, networks, harmonizer) == sum(found.values()), (
        "a part is counted twice or not at all"
    )
    for name, value in found.items():
        print(f"{name:32s} {value / 1e6:8.2f} M")
    print(f"{'all':32s} {sum(found.values()) / 1e6:8.2f} M, the paper's {PAPER / 1e6} M")
    assert {name: round(value / 1e6, 2) for name, value in found.items()} == STATED
    added = {"paths beside the tokens": count(ours.spatial), "new landmarks": count(ours.landmarks)}
    for name, value in added.items():
        print(f"{name:32s} {value / 1e6:8.2f} M, ours")
    assert {name: round(value / 1e6, 2) for name, value in added.items()} == OURS
    for total in (sum(found.values()), sum(found.values()) + sum(added.values())):
        assert total == pytest.approx(PAPER, rel=0.03)
    assert count(ours) == count(networks) + sum(added.values())
