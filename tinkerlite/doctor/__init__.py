"""The examination behind `tinkerlite doctor`: what a backend can do, and how exactly it does it.

    for finding in examine(base_url=..., student="NAME", teacher="NAME"):
        print(finding.outcome, finding.says)

Works on any server of the protocol: what one cannot do is a finding, never an exception.
"""

from tinkerlite.doctor.examination import examine as examine
from tinkerlite.doctor.findings import Finding as Finding
from tinkerlite.doctor.findings import Outcome as Outcome

__all__ = ["Finding", "Outcome", "examine"]
