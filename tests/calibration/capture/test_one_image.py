"""Networks whose code is for one image: captured so, their graphs give each image of a batch its answer alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.batched_layout import Layout, are_equal, layout_of
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.operators import static_shape
from calibration.proof.module_and_graph import check_first_link, wide_images
from calibration.rewrites.fold import fold
from tests.one_line_net import Net, c3

Compute = Callable[[Any, Tensor], Any]


def _view(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.l(n.a(x).view(1, -1))
    return result


def _tokens(n: Any, x: Tensor) -> Tensor:
    tokens = n.a(x).reshape(1, 4, 64).permute(0, 2, 1)
    tokens = torch.cat([torch.zeros(1, 1, 4), n.table.weight[None, :1].expand(1, -1, -1), tokens], 1)
    result: Tensor = n.t(tokens + n.table.weight[None])[:, 0]
    return result


def _heads(n: Any, x: Tensor) -> Tensor:
    tokens = n.a(x).flatten(2).transpose(1, 2)
    q, k, v = n.t(tokens).reshape(1, 64, 3, 2, 2).permute(2, 0, 3, 1, 4)
    result: Tensor = n.l(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1))
    return result


def _heads_as_batch(n: Any, x: Tensor) -> Tensor:
    """Heads on the first axis, where one image's batch was."""
    tokens = n.a(x).flatten(2).transpose(1, 2)
    q, k, v = n.t(tokens).reshape(64, 3, 2, 2).permute(1, 2, 0, 3)
    weights = (torch.bmm(q, k.transpose(1, 2)) / math.sqrt(2)).softmax(-1)
    result: Tensor = n.l(torch.bmm(weights, v).transpose(0, 1).reshape(1, -1))
    return result


