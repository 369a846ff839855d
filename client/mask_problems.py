"""Why a mask cannot be used: each problem with its sentence and its remedy."""

from enum import Enum


class MaskProblem(Enum):
    """Why a mask is not used, and its image not for segmentation."""

    UNREADABLE = (
        "mask-unreadable",
        "It cannot be read as what its name says it is, or is damaged.",
        "Export it again.",
    )
    UNSUPPORTED = (
        "mask-unsupported",
        "It is of a kind that is not read here.",
        "Save it as DICOM SEG, as NIfTI-1 in one file (.nii, .nii.gz), or for a plane image as grey PNG.",
    )
    TOO_LARGE = (
        "mask-too-large",
        "It is larger than any mask is.",
        "Do not trust the file; export it again from its source.",
    )
    OTHER_SIZE = (
        "mask-other-size",
        "It has another number of rows, columns or slices than its image.",
        "Draw or export it on the pixels of the image itself.",
    )
    ELSEWHERE = (
        "mask-elsewhere",
        "It does not lie where its image lies, or does not say where it lies.",
        "Draw or export it on the image itself, with its geometry.",
    )
    OF_ANOTHER_IMAGE = (
        "mask-of-another-image",
        "It says that it was drawn on another image.",
        "Pair it with the image that it names.",
    )

    def __init__(self, code: str, sentence: str, remedy: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy


class MaskUnusable(Exception):
    """A mask cannot be used. Holds the problem and a detail of numbers and attribute names, no identifiers."""

    def __init__(self, problem: MaskProblem, detail: str = "") -> None:
        super().__init__(f"{problem.sentence} {detail}".rstrip())
        self.problem = problem
        self.detail = detail
