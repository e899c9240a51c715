"""Modules that a program has in memory, as definitions: copies that leave them as they are."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

from deploykit.core.choices import DefinitionChoices, PreprocessingChoices
from deploykit.core.errors import UsageError
from deploykit.core.specs import Preprocessing
from deploykit.sources.live_module import live_module_spec

if TYPE_CHECKING:
    from deploykit.core.specs import ModelSpec

SIZE = 16
CHOICES = DefinitionChoices(image_size=SIZE)


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def digest(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.detach().double().cpu().numpy().tobytes())
    return found.hexdigest()


def spec_of(module: object, **choices: Any) -> ModelSpec:
    return live_module_spec(module, DefinitionChoices(**{"image_size": SIZE, **choices}))


def test_the_copy_computes_what_the_module_does_in_evaluation_mode() -> None:
    module = small()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        module.train()(images)  # the statistics of the normalisation move
        expected = module.eval()(images)
        found = spec_of(module).build()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_module_stays_as_it_was() -> None:
    module = small().train()
    module[0].eval()
    module(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    before = digest(module), [part.training for part in module.modules()]
    gradients = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    state = torch.random.get_rng_state()
    spec_of(module).build()
    assert (digest(module), [part.training for part in module.modules()]) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in module.parameters())
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_later_training_does_not_reach_the_copy() -> None:
    module = small().eval()
    spec = spec_of(module)
    with torch.no_grad():
        before = module(torch.ones(1, 3, SIZE, SIZE))
        module[5].bias.add_(1)  # type: ignore[operator]
        assert torch.equal(spec.build()(torch.ones(1, 3, SIZE, SIZE)), before)


def test_two_builds_share_nothing() -> None:
    spec = spec_of(small())
    first, second = spec.build(), spec.build()
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_fp32_with_a_note(dtype: torch.dtype) -> None:
    module = small().to(dtype)
    spec = spec_of(module)
    assert {one.dtype for one in spec.build().parameters()} == {torch.float32}
    assert f"weights of {str(dtype).removeprefix('torch.')} became float32" in spec.notes
    assert next(module.parameters()).dtype == dtype


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.compile])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    module = small().eval()
    spec = spec_of(wrap(module))
    assert spec.name == "sequential"
    with torch.no_grad():
        images = torch.randn(2, 3, SIZE, SIZE)
        torch.testing.assert_close(spec.build()(images), module(images), rtol=0, atol=0)


class Tied(nn.Module):
    """One parameter in two places, and a tensor that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.second = nn.Conv2d(3, 3, 1, bias=False)
        self.second.weight = self.first.weight
        self.scale = torch.tensor(2.0, requires_grad=True) * 3  # computed: deepcopy refuses it

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(images)) * self.scale
        return found.mean((2, 3))


def test_shared_parameters_stay_shared_and_computed_tensors_are_copied() -> None:
    module = Tied()
    built: Any = spec_of(module).build()
    assert built.first.weight is built.second.weight
    assert built.first.weight is not module.first.weight
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(built(images), module(images), rtol=0, atol=0)


def test_parametrised_weights() -> None:
    module = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(spec_of(module).build()(images), module(images))


class Holder(nn.Sequential):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.lock = threading.Lock()


def scripted() -> Any:
    trace: Any = torch.jit.trace
    return trace(small().eval(), torch.ones(1, 3, SIZE, SIZE))


