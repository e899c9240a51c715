"""Bundles in the way of an export: another model there, or engines that it does not make again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.bundle.manifest import MANIFEST, SIGNATURE, Bundle
from deploykit.core.artifacts import AMPERE_PLUS, ENGINE_SUFFIX
from deploykit.core.errors import BundleError, IntegrityError, first_line
from deploykit.core.precision import AUTO
from deploykit.precision.budget.frontier import BUDGET
from deploykit.sources.state_dict import IMAGENET, split_entry, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.backends import Compiler
    from deploykit.bundle.manifest import Manifest
    from deploykit.core.artifacts import EngineRecord
    from deploykit.core.environment import Gpu
    from deploykit.core.specs import ModelSpec
    from deploykit.sources.definition import SourceOptions

    Origin = Mapping[str, Any]

_WEIGHTS: Final = "weights"


def origin_of(model: Mapping[str, Any], weights: Mapping[str, Any]) -> Origin:
    """What a bundle is made from, by the records of its manifest.

    Two bundles of one origin are of one model. A graph is its file's content, whatever the file is
    called; a definition is its network, the choices that shape it, and its weights.
    """
    own = {_WEIGHTS: _weights_id(str(weights.get("source")), weights.get("sha256"))}
    if "num_classes" not in model:
        return own
    return {
        "network": model.get("name"),
        "classes": model.get("num_classes"),
        "input size": list(model.get("image_size", ())),
        "source": model.get("source_sha256"),
        **own,
    }


def origin_of_call(source: ModelSpec | Path, options: SourceOptions) -> Origin:
    """As `origin_of`, as far as the call alone shows it: without what is downloaded or built.

    Raises:
        ModelFileError: an ``.onnx`` file cannot be read.
        WeightsError: a file of weights cannot be read.
    """
    if isinstance(source, Path):
        from deploykit.graph import read_artifact

        return {_WEIGHTS: _weights_id(source.name, read_artifact(source).sha256)}
    known: dict[str, Any] = {
        "network": source.name,
        "classes": source.num_classes,
        "input size": list(source.inputs[0].shape[2:]),
        "source": source.source_sha256,
    }
    if options.weights is not None and options.weights != IMAGENET:
        path, entry = split_entry(options.weights)
        if path.is_file():  # whoever reads it says what is wrong with it
            mark = "" if entry is None else f"#{entry}"
            known[_WEIGHTS] = _weights_id(path.name + mark, weights_sha256(path))
    elif options.weights is None and source.weights_file is None and source.built_in is None:
        known[_WEIGHTS] = f"untrained, seed {options.seed}"
    return known


def _weights_id(source: str, sha256: str | None) -> str:
    """By content where there is a file; a checkpoint may hold several sets, of one hash."""
    _, mark, entry = source.partition("#")
    return source if sha256 is None else f"{sha256}{mark}{entry}"


@dataclass(frozen=True)
class Replacement:
    """The place of a new bundle, and what is known of the one that will be there."""

    place: Path
    asked: str
    """Name of the precision, or ``auto``."""
    compiler: Compiler | None
    gpus: Sequence[Gpu]
    allowed: bool
    """Whether the user said ``--replace``."""

    for_others: bool = False
    """Whether the new engine is for all GPUs from Ampere on."""

    def require(self, origin: Origin) -> str | None:
        """Refuse to replace what this export does not make again.

        Returns:
            What is replaced because the user allowed it, a sentence; ``None`` where nothing is
            lost.

        Raises:
            BundleError: another model, another precision or more engines stand there, and the
                user did not say ``--replace``.
        """
        if not (self.place / MANIFEST).is_file():
            return None
        try:
            bundle = Bundle.open(self.place)
        except (BundleError, IntegrityError) as error:
            engines = sorted(file.name for file in self.place.glob("*.engine"))
            what = f"a bundle that cannot be read ({first_line(error)}){_with_engines(engines)}"
            reasons = ["cannot be compared with it"]
        else:
            manifest = bundle.manifest
            engines = [record.file for record in manifest.engines]
            what = f"{manifest.name} of {manifest.created}{_with_engines(engines)}"
            reasons = self._reasons(bundle, origin)
        if not reasons:
            return None
        if not self.allowed:
            raise BundleError(
                f"{self.place} holds {what}\n"
                f"this export {' and '.join(reasons)}\n"
                "choose another place with -o FOLDER, or replace all of it: --replace"
            )
        return f"replaced {self.place}: {what}"

    def _reasons(self, bundle: Bundle, origin: Origin) -> list[str]:
        manifest = bundle.manifest
        reasons = []
        there = origin_of(manifest.model, manifest.weights)
        # An .onnx and a definition have little in common, not even where both are known.
        alike = ("network" in there) == ("network" in origin)
        differing = [key for key in origin if key in there and there[key] != origin[key]]
        if differing or not alike:
            named = f" ({', '.join(differing)})" if differing and alike else ""
            reasons.append(f"is of another model{named}")
        there_asked = AUTO if BUDGET in manifest.conversion else str(manifest.precision)
        if there_asked != self.asked:
            reasons.append(f"is {self.asked}, not {there_asked}")
        lost = [*self._lost(manifest.engines), *self._strangers(manifest)]
        if lost:
            reasons.append(f"does not make {', '.join(lost)} again")
        return reasons

    def _lost(self, engines: Sequence[EngineRecord]) -> list[str]:
        """Engines that the new bundle will not have: all but one of its own compiler and GPU."""
        again = next((record for record in engines if self._is_made_again(record)), None)
        return [record.file for record in engines if record is not again]

    def _strangers(self, manifest: Manifest) -> list[str]:
        """What else lies in the folder, and would go with it: another bundle, a user's own file.

        Engines that no manifest names are leftovers of a build that was killed.
        """
        known = {*manifest.files, MANIFEST, SIGNATURE}
        return sorted(
            path.name
            for path in self.place.iterdir()
            if path.name not in known
            and path.suffix != ENGINE_SUFFIX
            and not path.name.startswith(".")
        )

    def _is_made_again(self, record: EngineRecord) -> bool:
        if self.compiler is None or record.compiler != self.compiler.name:
            return False
        if self.for_others or record.hardware_compatibility == AMPERE_PLUS:
            return self.for_others and record.hardware_compatibility == AMPERE_PLUS
        here = {gpu.compute_capability for gpu in self.gpus}
        return self.compiler.is_portable or bool(here & set(record.compute_capabilities))


def _with_engines(engines: Sequence[str]) -> str:
    return f", with {', '.join(engines)}" if engines else ", without engines"
