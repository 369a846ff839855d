"""What is written of readings beside the tables: the viewer, pictures, DICOM results."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from client.prediction.card_page import write_card_page
from client.prediction.dicom_results.numbering import Kind
from client.prediction.dicom_results.writer import DicomResults, NotWritten
from client.prediction.explained import Explained, ExplainedWriter, Pictures
from client.prediction.explanations.attribution import Attribution, ExplanationRefused, Method
from client.prediction.explanations.explainer import Explainer
from client.prediction.explanations.picture import picture
from client.prediction.page import CARD_NAME, Page
from client.prediction.reading import Reading, Unread
from shared_models.configuration import ConfigurationError
from shared_models.model_file import TrainedModel

PICTURES_NAME, RESULTS_NAME = "pictures", "dicom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to write beside the tables.

    Attributes:
        methods: of the maps, in this order; the first is in DICOM pictures.
        output: of which the maps are; without one the most probable of each reading.
        pictures: whether each map, and each reading with a mask, is a picture of its own.
        kinds: of DICOM results.
    """

    methods: tuple[Method, ...] = ()
    output: str | None = None
    pictures: bool = False
    kinds: tuple[Kind, ...] = ()


@dataclass(slots=True)
class Outputs:
    """The writer of all of it, the DICOM files it wrote, and why there are none of some readings."""

    writer: Explained
    results: "Results | None" = field(default=None)


class Results:
    """DICOM results as a writer: a reading that cannot have any is counted, and ends nothing.

    Attributes:
        written: all files so far.
        not_written: readings without results, by the sentence that says why.
    """

    def __init__(self, results: DicomResults, kinds: Sequence[Kind], structures: Sequence[str]) -> None:
        self._results, self._structures = results, tuple(structures)
        self._draws = Kind.PICTURE in kinds
        self.not_written: Counter[str] = Counter()

    @property
    def written(self) -> list[Path]:
        """Its files."""
        return self._results.files

    def write(self, reading: Reading, attributions: Sequence[Attribution] = ()) -> None:
        """Take a reading with its maps. Raises OSError."""
        drawn = None
        if self._draws:
            first = attributions[0] if attributions else None
            drawn = picture(reading, first, structures=self._structures)
        try:
            self._results.write(reading, drawn)
        except NotWritten as found:
            self.not_written[str(found)] += 1

    def left_out(self, unread: Unread) -> None:
        """There are no results of it."""

    def finish(self) -> None:
        """Write which file is of which input. Raises OSError."""
        self._results.finish()


@contextmanager
def opened_outputs(
    folder: Path, models: Sequence[TrainedModel], wanted: Wanted, *, device: torch.device, now: datetime
) -> Iterator[Outputs]:
    """Write into *folder*: the viewer and the model's card, and what is wanted beside them.

    What a call before left there of pictures and DICOM results is removed first.

    Args:
        folder: made with mode 0700 where it is not there.
        models: that the readings are of.
        wanted: beside the viewer.
        device: where maps are computed.
        now: UTC.

    Raises:
        ConfigurationError: maps or results cannot be made of such a model, or what makes them is not installed.
        OSError: the folder cannot be written.
    """
    if wanted.pictures and not wanted.methods and not models[0].task.dense:
        raise ConfigurationError("--pictures: of what? Give --explain grad-cam or --explain occlusion too")
    try:
        explainers = [Explainer(models, one, output=wanted.output, device=device) for one in wanted.methods]
    except ExplanationRefused as error:
        raise ConfigurationError(str(error)) from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, patterns in ((PICTURES_NAME, ("*.png",)), (RESULTS_NAME, ("*.dcm", "files.csv"))):
        for old in (path for pattern in patterns for path in (folder / name).glob(pattern)):
            old.unlink()
    structures = models[0].study.task.finding_names if models[0].task.dense else ()
    with ExitStack() as open_files:
        write_card_page(folder / CARD_NAME, models[0])
        writers: list[ExplainedWriter] = [open_files.enter_context(Page(folder, models, now=now))]
        if wanted.pictures:
            writers.append(Pictures(folder / PICTURES_NAME, structures=structures))
        results = None
        if wanted.kinds:
            dicom = DicomResults(folder / RESULTS_NAME, models, wanted.kinds)
            results = Results(dicom, wanted.kinds, structures)
            writers.append(results)
        yield Outputs(writer=Explained(explainers, writers), results=results)