class Itself(nn.Sequential):
    """Its copy is no copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Itself:
        return self


def patched() -> nn.Module:
    module = small()
    forward: Any = module.forward
    module.forward = lambda images: forward(images)  # type: ignore[method-assign]  # noqa: PLW0108
    return module


def test_a_copy_that_runs_the_original_is_refused_before_it_does() -> None:
    module = patched().train()
    before = digest(module)
    with pytest.raises(UsageError, match="runs the original's Conv2d, which is not to be changed"):
        spec_of(module)
    assert digest(module) == before
    assert module.training


def test_a_copy_that_is_the_module_itself_is_refused() -> None:
    module = Itself(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).half().train()
    with pytest.raises(UsageError, match="its copy shares modules or tensors with it"):
        spec_of(module)
    assert module.training
    assert module[2].weight.dtype is torch.float16
    assert module[2].weight.requires_grad


GREY_NETWORKS = {
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(1024, 5)),
    "layers alone": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5)),
    # x.view(-1, 256): images in colours are three rows each
    "rows": lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 256)), nn.Linear(256, 5)),
}


@pytest.mark.parametrize("kind", GREY_NETWORKS)
def test_a_module_that_takes_one_channel_has_grey_images(kind: str) -> None:
    found = spec_of(GREY_NETWORKS[kind]())
    assert found.inputs[0].shape == ("batch", 1, SIZE, SIZE)
    assert found.preprocessing == Preprocessing(
        (SIZE, SIZE), (SIZE, SIZE), mean=(0.5,), std=(0.5,), channel_order="grey"
    )
    assert found.build()(torch.zeros(2, 1, SIZE, SIZE)).shape == (2, 5)


def test_a_module_that_takes_any_channels_has_those_that_are_asked_for() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(1), nn.LazyLinear(5))
    chosen = PreprocessingChoices(channel_order="grey")
    module(torch.zeros(1, 1, SIZE, SIZE))
    assert spec_of(module, preprocessing=chosen).preprocessing.channels == 1
    anything = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(2), nn.Linear(16, 5))
    found = spec_of(anything, head="raw")
    assert found.inputs[0].shape[1] == 3
    found = spec_of(anything, head="raw", preprocessing=chosen)
    assert found.inputs[0].shape[1] == 1


class TwoOfRows(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = images.view(-1, SIZE * SIZE)
        return rows[:, :5], rows[:, 5:9]


def test_of_several_outputs_for_grey_images_the_user_says_which() -> None:
    with pytest.raises(
        UsageError, match=r"0: float32 \(2, 5\), 1: float32 \(2, 4\)\nnothing tells"
    ):
        spec_of(TwoOfRows())
    assert spec_of(TwoOfRows(), head_output="1").outputs[0].shape == ("batch", 4)


class FirstChannel(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1]


def test_a_module_that_takes_colours_into_one_channel_is_named() -> None:
    module = nn.Sequential(FirstChannel(), nn.Conv2d(1, 4, SIZE), nn.Flatten())
    found = spec_of(module)
    assert found.preprocessing.channels == 3
    (note,) = found.notes
    assert "takes 3 channels, and its first convolution 1: for grey" in note
    assert note.endswith("--channel-order grey")
    for order in ("grey", "rgb"):
        assert not spec_of(module, preprocessing=PreprocessingChoices(channel_order=order)).notes


@pytest.mark.parametrize(
    ("taken", "order", "said"),
    [
        (
            1,
            "bgr",
            r"images \(2, 3, 16, 16\)\n.*\n.*takes 1 channel, grey: leave --channel-order bgr",
        ),
        (3, "grey", r"images \(2, 1, 16, 16\)\n.*\n.*takes 3 channels: leave --channel-order grey"),
    ],
)
def test_a_channel_order_of_another_number_of_channels(taken: int, order: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec_of(nn.Conv2d(taken, 4, 1), preprocessing=PreprocessingChoices(channel_order=order))


def broken() -> nn.Module:
    module = small()
    with torch.no_grad():
        module[5].bias.fill_(float("nan"))  # type: ignore[operator]
    return module


REFUSED: dict[str, tuple[Any, str]] = {
    "no module": (lambda: [1, 2], r"a list cannot be exported\nexpected a torch\.nn\.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), r"0\.weight of sequential is not init"),
    "meta": (lambda: nn.Conv2d(3, 4, 1, device="meta"), "weight of conv2d has no values"),
    "lock": (Holder, r"holder cannot be copied, and .*\n.*pickle.*\ntake what cannot be copied"),
    "NaN": (broken, r"5\.bias of sequential has NaN or infinite values\ntrain it again"),
    "grey": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(9, 4)),
        r"does not take images \(2, 1, 16, 16\)\n.*\ngive the size that it takes: --input-size PX",
    ),
    "many": (
        lambda: nn.Conv2d(5, 4, 1),
        r"takes 5 channels, and deploykit prepares images of 3, or 1\nwrap it in a module whose",
    ),
    "size": (
        lambda: nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(9, 4)),
        r"does not take images \(2, 3, 16, 16\)\n.*\ngive the size that it takes: --input-size PX",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, said = REFUSED[case]
    with pytest.raises(UsageError, match=said):
        spec_of(make())


def test_a_mask_that_is_added_to_scores_is_no_fault() -> None:
    module = small()
    module.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
    assert torch.equal(spec_of(module).build().mask, module.mask)  # type: ignore[arg-type]
    module.mask[1, 1] = torch.nan  # type: ignore[operator]
    with pytest.raises(UsageError, match="mask of sequential has NaN or infinite values"):
        spec_of(module)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UsageError, match="is TorchScript, which cannot be exported"):
        spec_of(scripted())


@pytest.mark.parametrize(
    ("choice", "said"), [("num_classes", "leave num_classes out"), ("arguments", "leave arg")]
)
def test_choices_of_a_definition_are_refused(choice: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec_of(small(), **{choice: 7 if choice == "num_classes" else {"depth": 3}})


def test_what_the_bundle_is_told() -> None:
    module = small()
    spec = live_module_spec(module, CHOICES, "mine")
    assert spec.name == "mine"
    assert spec.num_classes == 5
    assert spec.parameters == sum(one.numel() for one in module.parameters())
    assert live_module_spec(module, CHOICES).source_sha256 == spec.source_sha256
    with torch.no_grad():
        module[5].bias.add_(1)  # type: ignore[operator]
    assert live_module_spec(module, CHOICES).source_sha256 != spec.source_sha256
    assert "an input of 224x224 is assumed" in " ".join(
        live_module_spec(module, DefinitionChoices()).notes
    )


class Returns(nn.Module):
    """Features, two heads, and what is made of the first; ``form`` says what is returned."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 7)
        self.alike = nn.Linear(6, 4)
        self.form = form

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.body(images).flatten(1)
        first = self.first(features)
        forms = {
            "two heads": (first, self.second(features)),
            "alike": (first, self.alike(features)),
            "features first": (features, first),
            "features last": (first, features),
            "probabilities first": (first.softmax(1), first),
            "sigmoid": (first, first.sigmoid()),
            "with a map": (self.body[0](images), first),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    ("form", "listed"),
    [
        ("two heads", r"0: float32 \(2, 4\), 1: float32 \(2, 7\)"),
        ("alike", r"0: float32 \(2, 4\), 1: float32 \(2, 4\)"),
    ],
)
def test_two_heads_are_not_guessed(form: str, listed: str) -> None:
    said = (
        rf"^returns returns a tuple for 2 images: {listed}\nnothing tells which of them is the "
        r"answer\nsay which by its number: --head-output 0"
    )
    with pytest.raises(UsageError, match=said):
        spec_of(Returns(form))
    assert spec_of(Returns(form), head_output="1").outputs[0].shape[1:] in {(7,), (4,)}


