"""All that a report tells, however it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.folder import RunFolder
from autocompress.front import ParetoFront
from autocompress.layer import Layers
from autocompress.report.data import Report, report_of
from autocompress.report.decision import Decision, decision_of
from autocompress.report.evidence import Evidence, evidence_of
from autocompress.report.fine_print import Item, fine_print_of
from autocompress.report.landmarks import Landmark, landmarks
from autocompress.result import TrialResult


@dataclass(frozen=True)
class Contents:
    """What to decide, the trials, what else the run folder holds, and on what all that rests."""

    decision: Decision
    report: Report
    results: tuple[TrialResult, ...]
    evidence: Evidence
    landmarks: tuple[Landmark, ...]
    fine_print: tuple[Item, ...]


def contents_of(folder: RunFolder, front: ParetoFront, results: Sequence[TrialResult], layers: Layers, title: str) -> Contents:
    """Reads the folder for what `front` and `results` do not tell."""
    evidence = evidence_of(folder)
    marks = landmarks(evidence.rivals, results, front, layers)
    return Contents(
        decision=decision_of(front, folder),
        report=report_of(front, results, layers, title),
        results=tuple(results),
        evidence=evidence,
        landmarks=marks,
        fine_print=fine_print_of(front, results, evidence, marks),
    )
