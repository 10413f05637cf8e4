import copy
import logging
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from botnet.layers import AbsolutePosition, MHSA2d, RelativePosition, resize_position_tables
from tests.support import oracle

SIDES = [1, 2, 3, 5, 8]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("side", SIDES)
def test_relative_encodings_of_any_side(length: int, side: int) -> None:
    module = RelativePosition((length, 3), 4).double()
    encodings, _ = module(side, 3)
    table = module.height_rel.detach().numpy()
    assert encodings.shape == (side, side, 4)
    for query in range(side):
        for key in range(side):
            expected = torch.from_numpy(oracle.relative_row(table, key - query, side))
            torch.testing.assert_close(encodings[query, key], expected)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("side", SIDES)
def test_absolute_encodings_of_any_side(length: int, side: int) -> None:
    module = AbsolutePosition((3, length), 4).double()
    _, encodings = module(3, side)
    table = module.width_abs.detach().numpy()
    assert encodings.shape == (side, side, 4)
    for query in range(side):
        for key in range(side):
            expected = torch.from_numpy(oracle.absolute_row(table, key, side))
            torch.testing.assert_close(encodings[query, key], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [RelativePosition, AbsolutePosition])
def test_a_smaller_map_uses_the_centre_exactly(cls: type, dtype: torch.dtype) -> None:
    module = cls((300, 64), 8).to(dtype)  # more cells than bfloat16 can count
    cropped = copy.deepcopy(module)
    cropped.resize((280, 7))
    for full, part in zip(module.parameters(), cropped.parameters(), strict=True):
        margin = (len(full) - len(part)) // 2
        assert torch.equal(part, full[margin : margin + len(part)])
    for on_the_fly, resized in zip(module(280, 7), cropped(280, 7), strict=True):
        assert torch.equal(on_the_fly, resized)


def test_forward_does_not_change_the_parameters() -> None:
    module = MHSA2d(8, 2, feat_size=(4, 4))
    before = copy.deepcopy(module.state_dict())
    module(torch.randn(1, 8, 9, 2)).sum().backward()
    assert module.feat_size == (4, 4)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("size", [(2, 9), (6, 3), (1, 1), (4, 4)])
def test_resized_tables_equal_those_that_forward_uses(position: str, size: tuple[int, int]) -> None:
    module = MHSA2d(8, 2, position=position, feat_size=(4, 4)).double()
    resized = copy.deepcopy(module)
    resize_position_tables(resized, size)
    assert resized.feat_size == size
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(resized(x), module(x))


def test_growing_by_an_integer_factor_keeps_old_entries() -> None:
    module = RelativePosition((4, 4), 2)
    before = module.height_rel.detach().clone()
    assert module.resize((10, 4)) == "4x4 to 10x4, height: interpolate, width: keep"
    torch.testing.assert_close(module.height_rel.detach()[::3], before)


def test_resizing_reports_and_logs_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "botnet"):
        done = resize_position_tables(MHSA2d(8, 2, feat_size=(4, 6)), (8, 3))
    assert done == {"pos_embed": "4x6 to 8x3, height: interpolate, width: crop"}
    assert "height: interpolate, width: crop" in caplog.text


def test_resizing_a_network_keeps_the_strides_between_its_blocks() -> None:
    blocks = [MHSA2d(8, 2, stride=2, feat_size=(14, 25)), MHSA2d(8, 2, feat_size=(7, 13)), nn.ReLU()]
    network = nn.Sequential(*blocks, MHSA2d(8, 2, position=None))
    done = resize_position_tables(network, (64, 33))
    assert [blocks[0].feat_size, blocks[1].feat_size] == [(64, 33), (32, 17)]
    assert set(done) == {"0.pos_embed", "1.pos_embed"}
    assert network(torch.randn(1, 8, 64, 33)).shape == (1, 8, 32, 17)