class WithoutRecord(nn.Module):
    """Runs only where torch keeps no record of what is computed."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = images.mean((2, 3))
        features.numpy()
        return features, features[:, :2]


def test_a_network_that_tells_nothing_is_not_guessed() -> None:
    with pytest.raises(UsageError, match="nothing tells which of them is the answer"):
        spec_of(WithoutRecord())


def test_labels_tell_which_head_is_meant() -> None:
    module = Returns("two heads")
    spec = live_module_spec(module, CHOICES, labels=7)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(spec.build()(images), module(images)[1])
    with pytest.raises(UsageError, match="nothing tells which of them"):
        live_module_spec(Returns("two heads"), CHOICES, labels=5)


@pytest.mark.parametrize(
    "form", ["features first", "features last", "probabilities first", "sigmoid", "with a map"]
)
def test_the_answer_is_what_the_others_lead_to(form: str) -> None:
    """As of an `.onnx`: not its features, and logits before what is made of them."""
    module = Returns(form)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        found = spec_of(module).build()(images)
        torch.testing.assert_close(found, module.first(module.body(images).flatten(1)))


def test_a_callers_autocast_does_not_reach_the_spec() -> None:
    module = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spec = spec_of(module)
        assert torch.is_autocast_enabled("cpu")
    assert spec.outputs == spec_of(module).outputs


class Table(nn.Module):
    """Looks up each pixel, from 0 to 1, in a table of 256 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(256, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        found = self.rows((images.mean(1) * 255).round().long())
        logits: Tensor = self.head(found.mean((1, 2)))
        return logits


def test_a_table_by_pixel_is_asked_within_its_rows() -> None:
    assert spec_of(Table().eval()).num_classes == 5
