"""The fake compiler has no name that the real package lacks."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from tests.fakes import network_fake, tensorrt_fake

REASON = "the package tensorrt-rtx-cu13 is not installed"
HIDDEN = {"self", "script"}


@pytest.fixture
def real() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason=REASON)


def own_methods(fake: type) -> list[tuple[str, Any]]:
    found = inspect.getmembers(fake, inspect.isfunction)
    return [(name, method) for name, method in found if not name.startswith("_")]


def constructor(fake: type) -> list[tuple[str, Any]]:
    is_made_by_caller = fake in {
        tensorrt_fake.Builder,
        tensorrt_fake.OnnxParser,
        tensorrt_fake.Runtime,
    }
    return [("__init__", fake.__init__)] if is_made_by_caller else []  # type: ignore[misc]  # a class


@pytest.mark.parametrize("fake", tensorrt_fake.CLASSES, ids=lambda fake: str(fake.__name__))
def test_methods_and_parameters_exist_in_the_real_class(fake: type, real: Any) -> None:
    genuine = getattr(real, fake.__name__)
    for name, method in [*own_methods(fake), *constructor(fake)]:
        signature = getattr(genuine, name).__doc__.strip().splitlines()[0]
        genuine_names = re.findall(r"(\w+): ", signature)
        names = [key for key in inspect.signature(method).parameters if key not in HIDDEN]
        assert names == [key for key in genuine_names if key not in HIDDEN], signature


@pytest.mark.parametrize("name", tensorrt_fake.USED_ATTRIBUTES)
def test_attributes_exist_in_the_real_class(name: str, real: Any) -> None:
    for attribute in tensorrt_fake.USED_ATTRIBUTES[name]:
        assert isinstance(getattr(getattr(real, name), attribute), property), attribute
        fake = getattr(tensorrt_fake, name)
        assert attribute in {*dir(fake), *getattr(fake, "__dataclass_fields__", {})}


@pytest.mark.parametrize("fake", tensorrt_fake.ENUMS, ids=lambda fake: str(fake.__name__))
def test_enum_members_exist_in_the_real_enum(fake: Any, real: Any) -> None:
    genuine = getattr(real, fake.__name__).__members__
    assert set(fake.__members__) <= set(genuine)
    if fake is not network_fake.LayerType:
        assert {name: int(genuine[name]) for name in fake.__members__} == {
            name: member.value for name, member in fake.__members__.items()
        }


def test_severities_are_those_of_the_real_logger(real: Any) -> None:
    assert set(tensorrt_fake.Severity.__members__) == set(real.ILogger.Severity.__members__)


def test_the_fake_module_offers_nothing_that_the_real_one_lacks(real: Any) -> None:
    fake = tensorrt_fake.FakeTensorrt(tensorrt_fake.Script())
    names = [name for name in dir(fake) if not name.startswith("_")]
    assert [name for name in names if not hasattr(real, name)] == []
