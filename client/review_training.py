"""Of a review: what is trained, and on which of this hospital's images."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from client.index_report import Counts
from client.labels import LabelsError, columns_of
from client.review_quality import too_little, which_are_good
from client.review_sentences import Section, Sentence, ago, counted, plain, warning
from client.roles import Role
from client.site_file import Labels, SiteFile
from shared_models.architectures import outline
from shared_models.augmentation import Augmentation
from shared_models.initial_weights import WeightsError, read_weights
from shared_models.manifest import Manifest
from shared_models.study import Image, Model, Study, Training
from shared_models.visible_text import quoted

_ASPECT = {
    "pad": "the whole image is kept, and what is missing to that shape is filled with black",
    "crop": "the middle of the image is cut to that shape",
    "stretch": "the image is stretched or squeezed to that shape",
}


def network_in_words(model: Model) -> str:
    """Kind and width of the network, without a full stop."""
    if model.architecture == "scattering":
        return (
            f"The model is of the kind “{model.architecture}”: fixed filters of {counted(model.scales, 'size')} and "
            f"{model.angles} angles, which no image changes, and a weighted sum of what they show"
        )
    return (
        f"The model is a neural network of the kind “{model.architecture}”, width {model.width}"
        f"{', standardised weights' * model.weight_standardisation}"
    )


def what_is_trained(study: Study, weights: Path) -> Section:
    """The task, the model and how it is trained; *weights* is this site's folder of initial weights."""
    training, model = study.training, study.model
    built = outline(study)
    num_weights = Manifest.of(built).num_weights
    num_frozen = sum(weight.numel() for weight in built.parameters()) - num_weights
    return Section(
        title="What is trained",
        sentences=(
            plain(f"{quoted(study.title)}. The study is identified by its hash, {study.hash}."),
            plain(study.task.in_words),
            plain(
                f"{network_in_words(model)}: {num_weights:,} numbers (weights) that training adjusts. It is "
                "trained here, on this hospital's machine; all hospitals begin with the same public weights."
            ),
            *_initial(model, weights),
            *_frozen(model, num_frozen),
            plain(preparation_in_words(study.image)),
            plain(
                f"{_rounds(study)} In a step each training patient is drawn with probability {training.sample_rate:g}. "
                f"{_images_in_a_step(training)}{_altered(training.augmentation)}"
            ),
        ),
    )


def which_images(study: Study, file: SiteFile, counts: Counts | None, now: datetime) -> Section:
    """Where the images are, which of them are used, and for what."""
    return Section(
        title="On which of this hospital's images",
        sentences=(
            plain(
                f"Images below {file.images.folder}, of the kinds (DICOM Modality) "
                f"{', '.join(quoted(one) for one in study.image.modalities)}; everything else there is left out."
            ),
            _masks(file) if study.task.mask_values else _labels(file.labels, study),
            *which_are_good(study.quality, file),
            _roles(study),
            *_counts(study, file, counts, now),
        ),
    )


def _labels(labels: Labels, study: Study) -> Sentence:
    try:
        columns = columns_of(labels, study.task)
    except LabelsError as error:
        return warning(str(error))
    word = "column" if len(columns) == 1 else "columns"
    return plain(
        f"Labels from {labels.file}: {word} {quoted(*columns)}, found by {labels.key}. The file stays here."
    )


def _masks(file: SiteFile) -> Sentence:
    """Where masks are, and which images take part."""
    rows = (
        f"An image takes part if {file.labels.file} has a row for its {file.labels.key}, and if it has a mask"
    )
    if file.masks is None:
        return warning(
            f"{rows}; site.toml does not say where this hospital's masks are ([masks]). Without it the site refuses "
            "each run when it is opened."
        )
    how = (
        f"as the column {quoted(file.masks.column)} of that file says"
        if file.masks.column is not None
        else "of the same name, or drawn on it as the mask itself says"
    )
    return plain(
        f"{rows} below {file.masks.folder}, {how}. Neither the file nor a mask leaves this hospital."
    )


def _rounds(study: Study) -> str:
    training, aggregation = study.training, study.aggregation
    takes = f"Training takes {counted(training.num_rounds, 'round')}."
    if training.early_stopping is not None:
        takes += (
            " It ends earlier where the federation's validation gets no better "
            f"{counted(training.early_stopping, 'time')} in a row; only rounds that were made are charged."
        )
    if study.privacy.mode == "distributed":
        return (
            f"{takes} In each, all hospitals together make one step: each sends the sum of what its patients' images "
            "would change, and the server changes the model by the average over all patients."
        )
    weighed = (
        "each hospital counts the same"
        if aggregation.weights == "equal"
        else f"each hospital counts by its number of training patients, up to {aggregation.max_patients:,}"
    )
    return (
        f"{takes} In each, this hospital makes {counted(training.local_steps, 'step')} on its own images, "
        f"{counted(study.num_steps, 'step')} in all; then the hospitals' changes to the model are averaged ({weighed})."
    )


def _images_in_a_step(training: Training) -> str:
    if training.rows_per_patient == 1:
        return "Of a patient who is drawn, one image is taken at random."
    most, copies = training.images_per_patient, training.augmentations
    images = "one image is" if most == 1 else f"up to {most} images are"
    in_copies = f", each in {copies} copies that are altered independently" if copies > 1 else ""
    return (
        f"Of a patient who is drawn, {images} taken at random{in_copies}. What they would change is averaged, so that "
        "the patient counts once, however many images there are."
    )


