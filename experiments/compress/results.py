"""The numbers of a compression study as files."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from outliers.access import Decoder, Text
from outliers.table import write as write_parquet

TABLE = "compression.parquet"
INPUTS = "inputs.json"  # beside the results of a comparison's run: what they were made from


@dataclass(frozen=True)
class Subject:
    """What was studied on what: evaluated and calibrating are numbers of sequences."""

    decoder: Decoder
    text: Text
    evaluated: int
    calibrating: int

    @property
    def length(self) -> int:
        """Tokens a sequence."""
        return self.text.tokens.shape[1]

    def columns(self) -> dict[str, object]:
        """What every row of the files says of it."""
        return {
            "model": self.decoder.name,
            "step": self.decoder.step,
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "text": self.text.name,
            "sequences": self.evaluated,
            "length": self.length,
        }


def write(out: Path, table: pa.Table, subject: Subject) -> None:
    """DIR/compression.csv and DIR/compression.parquet: the same rows. An inputs.json of others goes."""
    (out / INPUTS).unlink(missing_ok=True)
    for name, value in reversed(subject.columns().items()):
        table = table.add_column(0, name, pa.array([value] * len(table)))
    write_parquet(out / TABLE, table)
    pa_csv.write_csv(table, out / "compression.csv")
