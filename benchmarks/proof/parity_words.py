"""A comparison in sentences, for the command line and for the report."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from fundus_rt.benchmarks.proof.parity import Parity
from fundus_rt.benchmarks.proof.parity_evidence import Evidence
from fundus_rt.benchmarks.proof.parity_figures import OutputFigures
from fundus_rt.models.registry import EXAMPLE_FOLDER
from fundus_rt.runtime.exact_bounds import rate_in_words

NAMED = 5
"""Photographs that the command line names for each thing; the report has more."""
ROUNDING_OF_SPREAD = 1e-5
"""Differences below this share of the answers' standard deviation are float32's rounding; the photographs are not named."""


def lines(parity: Parity, more: Evidence) -> list[str]:
    """The comparison for the command line, one line a fact, the verdict last."""
    found = [*setting(parity), *counted(parity)]
    for one in parity.figures:
        found += [str(one.agreement), *(f"  {line}" for line in named(parity, one))]
    found += unanswered(parity, NAMED)
    if more.split is not None:
        found.append(f"stage by stage, on {len(more.split.photographs)} photographs:")
        found += [f"  {sentence}" for sentence in more.split.sentences()]
    found += [*half_precision(more), *causes(more), *kept(parity, more), timing(parity)]
    found.append(f"{'PASSED' if parity.passed else 'FAILED'}: {verdict(parity)}")
    return [line for line in found if line]


def setting(parity: Parity) -> list[str]:
    """What was held against what."""
    backend = parity.backend
    provider = f", {backend.provider}" if backend.provider else ""
    found = [
        f"{parity.call.checkpoint.name} (sha256 {parity.original.checkpoint_sha256[:16]}): {parity.original.description}",
        f"{Path(parity.call.file).name} (sha256 {parity.identity.sha256[:16]}, {parity.identity.precision}): {backend.name} "
        f"{backend.version} on {backend.device}{provider}",
        f"the author's side follows {parity.author.origin}",
    ]
    found += [f"  in the file's own card, {difference}" for difference in parity.author.differences]
    found += [f"  {sentence}" for sentence in parity.author.taken]
    if other := parity.other_checkpoint():
        found.append(other)
    return found


def counted(parity: Parity) -> list[str]:
    """How many photographs there were, and what became of them."""
    answered, failed = len(parity.answered.offsets), len(parity.answered.failed)
    copies = f"; {parity.copies} more were copies of others" if parity.copies else ""
    return [f"{answered + failed} photographs, {answered} answered by both sides{copies}"]


def named(parity: Parity, one: OutputFigures) -> list[str]:
    """Photographs of one output that are worth looking at."""
    found = [f"decided otherwise: {_decided(parity, one, index)}" for index in one.agreement.changed[:NAMED]]
    if len(one.agreement.changed) > NAMED:
        found.append(f"decided otherwise: {len(one.agreement.changed) - NAMED} more")
    within = one.within_reach()
    if one.original_decisions and not within:
        nearest = one.nearest(1)
        margin = f", the nearest is {one.margins[nearest[0]]:.2g} away" if nearest else ""
        found.append(f"no photograph is as near to an operating point as the largest difference{margin}")
    for index in within[:NAMED]:
        found.append(f"near an operating point: {_file(parity, index)}, {one.margins[index]:.2g} away")
    if len(within) > NAMED:
        found.append(f"near an operating point: {len(within) - NAMED} more")
    if one.agreement.largest_of_spread > ROUNDING_OF_SPREAD:
        for index in one.agreement.worst[:NAMED] if not one.agreement.passed else one.agreement.worst[:1]:
            found.append(f"largest difference: {_file(parity, index)}, {_both(one, index)}")
    return found


def unanswered(parity: Parity, most: int) -> list[str]:
    """Photographs that a side could not answer."""
    count = len(parity.answered.failed)
    found = [f"not answered: {row['file']}: {row['error']}" for row in itertools.islice(parity.answered.failures(), most)]
    return found + ([f"not answered: {count - most} more"] if count > most else [])


def half_precision(more: Evidence) -> list[str]:
    """What the emulation of half precision found."""
    if not more.half:
        return []
    count = more.half_photographs
    found = [f"this CPU computes half precision in float32, so it was judged by an emulation on {count} photographs:"]
    found += [f"  {one}" for one in more.half]
    return found + ([f"  {sentence}" for sentence in more.ranges.sentences()] if more.ranges else [])


def causes(more: Evidence) -> list[str]:
    """Which single mistake, and which node, explain a failure."""
    from fundus_rt.benchmarks.proof.explanations import sentences

    found = list(sentences(more.explained))
    if more.located is not None:
        found += more.located.sentences()
    elif more.looked_for_node:
        found.append("no node of the graph leaves its budget on the photographs that were looked at")
    elif more.not_located:
        found.append(f"no node was looked for: {more.not_located}")
    return found


def kept(parity: Parity, more: Evidence) -> list[str]:
    """What was written beside the file."""
    found = []
    if more.kept.reference is not None:
        public = parity.call.list_file is None and parity.call.images == (str(EXAMPLE_FOLDER),)
        whose = "the package's own examples, which are public" if public else "keep the file as you keep patients' data"
        found.append(f"wrote {more.kept.reference.name}: it contains the pixels of {more.kept.in_reference} photographs; {whose}")
    if more.kept.issued is not None:
        certificate = more.kept.issued.certificate
        found.append(
            f"certificate {certificate.verdict} for {certificate.backend} {certificate.version} on {certificate.device}: "
            f"{more.kept.issued.path.name}"
        )
        found += [f"  {problem}" for problem in certificate.problems]
    if more.kept.not_issued:
        found.append(f"no certificate: {more.kept.not_issued}")
    return found


def timing(parity: Parity) -> str:
    """Milliseconds a photograph, and memory."""
    if not len(parity.answered.milliseconds):
        return ""
    theirs, ours = parity.answered.milliseconds.T
    asked = theirs[np.isfinite(theirs)]
    known = len(theirs) - len(asked)
    original = f"{np.mean(asked):.0f} ms on the original's side, " if len(asked) else ""
    before = f"; {known} of the original's answers were kept from before" if known else ""
    memory = "" if parity.peak_memory is None else f"; peak memory {parity.peak_memory / 2**30:.1f} GiB"
    return f"a photograph took {original}{np.mean(ours):.0f} ms on the file's{before}{memory}"


def verdict(parity: Parity) -> str:
    """The outcome in one sentence."""
    if parity.problems:
        return f"the file does not answer as the original does. {'; '.join(parity.problems)}"
    parts = []
    for one in parity.figures:
        found = one.agreement
        what = "decisions changed" if found.decisions_changed is not None else f"answers beyond {found.tolerance:g} {found.unit}"
        parts.append(f"{found.name}: {rate_in_words(0, found.photographs, what)}")
    own = " by what its own card says of preprocessing, labels and operating points, for nobody else said it"
    return f"the file answers as the original does{own if parity.author.is_own else ''}. {'; '.join(parts)}"


def _file(parity: Parity, index: int) -> str:
    return str(parity.answered.row(index)["file"])


def _both(one: OutputFigures, index: int) -> str:
    """The original's answer and the file's, in the column where they differ most."""
    column = int(np.abs(one.ours[index] - one.original[index]).argmax())
    what = f" for {label(one, column)}" if one.output.labels else f" {one.output.unit}"
    return f"{one.original[index, column]:.6g} became {one.ours[index, column]:.6g}{what}"


def _decided(parity: Parity, one: OutputFigures, index: int) -> str:
    before, after = one.original_decisions[index], one.decisions[index]
    return f"{_file(parity, index)}, {before!r} became {after!r} ({_both(one, index)})"


def label(one: OutputFigures, column: int) -> str:
    """Whose probability a column is; the only one of a binary output is the second label's."""
    return one.output.labels[-1 if one.original.shape[1] == 1 else column]