def _altered(augmentation: Augmentation) -> str:
    """What happens to an image before a step; nothing where it stays as it is."""
    ways = [
        words
        for words, used in (
            ("mirrored", augmentation.flip),
            ("turned, shifted, scaled or sheared", augmentation.moves),
            ("made brighter, darker, flatter or noisier", augmentation.changes_levels),
        )
        if used
    ]
    return f" For each step images are altered at random, each by itself: {'; '.join(ways)}." if ways else ""


def _initial(model: Model, folder: Path) -> tuple[Sentence, ...]:
    """Where the weights come from that training begins with; a warning where this site does not have them."""
    if model.weights is None:
        return ()
    told = plain(
        f"Training begins with the weights of {model.weights.file} (SHA-256 {model.weights.sha256}). The study says of "
        f"them: {quoted(model.weights.origin)}. This study's promise is not about those they were trained on."
    )
    try:
        read_weights(model.weights, folder)
    except WeightsError as error:
        return told, warning(f"Until this is mended the site refuses each run: {error}")
    return (told,)


def _frozen(model: Model, num_frozen: int) -> tuple[Sentence, ...]:
    if not num_frozen:
        return ()
    made = "seed made them at random" if model.weights is None else "file has them"
    part = "last layer is"
    if model.trainable == "last-block":
        several = model.last_blocks > 1
        part = f"last {f'{model.last_blocks} blocks' if several else 'block'} of layers and what follows are"
    return (
        plain(
            f"Only the {part} trained. The other {num_frozen:,} numbers stay as the study's {made}, "
            "here and everywhere."
        ),
    )


def preparation_in_words(image: Image) -> str:
    """How an image becomes what enters the network, in sentences."""
    if image.channels == 3:
        levels = "Colour images are used, grey ones left out"
    else:
        whose = "image's" if image.depth is None else "volume's"
        how = {
            "window": "by the window that the image itself names, as on a viewing station",
            "percentiles": f"from the {whose} percentile {image.low_percentile:g} (black) to {image.high_percentile:g} "
            "(white)",
            "full-range": "over the full range that its bits allow",
            "hounsfield": f"by the study's own window over CT numbers, center {image.window_center or 0:g} and width "
            f"{image.window_width or 0:g} Hounsfield units",
        }[image.intensity]
        levels = f"Grey images are used, colour ones left out; grey values are scaled {how}"
    if image.depth is not None:
        return (
            f"An image is a whole series of slices (CT, MR), brought to {image.depth} slices of {image.rows} × "
            f"{image.columns} pixels along the patient's axes: {image.slice_spacing:g} mm from slice to slice, "
            f"{image.spacing or 0:g} mm from pixel to pixel; what is larger is cut, what is smaller is filled up "
            f"with black. {levels}. A series with a gap, with two different slices at one place or with a slice "
            "that cannot be used is left out as a whole."
        )
    shape = _ASPECT[image.aspect]
    if image.spacing is not None:
        shape = (
            f"of {image.spacing:g} mm each; what is larger is cut, what is smaller is filled up with black, and images "
            "that do not tell the size of their pixels are left out"
        )
    turned = (
        " An image whose header says that it lies on its side or is mirrored is turned upright, or left out."
        if image.orientation == "standard"
        else ""
    )
    frames = " Of an image of several frames the middle one is used." if image.frames == "middle" else ""
    return (
        f"Each image is prepared by itself: brought to {image.rows} × {image.columns} pixels "
        f"({shape}). {levels}.{turned}{frames}"
    )


def _roles(study: Study) -> Sentence:
    patients = study.patients
    if patients.roles == "column":
        return plain(
            "Each patient has one role, training, validation or test, as the column “role” of the labels file says."
        )
    validation, test = patients.validation_fraction, patients.test_fraction
    return plain(
        f"Each patient has one role, drawn by a secret of this hospital: about {1 - validation - test:.0%} train the "
        f"model, {validation:.0%} validate it, {test:.0%} test it."
    )


def _counts(study: Study, file: SiteFile, counts: Counts | None, now: datetime) -> Iterator[Sentence]:
    if counts is None:
        yield plain(
            "How many patients and images that is, is not counted yet for this study: collegium-client index --study "
            "FILE, with this proposal as FILE, tells it, and the review then says it here."
        )
        return
    train = counts.num_patients[Role.TRAIN]
    used = (
        f"{counts.num_images:,} of {counts.num_files:,} files can be used"
        if study.image.depth is None
        else f"{counted(counts.num_images, 'volume')} can be used of {counts.num_files:,} files"
    )
    yield plain(
        f"Counted {ago(counts.time, now)}: {used}. Patients: "
        f"{train:,} for training, {counts.num_patients[Role.VALIDATION]:,} for validation, "
        f"{counts.num_patients[Role.TEST]:,} for the test."
    )
    least = max(study.patients.min_training, file.policy.min_patients)
    if train < least:
        yield warning(
            f"{train:,} training patients are too few: the study asks for {study.patients.min_training:,} "
            f"(patients.min_training), this hospital for {file.policy.min_patients:,} (policy.min_patients). With "
            "these images the site refuses each run when it is opened."
        )
    if counts.unusable_share > file.policy.max_unusable_share:
        yield warning(
            f"{counts.unusable_share:.1%} of the files cannot be used, and policy.max_unusable_share allows "
            f"{file.policy.max_unusable_share:.1%}. With these images the site refuses each run when it is opened."
        )
    yield from too_little(study.quality, counts)
    most = study.privacy.num_patients
    if most is not None and train > most:
        yield warning(
            f"The study takes its δ for {most:,} training patients of all hospitals together "
            f"(privacy.num_patients), and this hospital alone has {train:,}: take the promise below as weak."
        )
