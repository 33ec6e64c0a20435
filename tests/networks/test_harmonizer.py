import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from fairanon.losses.identity import region_prediction
from fairanon.networks.harmonizer import Harmonizer

TOKENS = 2


def unet(**settings):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12, attention_head_dim=4,
        norm_num_groups=8, **settings,
    )  # fmt: skip


def inputs(count=2):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(count, 4, 8, 8, generator=generator), torch.tensor([10, 500])[:count]
    return x, t, torch.randn(count, 5 + TOKENS, 12, generator=generator)


def run(model, x, t, context):
    return model(x, t, encoder_hidden_states=context).sample


def test_a_gate_that_is_shut_or_open_leaves_ordinary_cross_attention():
    plain, gated = unet(), unet()
    harmonizer = Harmonizer(gated, TOKENS)
    x, t, context = inputs()
    for bias, part in ((-60.0, context[:, :-TOKENS]), (60.0, context[:, -TOKENS:])):
        with torch.no_grad():
            for branch in harmonizer.branches.values():
                branch.gate[-1].bias.fill_(bias)
            torch.testing.assert_close(run(gated, x, t, context), run(plain, x, t, part))
    assert len(harmonizer.maps()) == len([name for name in plain.attn_processors if "attn2" in name])
    assert {maps.shape for maps in harmonizer.maps()} == {(2, 1, 8, 8), (2, 1, 4, 4)}


def test_the_gate_sees_the_features_before_self_attention():
    gated = unet()
    harmonizer = Harmonizer(gated, TOKENS)
    seen = {}
    block = gated.mid_block.attentions[0].transformer_blocks[0]
    block.norm1.register_forward_hook(lambda *given: seen.update(before=given[2]))
    run(gated, *inputs())
    name = "mid_block/attentions/0/transformer_blocks/0"
    torch.testing.assert_close(harmonizer.gates[name], harmonizer.branches[name].gate(seen["before"]))


@pytest.mark.parametrize("count", [1, 2])
def test_checkpointing_changes_neither_maps_nor_their_gradients(count):
    found = []
    for checkpointing in (False, True):
        model = unet().train()
        harmonizer = Harmonizer(model, TOKENS)
        if checkpointing:
            model.enable_gradient_checkpointing()
        x, t, context = inputs(count)
        context.requires_grad_()
        masks = torch.zeros(count, 1, 64, 64, dtype=torch.bool)
        masks[..., 16:48, 16:48] = True
        prediction = run(model, x, t, context)
        maps = harmonizer.maps()
        loss = prediction.square().mean() + region_prediction(maps, masks)
        loss.backward()
        gradients = {name: p.grad for name, p in harmonizer.named_parameters()}
        assert all(g is not None for g in gradients.values()) and context.grad is not None
        found.append((loss.detach(), [m.detach() for m in maps], gradients, context.grad))
    (a, maps, gradients, token), (b, others, again, other) = found
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(maps, others)
    torch.testing.assert_close(gradients, again)
    torch.testing.assert_close(token, other)


def test_the_unet_keeps_its_own_weights():
    model = unet()
    names = set(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    Harmonizer(model, TOKENS)
    assert set(model.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
