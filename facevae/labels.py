"""A table of what faces have."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facevae.errors import DataError
from facevae.files import digest

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labels:
    """A table of labels: `values` (N, A), NaN where not known.

    A yes-or-no attribute has 1 and 0; one whose name is in `continuous` has numbers in a unit of
    its own, like years or degrees.
    """

    stems: list[str]
    names: list[str]
    values: Values
    continuous: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    """Columns that are neither, and so are left out."""

    @property
    def fingerprint(self) -> str:
        """The same for the same labels, wherever they are kept."""
        parts = ("\n".join(self.stems), "\n".join(self.names), self.values.tobytes())
        return digest(*parts)[:16]

    @property
    def is_continuous(self) -> npt.NDArray[np.bool_]:
        """Which attributes are numbers rather than yes or no, (A,)."""
        return np.array([name in self.continuous for name in self.names], bool)

    def rows_for(self, stems: Sequence[str]) -> Values:
        """The labels of faces with these stems, (M, A); NaN where the table has none."""
        row_of = {stem: row for row, stem in enumerate(self.stems)}
        padded = np.vstack([self.values, np.full((1, len(self.names)), np.nan, np.float32)])
        rows: Values = padded[[row_of.get(stem, len(self.stems)) for stem in stems]]
        return rows

    def count_among(self, stems: Sequence[str]) -> int:
        """How many faces with these stems have labels. Raises `DataError` where none has."""
        known = set(self.stems)
        count = sum(stem in known for stem in stems)
        if not count:
            msg = f"--labels: none belongs to a face; faces are named like '{stems[0]}', labels like '{self.stems[0]}'"
            raise DataError(msg)
        return count

    def constant_for(self, stems: Sequence[str]) -> list[str]:
        """The names of attributes in which faces with these stems do not differ, as far as is known."""
        values = self.rows_for(stems)
        low = np.where(np.isnan(values), np.inf, values).min(0, initial=np.inf)
        high = np.where(np.isnan(values), -np.inf, values).max(0, initial=-np.inf)
        return [name for name, lo, hi in zip(self.names, low, high, strict=True) if not lo < hi]


def merged(tables: Sequence[Labels]) -> Labels:
    """All labels of several tables; where two know the same of a face, the later one counts."""
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
