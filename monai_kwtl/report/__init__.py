"""What a person looks at after a selection: one overview picture and one self-contained HTML page."""

from __future__ import annotations

from monai_kwtl.report.overview import overview_picture
from monai_kwtl.report.page import write_report

__all__ = ["overview_picture", "write_report"]
