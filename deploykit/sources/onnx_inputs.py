"""The inputs of a user's own file: which are the images, how these are prepared, what is beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.core.errors import ModelFileError, UsageError
from deploykit.core.sizes import GREY, RGB, ShapeProfile, are_channels_last, are_images, image_among
from deploykit.core.specs import Preprocessing, TensorSpec
from deploykit.images.side_inputs import SideInputs, require_per_image
from deploykit.sources.cards import as_written, require_channels
from deploykit.sources.image_sizes import preferred_size

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.core.artifacts import OnnxArtifact
    from deploykit.graph.card import Card


def require_image_classifier(source: OnnxArtifact) -> tuple[TensorSpec, bool]:
    """The image input (N, C, H, W) of an FP32 classifier, and whether its channels are last there.

    Raises:
        ModelFileError: it is converted already, or takes no images.
    """
    if not source.precision.facts.is_source:
        raise ModelFileError(
            f"{source.path.name} is already {source.precision}; "
            "deploykit converts from FP32: give it the FP32 model"
        )
    return laid_image(source.path.name, source.inputs)


def laid_image(name: str, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, bool]:
    """As `require_image`, also of a model that takes images (N, H, W, C), and whether it does.

    Raises:
        ModelFileError: it takes no images.
    """
    image = _image_among(inputs)
    if image is not None and are_channels_last(image.shape):
        return image.channels_first(), True
    return require_image(name, inputs), False


def comparable_image(name: str, artifact: OnnxArtifact) -> tuple[TensorSpec, bool]:
    """As `laid_image` of a file that is to be compared; channels last are moved in FP32 alone.

    Raises:
        ModelFileError: it takes no images.
        UsageError: it is of another precision, and its channels are last.
    """
    image, is_last = laid_image(name, artifact.inputs)
    if is_last and not artifact.precision.facts.is_source:
        raise UsageError(
            f"{name} is {artifact.precision} and takes images with channels last, (N, H, W, C)\n"
            "compare the FP32 file that it was made from, or let it begin behind its Transpose"
        )
    return image, is_last


def _image_among(inputs: tuple[TensorSpec, ...]) -> TensorSpec | None:
    # With the others, so that a mask beside the numbers of words is no image.
    shapes = {spec.name: spec.shape if spec.dtype == "float32" else () for spec in inputs}
    name = image_among(shapes)
    return next((spec for spec in inputs if spec.name == name), None)


def require_image(name: str, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """The image input of a model that is called ``name``; the first where there are several.

    Of images in colours and grey ones it is the former.

    Raises:
        ModelFileError: it takes no images.
    """
    image = _image_among(inputs)
    if image is not None and are_images(image.shape):
        return image
    found = ", ".join(f"{t.name} {t.dtype} {t.shape_text}" for t in inputs) or "nothing"
    raise ModelFileError(
        f"{name} takes {found}\nexpected images, float32 (batch, 3, H, W), or grey (batch, 1, H, W)"
        f"{_advice(inputs)}"
    )


def image_of(name: str, inputs: tuple[TensorSpec, ...], known: Preprocessing | None) -> TensorSpec:
    """As `require_image`, or the bytes of a file that is ``known`` to take them, channels first.

    Raises:
        ModelFileError: it takes no images.
    """
    pixels = None if known is None else known.pixels
    if pixels is not None and inputs and inputs[0].dtype == pixels.dtype:
        first, is_last = inputs[0], pixels.layout == "nhwc"
        if is_last and are_channels_last(first.shape):
            return first.channels_first()
        if not is_last and are_images(first.shape):
            return first
    return require_image(name, inputs)


def preprocessing_of(card: Card, name: str, image: TensorSpec) -> Preprocessing:
    """What the file says, at the size of ``image`` (N, C, H, W); else what is assumed.

    Raises:
        UsageError: height or width is open, and the file does not say its size either.
        ModelFileError: what it says is for another number of channels.
    """
    if card.preprocessing is not None and any(isinstance(dim, str) for dim in image.shape[2:]):
        require_channels(card.preprocessing, image.shape[1])
        return card.preprocessing
    return as_written(card, assumed_preprocessing(name, image))


def side_inputs_of(source: OnnxArtifact, image: TensorSpec, given: Path | None) -> SideInputs:
    """Values for what ``source`` takes beside its images: those of a file, or noise.

    Raises:
        ModelFileError: they have not one entry for each image.
        UsageError: a file is given for a model of images alone; or there is none, and nobody can
            guess the values.
        DataError: the file does not fit.
    """
    require_per_image(source.inputs, image)
    if given is None:
        return SideInputs.noise(source.inputs, image)
    if len(source.inputs) == 1:
        raise UsageError(
            f"{source.path.name} takes images alone\n"
            f"leave out --side-inputs {given}: it is for models of several inputs"
        )
    return SideInputs.read(given, source.inputs, image)


def _advice(inputs: tuple[TensorSpec, ...]) -> str:
    """What to do about inputs that are no images, one line; nothing where nobody can tell."""
    for tensor in inputs:
        if tensor.dtype == "uint8":
            return "\nlet it begin after the division by 255: deploykit prepares the images itself"
        if tensor.dtype != "float32":
            return f"\nexport it with a float32 input, {tensor.name} is {tensor.dtype}"
        if are_channels_last(tensor.shape):
            return (
                "\nits channels are last; deploykit export makes a graph of it that takes them "
                "first: compare that"
            )
        if len(tensor.shape) == 3:  # noqa: PLR2004 - channels, height, width
            ends = [dim for dim in (tensor.shape[0], tensor.shape[-1]) if dim in (GREY, RGB)]
            missing, channels = ("batch", ends[0]) if ends else ("channel", GREY)
            like = f"torch.zeros(1, {channels}, H, W)"
            return f"\nit has no {missing} axis; export it with one: {like}"
    return ""


def assumed_preprocessing(
    name: str, image: TensorSpec, profile: ShapeProfile | None = None
) -> Preprocessing:
    """`Preprocessing.assumed` at the size of ``image``, for files that do not say theirs.

    ``profile`` says the size that an open height or width is prepared to.

    Raises:
        UsageError: one is open, and nothing says its size.
    """
    channels = GREY if image.shape[1] == GREY else RGB
    return Preprocessing.assumed(preferred_size(name, image, profile), channels)
