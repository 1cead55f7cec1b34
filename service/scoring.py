"""The only path from rows to scores: every wire, the command line and the pages go through `Scorer`."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np

from service.batch import Batch, Floats, Scores
from service.errors import FeatureMismatchError
from service.models import LoadedModel
from service.wire.matrix import shown


class Scorer:
    """One model version: puts columns into its order, predicts, names who predicted."""

    def __init__(self, model: LoadedModel) -> None:
        self.identity = model.identity
        self.contract = model.predictor.contract
        self.predictor = model.predictor
        self._index = {name: i for i, name in enumerate(self.contract.feature_names)}

    def align(self, batch: Batch) -> None:
        """Put the columns into the model's order, or say which are missing, unknown, given twice or too many."""
        if batch.names is not None and batch.names != self.contract.feature_names:
            self._reorder(batch, batch.names)
        width = batch.values.shape[1]
        if width != self.contract.features:
            raise FeatureMismatchError(batch.place, f"expected {self.contract.features} values a row, got {width}")

    def _reorder(self, batch: Batch, names: tuple[str, ...]) -> None:
        if not self._index:
            raise FeatureMismatchError(
                batch.place, "this model has no feature names; expected each row as a list of numbers in its order"
            )
        faults = []
        missing = [name for name in self.contract.feature_names if name not in names]
        unknown = [name for name in names if name not in self._index]
        twice = [name for name, count in Counter(names).items() if count > 1]
        for what, found in (("missing", missing), ("unknown", unknown), ("given twice", twice)):
            if found:
                faults.append(f"{what}: {shown(found)}")
        if faults:
            raise FeatureMismatchError(batch.place, "; ".join(faults))
        order = np.empty(len(names), np.intp)
        order[[self._index[name] for name in names]] = np.arange(len(names))
        batch.values = np.ascontiguousarray(batch.values[:, order])
        batch.names = self.contract.feature_names

    def predict(self, batch: Batch) -> Scores:
        """Scores of an aligned batch."""
        return Scores(self.predict_rows(batch.values), self.identity)

    def predict_rows(self, rows: Floats) -> Floats:
        """Scores of rows whose columns are the model's, in its order."""
        return self.predictor.predict(rows)

    def margins(self, batch: Batch) -> Scores:
        """Margins of an aligned batch: its sums before the objective's transformation."""
        return Scores(self.predictor.margins(batch.values), self.identity)

    def predict_together(self, batches: list[Batch]) -> list[Scores]:
        """Scores of each of several aligned batches, predicted in one call."""
        values = self.predict_rows(np.concatenate([batch.values for batch in batches]))
        ends = list(accumulate(len(batch.values) for batch in batches))
        return [Scores(values[begin:end], self.identity) for begin, end in zip([0, *ends], ends, strict=False)]