def _windows(n: Any, x: Tensor) -> Tensor:
    y = n.a(x).permute(0, 2, 3, 1)
    windows = y.view(1, 2, 4, 2, 4, 4).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 4)
    windows = (windows @ windows.transpose(1, 2) + n.table.weight[:4, :1, None]).softmax(-1) @ windows
    y = windows.view(1, 2, 2, 4, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(1, 8, 8, 4)
    result: Tensor = n.l(y.permute(0, 3, 1, 2).reshape(1, -1))
    return result


def _rows_first(n: Any, x: Tensor) -> Tensor:
    tokens = n.a(x).reshape(1, 4, 64).permute(2, 0, 1)
    tokens, _ = n.m(tokens + n.table.weight[:64, None], tokens, tokens)
    result: Tensor = n.l(tokens.permute(1, 2, 0).reshape(1, -1))
    return result


def _written(n: Any, x: Tensor) -> Tensor:
    map_ = torch.zeros(1, 5, 8, 8)
    map_[:, 1:] = n.a(x)
    for i in range(1, 4):
        map_[:, 0, :, i:] = map_[:, 0, :, i:] + n.a(x)[:, i, :, :-i]
    result: Tensor = n.l(map_[:, :4].reshape(1, -1))
    return result


def _dropped(n: Any, x: Tensor) -> Tensor:
    """The axis of the batch goes, and is put back at the end."""
    y = n.b(n.a(x)[0].relu()) + torch.arange(4.0).view(4, 1, 1)
    rows = y.flatten(1).t()
    result: Tensor = n.l(((rows @ rows.t() / 8).softmax(-1) @ rows).flatten())[None]
    return result


def _split(n: Any, x: Tensor) -> Tensor:
    first, second = n.a(x).reshape(1, 4, 64).chunk(2, 1)
    values, _ = torch.cat([first, second.exp().log()], 1).max(2)
    result: Tensor = values + (values > values.mean(1, keepdim=True)).float() + x.new_zeros(1, 4)
    return result


def _sampled(n: Any, x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.tensor([[[0.9, 0.1, 0.0], [0.0, 1.1, 0.2]]]), [1, 4, 8, 8], align_corners=False)
    result: Tensor = n.l(F.grid_sample(n.a(x), grid, align_corners=False).view(1, -1))
    return result


def _image_by_image(n: Any, x: Tensor) -> Tensor:
    return torch.cat([n.l(n.a(image[None]).flatten())[None] for image in x])


def _shifted_windows(n: Any, x: Tensor) -> Tensor:
    """Windows with masks that are written region by region, which takes the whole graph apart."""
    regions = torch.zeros(1, 8, 8, 1)
    for index, rows in enumerate((slice(0, 4), slice(4, None))):
        regions[:, rows, :, :] = index
    windows = regions.view(1, 2, 4, 2, 4, 1).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16)
    mask = (windows.unsqueeze(1) - windows.unsqueeze(2)).abs() * -10
    y = torch.roll(n.a(x), (-2, -2), (2, 3)).permute(0, 2, 3, 1).view(1, 2, 4, 2, 4, 4)
    tokens = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 4)
    q, k, v = n.t(tokens).reshape(4, 16, 3, 2, 2).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)).view(1, 4, 2, 16, 16) + mask.unsqueeze(1).unsqueeze(0)
    y = (scores.view(-1, 2, 16, 16).softmax(-1) @ v).transpose(1, 2).reshape(4, 16, 4)
    result: Tensor = n.l(y.view(1, 2, 2, 4, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(1, -1))
    return result


def _gram(n: Any, x: Tensor) -> Tensor:
    rows = n.a(x).view(4, 64)
    result: Tensor = n.t(torch.mm(rows, rows.t()) / 64).view(1, -1)
    return result


def _queries(n: Any, x: Tensor) -> Tensor:
    """A constant of one image among rows of the batch, as a decoder's queries are, and the batch put in front last."""
    keys = n.a(x).reshape(1, 4, 64).permute(2, 0, 1)
    queries = n.table.weight[:9].unsqueeze(1)
    result: Tensor = n.t(queries + n.m(queries, keys, keys)[0]).transpose(0, 1)
    return result


def _insists(n: Any, x: Tensor) -> Tensor:
    assert x.shape[0] == 1, "batch 1 alone"
    result: Tensor = n.l(n.a(x).view(x.shape[0], -1))
    return result


def _several(n: Any, x: Tensor) -> dict[str, Tensor]:
    y = n.a(x)
    return {"classes": n.l(y.view(1, -1)), "rows": y.reshape(1, 4, 64).transpose(1, 2), "map": y}


def _numbers(n: Any, x: Tensor) -> Tensor:
    """One number of all axes of an image, read beside maps, rows and other numbers."""
    y = n.a(x)
    y = (y - y.mean()) / (y.std() + y.var().sqrt() + 1e-3) * y.max().clamp(min=0.1) + y.min() * torch.sum(y) / 256
    result: Tensor = (
        n.l(y.reshape(4, 64).t().reshape(1, -1) / y.abs().amax())
        + torch.linalg.vector_norm(y) / 99
        + y.permute(1, 2, 3, 0).mean()
    )
    return result


TAKEN: dict[str, tuple[Compute, dict[str, nn.Module]]] = {
    "a view": (_view, {}),
    "a class token": (_tokens, {"t": nn.Linear(4, 10)}),
    "heads": (_heads, {"t": nn.Linear(4, 12)}),
    "heads in place of the batch": (_heads_as_batch, {"t": nn.Linear(4, 12)}),
    "windows": (_windows, {}),
    "the batch second": (_rows_first, {"m": nn.MultiheadAttention(4, 2)}),
    "written into zeros": (_written, {}),
    "without the batch in between": (_dropped, {"b": c3(4, 4)}),
    "several results": (_split, {}),
    "a grid": (_sampled, {}),
    "queries": (_queries, {"m": nn.MultiheadAttention(4, 2), "t": nn.Linear(4, 3)}),
    "a loop over images": (_image_by_image, {}),
    "shifted windows": (_shifted_windows, {"t": nn.Linear(4, 12)}),
    "products of channels": (_gram, {"t": nn.Linear(4, 3)}),
    "a check of the batch": (_insists, {}),
    "the largest of all": (lambda n, x: _flat(n, x) / _flat(n, x).abs().max(), {}),
    "numbers of all axes": (_numbers, {}),
    "outputs by name": (_several, {}),
    "a number of images": (lambda n, x: n.l(n.a(x).flatten(1)) * x.shape[0] + x.shape[0] - 1 + 0.5, {}),
}


def _net(compute: Compute, **layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        common = {
            "a": c3(3, 4),
            "l": nn.Linear(256, 10),
            "table": nn.Embedding(66, 4),
            "r": nn.GRU(4, 4, batch_first=True),
        }
        return Net(compute, **common, **layers).eval()


def _images(count: int) -> Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TAKEN)
def test_every_image_of_a_batch_has_the_answer_that_it_has_alone(name: str) -> None:
    compute, layers = TAKEN[name]
    module = _net(compute, **layers)
    captured = capture(module, _images(2), source="net", one_image=True)
    wide = wide_images((3, 8, 8), torch.Generator().manual_seed(0))
    check_first_link(module, captured, wide, source="net", shown="random images")
    folded = fold(captured)
    for count in (1, 2, 5):
        images = _images(count)
        with torch.no_grad():
            alone = [module(image) for image in torch.split(images, 1)]
            answers = zip(*(one.values() if isinstance(one, dict) else [one] for one in alone), strict=True)
            for ours, theirs in zip(folded(images), answers, strict=True):
                torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-4, atol=1e-4)
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            assert static_shape(node) == (-1, 3, 8, 8)
    assert any(node.name.startswith("a") and static_shape(node) == (-1, 4, 8, 8) for node in captured.graph.nodes)
    assert captured.get_parameter("a.weight").data_ptr() == module.get_parameter("a.weight").data_ptr()


