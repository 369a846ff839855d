"""Which rows of a batch belong to which patient."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one physical batch, and whose they are.

    Attributes:
        num_rows: images in the batch.
        num_patients: patients in the batch.
        most_rows: of any patient.
        patient: int64, shape (num_rows,), each row's patient, 0..num_patients−1; None if row i is patient i.
    """

    num_rows: int
    num_patients: int
    most_rows: int = 1
    patient: Tensor | None = None

    @classmethod
    def of(cls, num_rows: int, patient: Tensor | None) -> "Rows":
        """Return the rows; *patient* numbers each row's patient from 0, or is None where each row is a patient.

        Raises:
            ValueError: *patient* has not one whole number, from 0, for each row.
        """
        if patient is None:
            return cls(num_rows, num_rows)
        if patient.shape != (num_rows,) or patient.dtype != torch.int64 or int(patient.min()) < 0:
            raise ValueError(
                f"patient has shape {tuple(patient.shape)} and type {patient.dtype}; it must number the patient of "
                f"each of the {num_rows} rows, int64 from 0"
            )
        return cls(num_rows, int(patient.max()) + 1, int(torch.bincount(patient).max()), patient)

    def summed(self, values: Tensor) -> Tensor:
        """Sum *values*, shape (rows, ...), over the rows of each patient: shape (patients, ...)."""
        if self.patient is None:
            return values
        return values.new_zeros(self.num_patients, *values.shape[1:]).index_add_(0, self.patient, values)

    def averaged(self, values: Tensor) -> Tensor:
        """Divide *values*, shape (rows,), by the number of rows of the row's patient."""
        return values if self.patient is None else values / torch.bincount(self.patient)[self.patient]

    def side_by_side(self, values: Tensor) -> Tensor:
        """Lay the positions of a patient's rows beside each other.

        A patient's gradient is the sum over rows and over positions alike, so that several rows are one row with
        more positions; where patients have different numbers of rows the missing ones are zero.

        Args:
            values: shape (rows, groups, features, positions).

        Returns:
            shape (patients, groups, features, most rows of a patient · positions).
        """
        if self.patient is None:
            return values
        order = torch.argsort(self.patient, stable=True)
        counts = torch.bincount(self.patient, minlength=self.num_patients)
        begins = torch.cumsum(counts, 0) - counts
        ordered = self.patient[order]
        rank = torch.arange(self.num_rows, device=order.device) - begins[ordered]
        most = int(counts.max())
        _, groups, features, positions = values.shape
        slots = values.new_zeros(self.num_patients * most, groups, features, positions)
        slots[ordered * most + rank] = values[order]
        slots = slots.view(self.num_patients, most, groups, features, positions)
        return slots.permute(0, 2, 3, 1, 4).reshape(self.num_patients, groups, features, most * positions)

    def of_each_row(self, values: Tensor) -> Tensor:
        """Give each row its patient's value: (patients,) to (rows,)."""
        return values if self.patient is None else values[self.patient]
