"""Labels of faces, and how they are joined to faces and merged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facevae.errors import DataError
from facevae.system.files import digest

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labels:
    """Labels of N faces: `values` (N, A), NaN where unknown.

    A yes-or-no attribute has 1 and 0. An attribute whose name is in `continuous` has numbers in a
    unit of its own, such as years or degrees.
    """

    stems: list[str]
    names: list[str]
    values: Values
    continuous: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    """Columns of the table that are left out, being neither yes-or-no nor numbers."""

    @property
    def fingerprint(self) -> str:
        """Hash of the stems, names and values; it does not depend on the file or its format."""
        parts = ("\n".join(self.stems), "\n".join(self.names), self.values.tobytes())
        return digest(*parts)[:16]

    @property
    def is_continuous(self) -> npt.NDArray[np.bool_]:
        """Whether each attribute (A,) is a number and not yes-or-no."""
        return np.array([name in self.continuous for name in self.names], bool)

    def rows_for(self, stems: Sequence[str]) -> Values:
        """Labels (M, A) of faces with these stems; NaN where the table has none."""
        row_of = {stem: row for row, stem in enumerate(self.stems)}
        padded = np.vstack([self.values, np.full((1, len(self.names)), np.nan, np.float32)])
        rows: Values = padded[[row_of.get(stem, len(self.stems)) for stem in stems]]
        return rows

    def count_among(self, stems: Sequence[str]) -> int:
        """Number of faces with these stems that have labels. Raises `DataError` if none has."""
        known = set(self.stems)
        count = sum(stem in known for stem in stems)
        if not count:
            msg = f"--labels: none belongs to a face; faces are named like '{stems[0]}', labels like '{self.stems[0]}'"
            raise DataError(msg)
        return count

    def constant_for(self, stems: Sequence[str]) -> list[str]:
        """Names of attributes whose known labels do not vary over faces with these stems."""
        values = self.rows_for(stems)
        low = np.where(np.isnan(values), np.inf, values).min(0, initial=np.inf)
        high = np.where(np.isnan(values), -np.inf, values).max(0, initial=-np.inf)
        return [name for name, lo, hi in zip(self.names, low, high, strict=True) if not lo < hi]


def merged(tables: Sequence[Labels]) -> Labels:
    """Union of several tables; where two have a label for the same face, the later one wins."""
    stems = list(dict.fromkeys(stem for table in tables for stem in table.stems))
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    values = np.full((len(stems), len(names)), np.nan, np.float32)
    for table in tables:
        columns = [names.index(name) for name in table.names]
        found = table.rows_for(stems)
        known = ~np.isnan(found)
        values[:, columns] = np.where(known, found, values[:, columns])
    continuous = frozenset().union(*(table.continuous for table in tables))
    return Labels(stems, names, values, continuous, sum((t.ignored for t in tables), ()))