def _mean(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.l((n.a(x) - n.a(x).mean(0)).view(1, -1))
    return result


REFUSED: dict[str, tuple[Compute, str]] = {
    "the batch dropped": (lambda n, x: n.l(n.a(x)[0].flatten()), r"output output has the shape \[10\].*since select"),
    "the batch squeezed": (lambda n, x: n.l(_flat(n, x)).squeeze(0), r"has the shape \[10\].*keep the first axis"),
    "the batch elsewhere": (lambda n, x: n.a(x).reshape(1, 4, 64).permute(1, 0, 2), r"has the shape \[4, 1, 64\]"),
    "a mean over the batch": (_mean, r"sub \(aten.sub.Tensor, .*since mean"),
    "a median of all": (lambda n, x: _flat(n, x) - n.a(x).median(), r"median.*one number of all axes"),
    "one number": (lambda n, x: n.a(x).mean(), "output is one number without an axis for the image"),
    "places that values decide": (
        lambda n, x: n.a(x)[:, torch.nonzero(x.mean((0, 2, 3)) > 0)[:, 0]],
        r"nonzero \(aten.nonzero.default.*how much it gives depends on the values of a tensor",
    ),
    "a recurrent layer": (
        lambda n, x: n.r(_flat(n, x).view(1, 64, 4), torch.zeros(1, 1, 4))[0].mean(1),
        r"gru \(aten.gru.input.*step by step",
    ),
    "statistics of the batch": (
        lambda n, x: F.batch_norm(n.a(x), None, None, training=True).view(1, -1),
        r"batch_norm \(aten.batch_norm.default",
    ),
    "chance": (lambda n, x: _flat(n, x) + torch.rand(1, 256), "draws random numbers"),
    "a table": (lambda n, x: (_flat(n, x), torch.ones(1, 3)), "output_1 is the same for every image"),
}


def _flat(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.a(x).view(1, -1)
    return result


@pytest.mark.parametrize("name", REFUSED)
def test_what_belongs_to_no_single_image_is_refused_by_name(name: str) -> None:
    compute, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        capture(_net(compute), _images(2), source="net", one_image=True)


def test_weights_that_are_zero_hide_no_mixing() -> None:
    """Rows in another order are zeros all the same: each operator is tried with numbers of its own."""
    module = _net(lambda n, x: n.a(x).reshape(1, 4, 64).permute(2, 0, 1).reshape(1, 64, 4))
    for parameter in module.parameters():
        parameter.data.zero_()
    captured = capture(module, _images(2), source="net", one_image=True)
    module.get_parameter("a.weight").data.normal_()
    with torch.no_grad():
        alone = torch.cat([module(image) for image in torch.split(_images(3), 1)])
        torch.testing.assert_close(captured(_images(3))[0], alone)


def test_what_earlier_images_leave_behind_is_refused() -> None:
    module = _net(lambda n, x: n.a(x).view(1, -1) * n.count(), count=_Counter())
    captured = capture(module, _images(2), source="net", one_image=True)
    with pytest.raises(UserError, match=r"another answer in a later call.*count\.calls"):
        check_first_link(module, captured, _images(3), source="net", shown="random images")


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self) -> int:
        """How often it was called."""
        self.calls += 1
        return self.calls


def test_a_graph_that_gives_an_image_another_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a wrong form taken, the network itself would tell: here its own first image is given to all."""
    from calibration.capture import batched_trial

    monkeypatch.setattr(batched_trial, "are_equal", lambda ours, theirs: True)
    module = _net(lambda n, x: n.a(x).reshape(1, 4, 64).permute(2, 0, 1).reshape(64, 4)[None].mean(1))
    captured = capture(module, _images(2), source="net", one_image=True)
    with pytest.raises(UserError, match="does not compute what the network does"):
        check_first_link(module, captured, _images(3), source="net", shown="random images")


def test_layouts() -> None:
    images = torch.arange(24.0).reshape(3, 2, 4)
    for axis in (0, 1):
        layout = Layout(sizes=(2, 4), axis=axis)
        joined = layout.joined(images)
        assert joined.shape == ((6, 4), (2, 12))[axis] and torch.equal(layout.apart(joined), images)
        assert layout_of((2, 4), joined, 3) == layout and not layout.is_first
    assert torch.equal(Layout(sizes=(2, 4), axis=0).joined(images)[2], images[1, 0])
    assert layout_of((2, 4), torch.zeros(2, 4), 3) is None and layout_of((2, 4), torch.zeros(6, 12), 3) is None
    assert layout_of((2, 4), torch.zeros(3, 2, 4), 3) is None and Layout(sizes=(1, 4), axis=0).is_first
    assert are_equal(torch.ones(2), torch.ones(2) * (1 + 1e-6)) and not are_equal(torch.ones(2), torch.ones(2) * 1.01)
    assert not are_equal(torch.ones(2), torch.ones(2).long()) and not are_equal(torch.tensor([1]), torch.tensor([2]))
