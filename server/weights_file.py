"""The file of initial weights at the server: beside the proposal, and in the folder of each run."""

import shutil
from pathlib import Path

from shared_models.study import Study


def check_weights(study: Study, folder: Path) -> None:
    """Check the file of initial weights that the study names, if it does.

    Raises:
        WeightsError: it is not in *folder*, is another one, or does not fit the model.
    """
    if study.model.weights is None:
        return
    from shared_models.architectures import build_model

    build_model(study, folder)


def bring_weights(study: Study, source: Path | None, folder: Path) -> None:
    """Copy that file, once it is checked, from *source* into *folder*, where a run looks for it."""
    if study.model.weights is None or source is None:
        return
    check_weights(study, source)
    folder.mkdir(parents=True, exist_ok=True)
    name = study.model.weights.file
    shutil.copyfile(source / name, folder / name)