def test_resized_tables_still_train() -> None:
    module = MHSA2d(8, 2, feat_size=(4, 4))
    module.pos_embed.width_rel.requires_grad_(False)
    resize_position_tables(module, (6, 6))
    assert isinstance(module.pos_embed.height_rel, nn.Parameter)
    assert module.pos_embed.height_rel.requires_grad
    assert not module.pos_embed.width_rel.requires_grad


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("size", [(7, 4), (2, 3)])
def test_loading_tables_of_another_size_resizes_them_with_one_warning(
    position: str, size: tuple[int, int]
) -> None:
    source = MHSA2d(8, 2, position=position, feat_size=(4, 4))
    state = copy.deepcopy(source.state_dict())
    target = MHSA2d(8, 2, position=position, feat_size=size)
    with pytest.warns(UserWarning, match="resized on loading: 4x4 to") as caught:
        target.load_state_dict(state)
    assert len(caught) == 1
    resize_position_tables(source, size)
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    assert state["qkv.weight"].shape == source.qkv.weight.shape
    assert state[f"pos_embed.height_{position[:3]}"].shape[0] == (7 if position == "relative" else 4)


def test_loading_tables_of_the_same_size_gives_no_warning() -> None:
    source, target = MHSA2d(8, 2, feat_size=(4, 4)), MHSA2d(8, 2, feat_size=(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(source.state_dict())


def test_loading_refuses_damaged_and_foreign_tables() -> None:
    module = MHSA2d(8, 2, feat_size=(4, 4))
    state = module.state_dict()
    damaged = {**state, "pos_embed.height_rel": torch.full((7, 4), torch.nan)}
    with pytest.raises(RuntimeError, match=r"pos_embed\.height_rel has NaN entries"):
        module.load_state_dict(damaged, strict=False)
    for shape in ((8, 4), (9, 5), (7,)):
        with pytest.raises(RuntimeError, match=r"size mismatch for pos_embed\.height_rel"):
            module.load_state_dict({**state, "pos_embed.height_rel": torch.zeros(shape)})


class Negative(nn.Module):
    """A parametrization that takes the negative of a tensor."""

    def forward(self, table: Tensor) -> Tensor:
        return -table


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_pruned_and_parametrized_tables_keep_their_axes(position: str) -> None:
    """Both take a parameter away and put another one behind the rest."""
    module = MHSA2d(8, 2, position=position, feat_size=(4, 4)).pos_embed
    rows, columns = module(6, 6)
    name = f"height_{position[:3]}"
    pruned, negative = copy.deepcopy(module), copy.deepcopy(module)
    prune.custom_from_mask(pruned, name, torch.ones_like(getattr(module, name)))
    parametrize.register_parametrization(negative, name, Negative())
    for changed, expected in ((pruned, rows), (negative, -rows)):
        assert torch.equal(changed(6, 6)[0], expected)
        assert torch.equal(changed(6, 6)[1], columns)
        with pytest.raises(ValueError, match=f"{name} and .* pruned or parametrized.*prune.remove"):
            resize_position_tables(changed, (6, 6))


def test_one_tensor_for_both_axes_and_copies_without_parameters() -> None:
    module = RelativePosition((4, 4), 2)
    both = torch.func.functional_call(module, dict.fromkeys(module.table_names, module.width_rel), (4, 4))
    assert torch.equal(both[0], module(4, 4)[1])
    replica = module._replicate_for_data_parallel()  # then DataParallel sets plain tensors
    replica.height_rel, replica.width_rel = module.height_rel * 1, module.width_rel * 1
    assert all(torch.equal(a, b) for a, b in zip(replica(3, 5), module(3, 5), strict=True))


def test_nothing_to_resize() -> None:
    with pytest.raises(ValueError, match="Linear has no position tables"):
        resize_position_tables(nn.Linear(2, 2), (4, 4))
    with pytest.raises(ValueError, match="two positive numbers"):
        resize_position_tables(MHSA2d(8, 2, feat_size=(4, 4)), (4, 0))
