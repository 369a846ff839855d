"""Why a file or a row of the labels file is not used: each reason with its sentence and its remedy.

These two tables are the only place where the reasons stand; the index report and the documents are made
from them.
"""

from enum import Enum


class Reason(Enum):
    """Why a file of the images folder is left out."""

    NOT_A_FILE = (
        "not-a-file",
        "It is a link to a folder, a broken link, a pipe or a device.",
        "Put the files themselves into the images folder, or name the linked folder in site.toml.",
    )
    NOT_READABLE = (
        "not-readable",
        "The operating system does not let the site read it.",
        "Check its owner and mode, and the disk or share that it lies on.",
    )
    NOT_DICOM = (
        "not-dicom",
        "It is not a DICOM file: the prefix DICM is missing at byte 128 (PS3.10 section 7.1).",
        "Move it elsewhere; if it is DICOM without the file header, store it again as DICOM Part 10.",
    )
    BROKEN_HEADER = (
        "broken-header",
        "Its header cannot be parsed.",
        "Export the file again from its source.",
    )
    TOO_DEEP = (
        "too-deep",
        "Its sequences are nested too deeply to be parsed.",
        "Do not trust the file; export it again from its source.",
    )
    WITHDRAWN = (
        "withdrawn",
        "Its patient withdrew.",
        "Nothing to do; it does not count as unusable.",
    )
    NOT_AN_IMAGE = (
        "not-an-image",
        "It is DICOM but no image, such as an RT plan or a structured report.",
        "Nothing to do; keep only images in the folder if it should not count.",
    )
    DICOMDIR = (
        "dicomdir",
        "It is a DICOMDIR, the table of contents of an export.",
        "Nothing to do; it does not count as unusable.",
    )
    MISSING_FILE = (
        "missing-file",
        "A DICOMDIR names it, and it is not there.",
        "Copy the export again, with all its folders; or remove the DICOMDIR if only a part is wanted.",
    )
    OTHER_MODALITY = (
        "other-modality",
        "Its Modality (0008,0060) is not one of the study's.",
        "Nothing to do; keep only the study's modalities in the folder if it should not count.",
    )
    MISSING_IDENTIFIER = (
        "missing-identifier",
        "An identifier is empty that is needed to know its patient, its study, itself or its label.",
        "Export the file again with its identifiers (they stay at the site).",
    )
    TRUNCATED = (
        "truncated",
        "It is an image whose pixel data are missing or end too early.",
        "Copy or export the file again.",
    )
    BAD_ATTRIBUTE = (
        "bad-attribute",
        "An attribute that describes its pixels is missing, or has a value that cannot be.",
        "Export the file again; if the source writes it so, report it to the source's maker.",
    )
    TOO_LARGE = (
        "too-large",
        "It claims more pixel data than any single image has.",
        "Do not trust the file; export it again from its source.",
    )
    MULTI_FRAME = (
        "multi-frame",
        "It holds several frames, and the study takes images of one frame.",
        'Export the frame that matters as an image of its own, or agree on image.frames = "middle" in the study.',
    )
    CHANNEL_MISMATCH = (
        "channel-mismatch",
        "It is in colour where the study wants grey, or grey where the study wants colour.",
        "Keep such images out of the folder.",
    )
    UNSUPPORTED_PIXELS = (
        "unsupported-pixels",
        "Its kind of pixel data is not supported (such as 64-bit integers or an unusual colour space).",
        "Convert it to integers of 8, 16 or 32 bits in grey, RGB, YBR_FULL or palette colour.",
    )
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "unsupported-transfer-syntax",
        "Its compression cannot be decoded here.",
        "Convert it without loss to Explicit VR Little Endian or JPEG 2000.",
    )
    UNDECODABLE = (
        "undecodable",
        "Its pixel data cannot be decoded.",
        "Export the file again; open it in a viewer to see whether it is damaged.",
    )
    NO_VOLUME = (
        "no-volume",
        "The slices of its series do not make one volume.",
        "Export each series by itself, with one image at each place; keep localizers out of the folder.",
    )
    MISSING_SLICE = (
        "missing-slice",
        "A slice of its series is missing.",
        "Export the whole series again from its source.",
    )
    DECODER_CRASHED = (
        "decoder-crashed",
        "The process that decodes ended while it worked on it; the other files are not concerned.",
        "Do not trust the file; export it again from its source, without compression if it happens again.",
    )
    TOO_SLOW = (
        "too-slow",
        "It takes longer to decode than a file may.",
        "Do not trust the file; export it again from its source, without compression if it happens again.",
    )
    TOO_MUCH_MEMORY = (
        "too-much-memory",
        "It takes more memory to decode than a file may.",
        "Export it in fewer pixels or frames; where it claims to be a usual image, do not trust it.",
    )
    NOT_HOUNSFIELD = (
        "not-hounsfield",
        "The study wants CT in Hounsfield units, and its header does not say that its values can be brought to them.",
        "Keep localizers and derived images out of the folder; export the original images with their rescaling.",
    )
    NO_SPACING = (
        "no-spacing",
        "The study wants a certain size of pixels, and its header does not say how large its own are.",
        "Export the image with Pixel Spacing (0028,0030) or Imager Pixel Spacing (0018,1164).",
    )
    ORIENTATION = (
        "orientation",
        "Its header says that it does not lie as the study wants, and not clearly enough how to turn it.",
        "Correct Patient Orientation (0020,0020) at the source, or export the image upright.",
    )
    OTHER_VIEW = (
        "other-view",
        "Its View Position (0018,5101) is not one of the study's, or is empty and the study wants it stated.",
        "Nothing to do; keep only the study's views in the folder if it should not count.",
    )
    OTHER_BODY_PART = (
        "other-body-part",
        "Its Body Part Examined (0018,0015) is not one of the study's, or is empty and the study wants it stated.",
        "Nothing to do; keep only the study's body parts in the folder if it should not count.",
    )
    OTHER_PHOTOMETRIC = (
        "other-photometric",
        "Its Photometric Interpretation (0028,0004) is not one of the study's.",
        "Export the original image instead of a converted one; keep others out of the folder.",
    )
    WRONG_SIZE = (
        "wrong-size",
        "It has fewer or more rows or columns than the study allows.",
        "Export the original image instead of a preview or a printed page; keep others out of the folder.",
    )
    BURNED_IN = (
        "burned-in",
        "Its header says that text in the picture identifies the patient, or the study wants the contrary stated.",
        "Export the image without annotations; do not just change the flag Burned In Annotation (0028,0301).",
    )
    NOT_DEIDENTIFIED = (
        "not-deidentified",
        "Its header still holds what can identify somebody, and this site uses de-identified files only.",
        "De-identify the export by the Basic Profile of PS3.15, or set quality.identifiers in site.toml.",
    )
    BLANK = (
        "blank",
        "All its pixels have one value.",
        "Look whether the exposure failed or the export lost the pixels; export the image again.",
    )
    SATURATED = (
        "saturated",
        "More of its pixels have its lowest or its highest value than the study allows.",
        "Look whether it is over-exposed, a mask or a screenshot; export the original image.",
    )
    DUPLICATE = (
        "duplicate",
        "A file with the same SOPInstanceUID (0008,0018) and other content is already used.",
        "Find out which of the two is right, and keep that one.",
    )
    DUPLICATE_FILE = (
        "duplicate-file",
        "The same file, byte for byte, is already used.",
        "Remove one of the copies.",
    )
    DUPLICATE_PIXELS = (
        "duplicate-pixels",
        "Another image of its patient with the same pixels is already used.",
        "Remove one of the copies.",
    )
    TWO_PATIENTS = (
        "two-patients",
        "The same image is there under another Patient ID as well; nobody knows whose it is.",
        "Find out whose image it is, and remove the other; merge the two if they are one patient.",
    )
    PATIENT_CONFLICT = (
        "patient-conflict",
        "Files of its Patient ID name different birth dates or sexes, and this site leaves such patients out.",
        "Find out whether two patients share the Patient ID, and correct the files at their source.",
    )
    TWO_IDS = (
        "two-ids",
        "Its patient seems to have another Patient ID as well, and this site leaves such patients out.",
        "Find out whether they are one patient, and give all files the same Patient ID.",
    )
    NO_LABEL = (
        "no-label",
        "The labels file has no row for it.",
        "Add its row, or keep it out of the folder.",
    )
    LABEL_EMPTY = (
        "label-empty",
        "Its row of the labels file has no label.",
        "Fill in the label, or keep the image out of the folder.",
    )
    LABEL_UNKNOWN = (
        "label-unknown",
        "Its label is none of the values that the study names.",
        "Correct the label, or keep the image out of the folder if the study does not want it.",
    )
    LABEL_CONTRADICTORY = (
        "label-contradictory",
        "The labels file has several rows for it that contradict each other.",
        "Keep the right row.",
    )
    NO_MASK = (
        "no-mask",
        "The study learns from masks, and there is none for it.",
        "Add its mask, an empty one where nothing is to be marked; names and numbers must fit (see Masks).",
    )
    SEVERAL_MASKS = (
        "several-masks",
        "There are several masks for it.",
        "Keep one; where structures lie in several files, save them as one mask.",
    )
    MASK_UNREADABLE = (
        "mask-unreadable",
        "Its mask cannot be read as what its name says it is, or is damaged.",
        "Export the mask again.",
    )
    MASK_UNSUPPORTED = (
        "mask-unsupported",
        "Its mask is of a kind that is not read here.",
        "Save it as DICOM SEG, as NIfTI-1 in one file (.nii, .nii.gz), or for a plane image as grey PNG.",
    )
    MASK_TOO_LARGE = (
        "mask-too-large",
        "Its mask is larger than any mask is.",
        "Do not trust the file; export the mask again from its source.",
    )
    MASK_OTHER_SIZE = (
        "mask-other-size",
        "Its mask has another number of rows, columns or slices than the image.",
        "Draw or export the mask on the pixels of the image itself.",
    )
    MASK_ELSEWHERE = (
        "mask-elsewhere",
        "Its mask does not lie where the image lies, or does not say where it lies.",
        "Draw or export the mask on the image itself, with its geometry.",
    )
    MASK_OF_ANOTHER_IMAGE = (
        "mask-of-another-image",
        "Its mask says that it was drawn on another image.",
        "Pair the mask with the image that it names.",
    )
    MASK_OTHER_VALUES = (
        "mask-other-values",
        "Something is marked in its mask, but nothing by a value that the study names.",
        "Compare the values of the mask, or the segment numbers of a SEG, with the study's; correct the mask.",
    )
    ROLE_MISSING = (
        "role-missing",
        "The study takes roles from the labels file, and its row has none of train, validation, test.",
        "Fill in the column role.",
    )
    ROLE_CONTRADICTORY = (
        "role-contradictory",
        "The labels file gives its patient more than one role.",
        "Give all rows of one patient the same role.",
    )

    def __init__(self, code: str, sentence: str, remedy: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy


class LabelProblem(Enum):
    """What is wrong with a row, or with the rows of one key, of the labels file."""

    WRONG_LENGTH = (
        "wrong-length",
        "The row has more or fewer cells than the header.",
        "Correct the row; cells that contain the delimiter must be quoted.",
    )
    EMPTY_KEY = ("empty-key", "The key column of the row is empty.", "Fill in the key, or remove the row.")
    EMPTY_LABEL = ("empty-label", "The row has no label.", "Fill in the label, or remove the row.")
    UNKNOWN_LABEL = (
        "unknown-label",
        "The label is none of the values that the study names.",
        "Correct the label; upper and lower case count.",
    )
    EMPTY_FINDING = (
        "empty-finding",
        "A finding's column of the row is empty; that finding counts as not known.",
        "Fill in the cell where the finding is known.",
    )
    UNKNOWN_FINDING = (
        "unknown-finding",
        "A finding's column has none of the values that the study names; that finding counts as not known.",
        "Correct the cell where the finding is known; upper and lower case count.",
    )
    CONTRADICTORY_FINDING = (
        "contradictory-finding",
        "An earlier row for the same key says something else of a finding; that finding counts as not known.",
        "Keep the right row.",
    )
    UNKNOWN_ROLE = (
        "unknown-role",
        "The column role of the row is none of train, validation, test.",
        "Correct the role.",
    )
    REPEATED = (
        "repeated",
        "An earlier row for the same key says the same.",
        "Nothing to do; one row is enough.",
    )
    CONTRADICTORY = (
        "contradictory",
        "An earlier row for the same key has another label; no image of that key is used.",
        "Keep the right row.",
    )
    NO_FILE = (
        "no-file",
        "No readable file of the images folder has this key.",
        "Check that the key column holds what site.toml says, and that the patient's files are there.",
    )

    def __init__(self, code: str, sentence: str, remedy: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy


class MaskProblem(Enum):
    """What is wrong with a file that is to be a mask, whatever image it belongs to."""

    NO_IMAGE = (
        "mask-without-image",
        "No readable file of the images folder goes with it.",
        "Compare its name with that of its image, or the numbers in a SEG with the image's; or remove it.",
    )
    NO_MASK = (
        "not-a-mask",
        "It is no PNG, NIfTI-1 or DICOM SEG that says on what it was drawn.",
        "Export it again, or keep it out of the masks folder.",
    )

    def __init__(self, code: str, sentence: str, remedy: str) -> None:
        self.code = code
        self.sentence = sentence
        self.remedy = remedy
