"""Differences of outputs from a reference's, and the limits of each precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.core.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


NAN: Final = float("nan")

MIN_IMAGES_FOR_AGREEMENT: Final = 100
"""Below this, one image on a near tie would already be more than a percent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a candidate may be from its reference, and why that far."""

    max_relative: float
    min_cosine: float
    max_kl: float
    min_agreement: float
    reason: str


LIMITS: Final[Mapping[Precision, Limits]] = {
    Precision.FP32: Limits(
        max_relative=1e-3,
        min_cosine=0.99999,
        max_kl=1e-5,
        min_agreement=0.99,
        reason="same arithmetic, another order of summation: FP32 rounds at 6e-8, and a hundred "
        "layers of sums over thousands of terms stay well below 1e-3 of the largest logit",
    ),
    Precision.INT8: Limits(
        max_relative=0.5,
        min_cosine=0.95,
        max_kl=1.0,
        min_agreement=0.9,
        reason="eight bits are one part in 127 of each tensor's range, so single logits may move; "
        "what passes these limits is broken, what lies within them is judged by its accuracy",
    ),
    Precision.FP16: Limits(
        max_relative=2e-2,
        min_cosine=0.999,
        max_kl=1e-2,
        min_agreement=0.98,
        reason="FP16 rounds at 4.9e-4; errors of independent layers add as their square root, "
        "so a hundred layers come to 0.5 %, and four times that means something is broken",
    ),
}


@dataclass(frozen=True, slots=True)
class BatchComparison:
    """Candidate against reference on one batch of logits (N, K).

    ``max_relative`` is the largest error over the largest reference logit; ``min_cosine`` the
    worst image's; ``max_kl`` the worst image's Kullback-Leibler divergence of the softmax, in
    nats; ``agreement`` the share of images with the same top-1; ``flipped_margins`` the
    reference's lead of its first over its second class for each image whose top-1 changed.
    """

    batch: int
    max_abs: float
    mean_abs: float
    max_relative: float
    min_cosine: float
    max_kl: float
    agreement: float
    flipped_margins: tuple[float, ...]
    non_finite: int


def compare(candidate: Logits, reference: Logits) -> BatchComparison:
    """The figures of one batch of logits, each (N, K)."""
    left = candidate.reshape(len(candidate), -1).astype(np.float64)
    right = reference.reshape(len(reference), -1).astype(np.float64)
    bad = int(np.count_nonzero(~np.isfinite(left)) + np.count_nonzero(~np.isfinite(right)))
    if bad:
        return BatchComparison(len(left), NAN, NAN, NAN, NAN, NAN, 0.0, (), bad)
    error = np.abs(left - right)
    scale = float(np.abs(right).max())
    flipped = left.argmax(axis=1) != right.argmax(axis=1)
    return BatchComparison(
        batch=len(left),
        max_abs=float(error.max()),
        mean_abs=float(error.mean()),
        max_relative=float(error.max()) / scale if scale else float(error.max()),
        min_cosine=float(_cosine(left, right).min()),
        max_kl=float(kl_divergence(right, left).max()),
        agreement=float(1 - flipped.mean()),
        flipped_margins=tuple(float(m) for m in _margins(right)[flipped]),
        non_finite=0,
    )


def _cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = np.einsum("nk,nk->n", left, right)
    # Two zero vectors agree; one alone does not.
    equal = (left == right).all(axis=1)
    cosine: NDArray[np.float64] = np.where(equal, 1.0, dots / np.where(norms == 0, np.inf, norms))
    return cosine


def kl_divergence(expected: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(softmax(expected) || softmax(got)) of each row, in nats."""
    log_p, log_q = _log_softmax(expected), _log_softmax(got)
    divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(divergence, 0.0)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lead of the first class over the second; infinite where there is only one."""
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf)
    ordered = np.partition(logits, -2, axis=1)
    margins: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return margins


def problems_of(batch: BatchComparison, limits: Limits) -> list[str]:
    """What is beyond its limit, a sentence each; empty where the candidate passes."""
    where = f"at batch {batch.batch}"
    if batch.non_finite:
        return [f"{batch.non_finite} values are NaN or infinite {where}"]
    found = []
    if batch.max_relative > limits.max_relative:
        found.append(
            f"largest error is {batch.max_relative:.2e} of the largest logit {where}, "
            f"limit {limits.max_relative:.0e}"
        )
    if batch.min_cosine < limits.min_cosine:
        found.append(f"cosine {batch.min_cosine:.6f} {where}, limit {limits.min_cosine}")
    if batch.max_kl > limits.max_kl:
        found.append(f"KL divergence {batch.max_kl:.2e} nats {where}, limit {limits.max_kl:.0e}")
    if batch.batch >= MIN_IMAGES_FOR_AGREEMENT and batch.agreement < limits.min_agreement:
        found.append(f"top-1 agreement {batch.agreement:.2%} {where}, limit {limits.min_agreement}")
    return found
