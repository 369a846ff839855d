"""The model card as one page without network, script or other file."""

from pathlib import Path

from client.pages import render
from client.prediction.card_sections import sections_of
from client.private_file import replace_private_file
from shared_models.model_file import TrainedModel
from shared_models.visible_text import visible


def card_page(model: TrainedModel) -> str:
    """Return the page. There is nothing of any single hospital or patient in it."""
    card = model.card
    return render(
        "prediction/card.html.jinja",
        title=visible(card.study.title),
        study_hash=card.study_hash,
        run_id=visible(card.run_id),
        digest=model.digest,
        sections=sections_of(model),
    )


def write_card_page(path: Path, model: TrainedModel) -> None:
    """Write the page, whole or not at all. Raises OSError."""
    replace_private_file(path, card_page(model).encode())
