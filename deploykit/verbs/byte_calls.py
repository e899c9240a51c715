"""The look at a call that asks for a graph of bytes: is it said how these are normalised?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.core.deployed import require_normalisation

if TYPE_CHECKING:
    from torch import nn

    from deploykit.core.choices import PreprocessingChoices
    from deploykit.core.deployed import DeployedForm


def require_bytes(
    target: str | nn.Module, name: str | None, form: DeployedForm, look: PreprocessingChoices
) -> None:
    """Refuse what the call alone shows to lack a normalisation: a module, a file without a card.

    ``name`` is a module's. Of a definition it is known once it is looked up.

    Raises:
        UsageError: nobody said mean and deviation.
        ModelFileError: the file's own metadata are not as deploykit writes them.
    """
    if form.pixels is None or (look.mean is not None and look.std is not None):
        return
    if not isinstance(target, str):
        require_normalisation(name or type(target).__name__, look, known=False)
        return
    from deploykit.sources.kinds import kind_for

    path = Path(target)
    if kind_for(target).is_graph and path.is_file():
        from deploykit.graph.card import card_in

        require_normalisation(path.name, look, known=card_in(path).knows_normalisation)
