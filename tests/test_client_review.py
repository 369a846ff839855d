"""The review in plain language: each figure against a computation of its own, each warning where it belongs."""

import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dp_accounting as dp
import pytest
from dicom_files import Hospital
from dp_accounting import pld, rdp
from journals import ledger_in
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study
from test_server_aggregation import DISTRIBUTED

from client.admission import objections
from client.budget import training_cost
from client.index_report import Counts
from client.quality_file import SiteQuality
from client.review import Earlier, review_run, review_study
from client.review_leaving import vector_bytes
from client.review_sentences import Section, Sentence, at_most, num_bytes, share
from client.roles import Role
from client.site_file import SiteFile
from privacy.accounting import filter_order
from privacy.ledger import Ledger, LedgerRun
from privacy.secure_aggregation.terms import Terms
from shared_models.quality import Quality
from shared_models.study import Study

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
COUNTS = Counts(
    num_patients={Role.TRAIN: 4_120, Role.VALIDATION: 900, Role.TEST: 1_180},
    num_files=7_000,
    num_images=6_500,
    unusable_share=500 / 7_000,
    smallest_class=1_000,
    time=NOW - timedelta(days=3, hours=1),
)
NAMES = ("training", "images", "leaving", "epsilon", "budget", "sums", "policy", "changes")
CAP = {"lifetime_epsilon": 12.0, "lifetime_delta": 1e-5}


@pytest.fixture
def file(tmp_path: Path) -> SiteFile:
    return Hospital(tmp_path / "hospital").site()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_in(tmp_path / "state")


def with_policy(file: SiteFile, **policy: object) -> SiteFile:
    return file.model_copy(update={"policy": file.policy.model_copy(update=policy)})


def reviewed(
    study: Study,
    file: SiteFile,
    ledger: Ledger,
    *,
    earlier: Earlier | None = None,
    counts: Counts | None = None,
) -> dict[str, Section]:
    sections = review_study(study, file, ledger, earlier=earlier, counts=counts, now=NOW)
    return dict(zip(NAMES, sections, strict=True))


def text(section: Section) -> str:
    return " ".join(sentence.text for sentence in section.sentences)


def loud(section: Section, kind: str = "warning") -> list[str]:
    return [sentence.text for sentence in section.sentences if sentence.kind == kind]


def figure(section: Section, pattern: str) -> float:
    found = re.search(pattern, text(section))
    assert found, f"{pattern!r} is not in: {text(section)}"
    return float(found.group(1).replace(",", ""))


def with_image(study: Study, **image: object) -> Study:
    return study.model_copy(update={"image": study.image.model_copy(update=image)})


def test_what_the_study_asks_of_an_image_is_said_in_words(file, ledger) -> None:
    plain = text(reviewed(make_study(), file, ledger)["training"])
    assert "turned upright" not in plain
    assert "several frames" not in plain
    asked = with_image(
        make_study(),
        modalities=("CT",),
        intensity="hounsfield",
        window_center=40.0,
        window_width=400.0,
        frames="middle",
        orientation="standard",
        spacing=0.5,
    )
    said = text(reviewed(asked, file, ledger)["training"])
    assert "center 40 and width 400 Hounsfield units" in said
    assert "of 0.5 mm each" in said
    assert "images that do not tell the size of their pixels are left out" in said
    assert "turned upright, or left out" in said
    assert "the middle one is used" in said


def test_the_sections_stand_in_the_order_in_which_they_are_read(file, ledger) -> None:
    titles = [
        section.title
        for section in review_study(make_study(), file, ledger, earlier=None, counts=None, now=NOW)
    ]
    assert titles == [
        "What is trained",
        "On which of this hospital's images",
        "What leaves the building, and in which form",
        "What this means for one patient",
        "What is left of this hospital's privacy budget",
        "Who could see what",
        "What this hospital's policy says",
        "What changed since the version that was approved last",
    ]


# What is trained, and on what


def num_weights_of_small_cnn(channels: int, width: int) -> int:
    """By hand: four 3×3 convolutions with bias, a GroupNorm behind each, a linear head with one output."""
    widths = [channels, width, 2 * width, 4 * width, 4 * width]
    pairs = zip(widths, widths[1:], strict=False)
    return sum(9 * before * after + after + 2 * after for before, after in pairs) + widths[-1] + 1


def test_task_model_and_training_are_told_with_their_figures(file, ledger) -> None:
    said = text(reviewed(make_study(private=True), file, ledger)["training"])
    assert make_study(private=True).hash in said
    assert (
        "labelled “opacity” (positive) from images labelled “clear” (negative), in the column “finding”"
        in said
    )
    standardised = {"width = 8": "width = 8\nweight_standardisation = true"}
    of_standardised = text(reviewed(make_study(standardised), file, ledger)["training"])
    assert f"width 8, standardised weights: {num_weights_of_small_cnn(1, 8):,} numbers" in of_standardised
    assert "Of a patient who is drawn, one image is taken at random." in said
    rate = "sample_rate = 0.5"
    several = {
        rate: f'{rate}\naugmentation = {{ flip = ["columns"] }}\nimages_per_patient = 3\naugmentations = 4'
    }
    told = text(reviewed(make_study(several), file, ledger)["training"])
    assert "up to 3 images are taken at random, each in 4 copies that are altered independently. What" in told
    assert told.endswith("For each step images are altered at random, each by itself: mirrored.")
    copies = {rate: f'{rate}\naugmentation = {{ flip = ["columns"] }}\naugmentations = 2'}
    assert "one image is taken at random, each in 2" in text(
        reviewed(make_study(copies), file, ledger)["training"]
    )
    assert f"width 8: {num_weights_of_small_cnn(1, 8):,} numbers" in said
    scattering = {'architecture = "small-cnn"\nwidth = 8': 'architecture = "scattering"\nscales = 1'}
    other = text(reviewed(make_study(scattering), file, ledger)["training"])
    assert "stay as the study's seed made them" not in said + other
    head = text(
        reviewed(make_study({"width = 8": 'width = 8\ntrainable = "head"'}), file, ledger)["training"]
    )
    assert "width 8: 33 numbers" in head
    frozen = num_weights_of_small_cnn(1, 8) - 33
    assert f"Only the last layer is trained. The other {frozen:,} numbers stay as the study's seed" in head
    block = {"width = 8": 'width = 8\ntrainable = "last-block"'}
    said_of_block = text(reviewed(make_study(block), file, ledger)["training"])
    assert "Only the last block of layers and what follows are trained." in said_of_block
    assert "of the kind “scattering”: fixed filters of 1 size and 8 angles" in other
    assert f"what they show: {9 * 8 * 8 + 1:,} numbers" in other
    assert "16 × 16 pixels" in said
    assert "3 rounds. In each, this hospital makes 2 steps on its own images, 6 steps in all" in said
    assert "drawn with probability 0.5" in said


def test_of_volumes_the_grid_is_told_and_what_becomes_of_a_broken_series(file, ledger) -> None:
    volumes = {
        'architecture = "small-cnn"': 'architecture = "small-cnn-3d"',
        'modalities = ["CR"]': 'modalities = ["MR"]',
        "columns = 16": "columns = 16\ndepth = 8\nspacing = 1.5\nslice_spacing = 4.0\n"
        'intensity = "percentiles"',
    }
    said = text(reviewed(make_study(volumes), file, ledger)["training"])
    assert "brought to 8 slices of 16 × 16 pixels along the patient's axes: 4 mm from slice to slice" in said
    assert "from the volume's percentile 0.5 (black) to 99.5 (white)" in said
    assert "with a slice that cannot be used is left out as a whole" in said
    assert "of the kind “small-cnn-3d”, width 8: 45,441 numbers" in said


def test_folder_labels_and_roles_are_told(file, ledger) -> None:
    said = text(reviewed(make_study(), file, ledger)["images"])
    assert str(file.images.folder) in said
    assert str(file.labels.file) in said
    assert "Modality) “CR”" in said
    assert "about 60% train the model, 20% validate it, 20% test it" in said
    assert "collegium-client index --study" in said
    column = text(reviewed(make_study({'roles = "hash"': 'roles = "column"'}), file, ledger)["images"])
    assert "column “role” of the labels file" in column


def test_counts_are_told_with_their_age_and_where_they_are_too_few(file, ledger) -> None:
    section = reviewed(make_study(), file, ledger, counts=COUNTS)["images"]
    assert "Counted 3 days ago: 6,500 of 7,000 files" in text(section)
    assert "4,120 for training, 900 for validation, 1,180 for the test" in text(section)
    assert not loud(section)
    strict = with_policy(file, min_patients=5_000, max_unusable_share=0.01)
    found = loud(reviewed(make_study(), strict, ledger, counts=COUNTS)["images"])
    assert "4,120 training patients are too few" in found[0]
    assert "7.1% of the files cannot be used" in found[1]


def test_what_the_study_and_the_site_ask_of_images_is_said_in_words(file, ledger) -> None:
    plain = text(reviewed(make_study(), file, ledger)["images"])
    assert "Left out are images of one value only" in plain
    assert "images that are there under several Patient IDs" in plain
    assert "only images" not in plain
    quality = Quality(
        views=("PA", "AP"),
        body_parts=("CHEST",),
        unstated="refuse",
        photometric=("MONOCHROME2",),
        min_rows=100,
        max_columns=5_000,
        max_saturated_share=0.4,
        burned_in="require-no",
        min_patients_per_class=20,
    )
    study = make_study().model_copy(update={"quality": quality})
    careful = file.model_copy(
        update={"quality": SiteQuality(identifiers="refuse", patient_conflicts="refuse")}
    )
    section = reviewed(study, careful, ledger)["images"]
    said = text(section)
    for words in (
        "that state “PA”, “AP” as view; that state “CHEST” as body part; stored as “MONOCHROME2”",
        "of at least 100 rows; of at most 5,000 columns",
        "more than 40% of the pixels",
        "does not say that no text in the picture",
        "still hold what can identify somebody",
        "who seem to have several Patient IDs, are left out",
        "With fewer than 20 training patients of any class",
    ):
        assert words in said
    assert not loud(section)
    loose = study.model_copy(update={"quality": Quality(burned_in="use", shared_pixels="use", blank="use")})
    assert len(loud(reviewed(loose, file, ledger)["images"])) == 2


def test_floors_of_the_study_that_the_counted_images_do_not_reach_are_warned_of(file, ledger) -> None:
    quality = Quality(min_patients_per_class=1_001, max_unusable_share=0.05)
    study = make_study(private=True).model_copy(update={"quality": quality})
    found = loud(reviewed(study, file, ledger, counts=COUNTS)["images"])
    assert "has 1,000 training patients, and the study asks for 1,001" in found[0]
    assert "7.1% of the files cannot be used, and the study allows 5.0%" in found[1]


@pytest.mark.thorough
def test_a_delta_above_one_over_the_number_of_patients_is_warned_of(file, ledger) -> None:
    loose = make_study({"delta = 1e-4": "delta = 1e-3"}, private=True)
    assert "1/4,120^1.1 = 0.00011" in loud(reviewed(loose, file, ledger, counts=COUNTS)["images"])[0]
    good = make_study(private=True)
    few = Counts(
        **{
            **{name: getattr(COUNTS, name) for name in COUNTS.__slots__},
            "num_patients": dict.fromkeys(Role, 100),
        }
    )
    assert not loud(reviewed(good, file, ledger, counts=few)["images"])


# What leaves


def test_bytes_of_each_round_and_in_all_are_those_of_the_vectors(file, ledger) -> None:
    """A signature of 64 bytes and four bytes for each weight, the weight in the mean, each statistic, the sentinel."""
    study = make_study(private=True)
    weights, statistics = num_weights_of_small_cnn(1, 8), 2 * 20 + 1
    bare, validated = 64 + 4 * (weights + 1 + 1), 64 + 4 * (weights + 1 + statistics + 1)
    final = 64 + 4 * (2 * statistics + 1)
    assert vector_bytes(study) == {1: bare, 2: validated, 3: bare, 4: final}
    said = text(reviewed(study, file, ledger)["leaving"])
    assert f"{bare:,} bytes ({bare / 1000:.1f} kB) in 2 rounds" in said
    assert f"{validated:,} bytes ({validated / 1000:.1f} kB) in 1 round, validation figures included" in said
    assert f"for the final test, {final:,} bytes" in said
    assert f"4 vectors, {2 * bare + validated + final:,} bytes" in said


def test_what_leaves_without_noise_is_a_warning_and_what_is_noised_is_none(file, ledger) -> None:
    assert not loud(reviewed(make_study(private=True), file, ledger)["leaving"])
    bare = " ".join(loud(reviewed(make_study(), file, ledger)["leaving"]))
    assert "no noise" in bare
    assert "EXACT" in bare
    by_patients = {'weights = "equal"': 'weights = "patients"\nmax_patients = 1000'}
    assert "exact number of training patients" in " ".join(
        loud(reviewed(make_study(by_patients), file, ledger)["leaving"])
    )
    noised = reviewed(make_study(by_patients, private=True), file, ledger)["leaving"]
    assert "with noise of 30 patients" in text(noised)
    assert not loud(noised)


# ε


def pld_epsilon(study: Study, multiplier: float) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    step = dp.PoissonSampledDpEvent(study.training.sample_rate, dp.GaussianDpEvent(multiplier))
    accountant.compose(dp.SelfComposedDpEvent(step, study.num_steps))
    accountant.compose(dp.GaussianDpEvent(30.0))
    return float(accountant.get_epsilon(study.privacy.delta))


@pytest.mark.slow
def test_epsilon_is_told_as_the_probability_of_a_right_guess(file, ledger) -> None:
    section = reviewed(make_study({"epsilon = 5.0": "epsilon = 2.0"}, private=True), file, ledger)["epsilon"]
    for epsilon in (2.0, 4.0):
        exact = (math.exp(epsilon) + 1e-4) / (1 + math.exp(epsilon))
        told = figure(section, rf"ε = {epsilon:g} at δ = 0.0001.*?probability at most ([\d.]+) %") / 100
        assert exact <= told < exact + 1e-4, "rounded up, to two decimals"
    assert figure(section, r"factor e\^ε = ([\d.]+)") == pytest.approx(math.exp(2.0), rel=5e-3)
    assert "50 %" in text(section)
    assert not loud(section)


@pytest.mark.thorough
def test_an_epsilon_that_rules_out_little_is_said_to(file, ledger) -> None:
    found = loud(
        reviewed(make_study({"epsilon = 5.0": "epsilon = 8.0"}, private=True), file, ledger)["epsilon"]
    )
    assert "close to certainty" in found[0]
    assert "ε = 8 of training" in found[0]


def test_no_privacy_and_exact_evaluation_are_unmistakable(file, ledger) -> None:
    found = loud(reviewed(make_study(), file, ledger)["epsilon"])
    assert found[0].startswith("NO DIFFERENTIAL PRIVACY (")
    assert found[1].startswith("NO DIFFERENTIAL PRIVACY FOR VALIDATION AND TEST PATIENTS")
    assert "right with probability" not in text(reviewed(make_study(), file, ledger)["epsilon"])
    partly = make_study({"\nepsilon = 4.0": "\nunnoised = true"}, private=True)
    assert any("FOR VALIDATION AND TEST" in one for one in loud(reviewed(partly, file, ledger)["epsilon"]))


def test_another_unit_than_the_person_is_warned_of(file, ledger) -> None:
    lesions = make_study({'title = "A study for tests"': 'title = "A"\npatient = "lesion"'}, private=True)
    assert any("stands for “lesion”" in one for one in loud(reviewed(lesions, file, ledger)["epsilon"]))


STATEMENTS = {
    "unit": "The promise is about one patient",
    "epsilon": "A training patient loses at most ε = ",
    "delta": "except for a remainder of probability δ = 0.0001",
    "mode": "Mode: privacy.mode = ",
    "adversary": "It holds against",
    "overshoot": "Overshoot: ",
    "evaluation": "A validation patient loses",
}
TEN = {
    **DISTRIBUTED,
    "num_sites_max = 3": "num_sites_max = 10",
    "threshold = 2": "threshold = 7",
    "epsilon = 5.0": "epsilon = 2.0",
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, DISTRIBUTED], ids=["local", "distributed"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_each_part_of_the_promise_is_one_sentence(file, ledger, changes, statement: str) -> None:
    section = reviewed(make_study(changes, private=True), file, ledger)["epsilon"]
    (found,) = [one.text for one in section.sentences if STATEMENTS[statement] in one.text]
    assert found.endswith(".")
    assert ". " not in found


@pytest.mark.parametrize(
    ("changes", "one_sum"), [({}, False), (DISTRIBUTED, True)], ids=["local", "distributed"]
)
def test_what_a_patient_at_two_hospitals_loses_is_computed_for_the_mode(
    file, ledger, changes, one_sum
) -> None:
    study = make_study(changes, private=True)
    cost, delta = training_cost(study), study.privacy.delta
    assert cost is not None
    epsilon = cost.epsilon_at_two_sites(delta, one_sum=one_sum)
    assert epsilon > study.privacy.epsilon
    said = text(reviewed(study, file, ledger)["epsilon"])
    assert (
        f"at two hospitals of this study loses more than is said above: at most ε = {at_most(epsilon)}"
        in said
    )


def test_under_the_local_mode_this_hospital_relies_on_nobody(file, ledger) -> None:
    section = reviewed(make_study({"epsilon = 5.0": "epsilon = 2.0"}, private=True), file, ledger)["epsilon"]
    assert not loud(section)
    assert "would hold even if the masks failed" in text(section)
    assert "the server, the other hospitals and everybody who gets the model" in text(section)
    assert "with 2 to 3 hospitals of equal size in a sum there is 1.41 to 1.73 times" in text(section)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("colluding", "overshoots", "own", "against"),
    [
        (1, "1.08 to 1.29", "0.41", "the server together with up to 1 other hospital,"),
        (3, "1.32 to 1.58", "0.50", "the server together with up to 3 other hospitals,"),
    ],
)
def test_under_the_distributed_mode_it_is_said_on_whom_the_promise_relies(
    file, ledger, colluding: int, overshoots: str, own: str, against: str
) -> None:
    """The range of the overshoot: √(7/6) to √(10/6), and √(7/4) to √(10/4); the share of one: 1/√6, 1/√4."""
    terms = {**TEN, "num_colluding = 0": f"num_colluding = {colluding}"}
    section = reviewed(make_study(terms, private=True), file, ledger)["epsilon"]
    (mode,) = loud(section)
    assert "relies on secure aggregation and on the noise of the other honest hospitals" in mode
    assert "weaker than under mode “local”" in mode
    assert f"by itself carries {own} of the noise" in mode
    assert against in text(section)
    assert "but not if more hospitals work with the server or leave out their noise" in text(section)
    assert f"with 7 to 10 hospitals in a sum there is {overshoots} times the noise" in text(section)
    assert "even if the masks failed" not in text(section)


def test_a_sum_of_one_possible_size_has_one_overshoot(file, ledger) -> None:
    terms = {**TEN, "num_sites_max = 3": "num_sites_max = 7"}
    section = reviewed(make_study(terms, private=True), file, ledger)["epsilon"]
    assert "with 7 hospitals in a sum there is 1.08 times" in text(section)


def test_under_the_distributed_mode_training_and_what_leaves_are_told_as_they_are(file, ledger) -> None:
    sections = reviewed(make_study(DISTRIBUTED, private=True), file, ledger)
    assert "all hospitals together make one step" in text(sections["training"])
    assert "steps on its own images" not in text(sections["training"])
    assert "only the sum over the hospitals carries enough" in text(sections["leaving"])
    assert "enough noise of this hospital's own" not in text(sections["leaving"])
    with_noise = with_policy(file, allow_distributed_noise=True)
    allowed = reviewed(make_study(DISTRIBUTED, private=True), with_noise, ledger)["policy"]
    assert "policy.allow_distributed_noise = true" in loud(allowed)[0]
    refused = loud(reviewed(make_study(DISTRIBUTED, private=True), file, ledger)["policy"], "refusal")
    assert "policy.allow_distributed_noise = true" in refused[1]


# The budget


def spent_run(ledger: Ledger, name: str, *, study_hash: str = "a" * 64, num_steps: int = 40) -> LedgerRun:
    run = LedgerRun(
        run_id=name,
        study_hash=study_hash,
        sample_rate=0.1,
        noise_multiplier=2.0,
        delta=1e-5,
        noised_count=100,
        evaluation_deviation=3.0,
        num_evaluations=2,
    )
    ledger.open_run(run)
    ledger.begin_round(name, 1, num_steps=num_steps)
    return run


def rdp_epsilon(*events: tuple[dp.DpEvent, dp.DpEvent]) -> float:
    """Of runs, each (training, evaluation), at the one order of the cap; of each run the larger divergence counts."""
    order, total = filter_order(cap=12.0, delta=1e-5), 0.0
    for pair in events:
        divergences = []
        for event in pair:
            accountant = rdp.RdpAccountant(orders=[order])
            accountant.compose(event)
            divergences.append(float(accountant.rdp[0]))
        total += max(divergences)
    return float(rdp.compute_epsilon([order], [total], 1e-5)[0])


def training_event(rate: float, multiplier: float, steps: int) -> dp.DpEvent:
    step = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(multiplier))
    return dp.ComposedDpEvent([dp.SelfComposedDpEvent(step, steps), dp.GaussianDpEvent(30.0)])


@pytest.mark.slow
def test_spent_this_run_all_runs_and_cap_are_those_of_the_ledger(file, ledger) -> None:
    from client.budget import evaluation_cost, training_cost

    study = make_study({"epsilon = 5.0": "epsilon = 2.0", "\nepsilon = 4.0": "\nepsilon = 1.0"}, private=True)
    spent_run(ledger, "earlier")
    section = reviewed(study, with_policy(file, max_runs_per_study=3, **CAP), ledger)["budget"]
    cost, evaluation = training_cost(study), evaluation_cost(study)
    assert cost is not None
    assert evaluation is not None
    past = (training_event(0.1, 2.0, 40), dp.SelfComposedDpEvent(dp.GaussianDpEvent(3.0), 2))
    planned = (
        training_event(0.5, cost.noise_multiplier, 6),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(evaluation.standard_deviation), 2),
    )
    for words, expected in [
        ("Spent so far", rdp_epsilon(past)),
        ("With this run", rdp_epsilon(past, planned)),
        ("With all runs of this study that are allowed", rdp_epsilon(past, planned, planned, planned)),
    ]:
        told = figure(section, rf"{words}: ([\d.]+[\d])")
        assert expected - 1e-6 <= told <= expected + 0.01, words
    assert "The cap: 12 (policy.lifetime_epsilon), all at δ = 1e-05" in text(section)
    assert "Rényi differential privacy (RDP)" in text(section)

    told = figure(section, r"costs a training patient ε = ([\d.]+) at δ = 0.0001")
    exact = pld_epsilon(study, cost.noise_multiplier)
    assert exact - 1e-6 <= told <= exact + 0.01
    assert told <= 2.0
    assert "privacy loss distributions (PLD" in text(section)
    told = figure(section, r"the cross-check, gives ([\d.]+\d)")
    assert told == pytest.approx(cost.rdp_epsilon(1e-4), abs=0.01)
    assert told > exact
    assert figure(section, r"noise multiplier of ([\d.]+)") == pytest.approx(cost.noise_multiplier, rel=5e-3)
    assert "0 runs of this study have begun here, 3 allowed" in text(section)


def test_a_budget_that_does_not_pay_for_all_allowed_runs_is_warned_of(file, ledger) -> None:
    study = make_study(private=True)
    tight = with_policy(file, max_runs_per_study=3, **CAP)
    section = reviewed(study, tight, ledger)["budget"]
    assert "does not pay for all runs" in loud(section)[0]
    ample = with_policy(file, max_runs_per_study=1, **CAP)
    assert not loud(reviewed(study, ample, ledger)["budget"])


def test_without_a_cap_that_is_said_and_runs_are_added_up_simply(file, ledger) -> None:
    section = reviewed(make_study(private=True), with_policy(file, max_runs_per_study=3), ledger)["budget"]
    assert "has set no cap" in loud(section)[0]
    assert "at most ε = 15 at δ = 0.0003, by simple addition" in text(section)


def test_a_past_without_bound_is_said(file, ledger) -> None:
    ledger.open_run(
        LedgerRun(
            run_id="bare",
            study_hash="b" * 64,
            sample_rate=0.5,
            noise_multiplier=None,
            delta=None,
            noised_count=9,
            evaluation_deviation=None,
            num_evaluations=0,
        )
    )
    capped = with_policy(file, **CAP)
    section = reviewed(make_study(private=True), capped, ledger)["budget"]
    assert "without limit or not known" in loud(section)[0]


def test_a_promise_that_no_noise_keeps_is_an_objection_and_no_traceback(file, ledger) -> None:
    study = make_study({"epsilon = 5.0": "epsilon = 0.001"}, private=True)
    sections = reviewed(study, file, ledger)
    assert "cannot be reached" in loud(sections["budget"], "refusal")[0]
    assert "cannot be reached" in loud(sections["policy"], "refusal")[1]


# Who could see what


def test_the_terms_are_told_for_each_number_of_sites(file, ledger) -> None:
    study = make_study(
        {
            "num_sites_max = 3": "num_sites_max = 5",
            "threshold = 2": "threshold = 4",
            "num_colluding = 0": "num_colluding = 2",
        },
        private=True,
    )
    section = reviewed(study, file, ledger)["sums"]
    for line in Terms.of(study.aggregation).explain():
        assert f"  {line}" in [sentence.text for sentence in section.sentences]
    assert "sums over hospitals, of at least 4" in text(section)
    assert "Up to 2 other hospitals may work together with the server" in text(section)
    assert "other honest hospitals: 2 at least" in text(section)
    assert not loud(section)


def test_many_possible_numbers_of_sites_are_not_all_listed(file, ledger) -> None:
    study = make_study(
        {"num_sites_max = 3": "num_sites_max = 30", "threshold = 2": "threshold = 16"}, private=True
    )
    said = text(reviewed(study, file, ledger)["sums"])
    assert "16 sites: 0 may vanish" in said
    assert "30 sites: 14 may vanish" in said
    assert "25 sites:" not in said
    assert "(7 numbers between)" in said


def test_curious_hospitals_and_sums_of_two_are_warned_of(file, ledger) -> None:
    found = loud(reviewed(make_study(private=True), file, ledger)["sums"])
    assert found[0].startswith("num_colluding = 0")
    assert found[1].startswith("Sums of two hospitals")
    assert all("ε above still holds" in one for one in found)
    assert all(
        "exact: nothing else protects it" in one for one in loud(reviewed(make_study(), file, ledger)["sums"])
    )


# Policy


POLICIES = [
    ({"min_threshold": 3}, {}, "policy.min_threshold = 3"),
    ({"min_cohort": 3}, {}, "policy.min_cohort = 3"),
    ({"allowed_tasks": ("segmentation",)}, {}, "policy.allowed_tasks = ['segmentation']"),
    ({"allowed_architectures": ("unet",)}, {}, "policy.allowed_architectures = ['unet']"),
    ({"lifetime_epsilon": 1.0, "lifetime_delta": 1e-5}, {}, "above policy.lifetime_epsilon = 1"),
    (CAP, {"\nepsilon = 4.0": "\nunnoised = true"}, "policy.lifetime_epsilon = 12 covers all patients"),
]


@pytest.mark.parametrize(("policy", "changed", "words"), POLICIES, ids=[one[2] for one in POLICIES])
def test_each_line_of_the_policy_that_refuses_is_told_in_words(file, ledger, policy, changed, words) -> None:
    study = make_study(changed, private=True)
    section = reviewed(study, with_policy(file, **policy), ledger)["policy"]
    found = loud(section, "refusal")
    assert "REFUSES" in found[0]
    assert any(words in one for one in found[1:])


def test_all_lines_that_refuse_are_told_at_once_and_are_the_agents(file, ledger) -> None:
    strict = with_policy(file, min_threshold=3, min_cohort=3, allowed_tasks=("segmentation",))
    section = reviewed(make_study(), strict, ledger)["policy"]
    against = objections(strict, ledger, make_study())
    assert len(against) == 4, "those three, and no privacy"
    assert loud(section, "refusal")[1:] == [one.words for one in against]
    assert {one.reason for one in against} == {"policy"}


def test_a_study_that_was_run_as_often_as_allowed_is_refused(file, ledger) -> None:
    study = make_study(private=True)
    spent_run(ledger, "run-1", study_hash=study.hash)
    sections = reviewed(study, file, ledger)
    assert "the study was run 1 times here" in loud(sections["policy"], "refusal")[1]
    assert objections(file, ledger, study)[0].reason == "budget"
    assert not objections(file, ledger, study, run_id="run-1"), "the run that was begun may go on"


def test_what_follows_from_an_approval_is_told(file, ledger) -> None:
    study = make_study(private=True)
    said = text(reviewed(study, with_policy(file, max_runs_per_study=2), ledger)["policy"])
    assert "Nothing in this hospital's file (site.toml) refuses" in said
    assert "up to 2 runs without asking again" in said
    asking = with_policy(file, ask_each_run=True)
    assert "each run waits" in text(reviewed(study, asking, ledger)["policy"])
    allowing = with_policy(file, allow_no_privacy=True)
    section = reviewed(make_study(), allowing, ledger)["policy"]
    assert "allow_no_privacy = true" in loud(section)[0]


# Changes, and one run


@pytest.mark.slow
def test_changes_since_the_last_approved_version_are_told_and_weaker_ones_are_loud(file, ledger) -> None:
    old = make_study(private=True)
    new = make_study({"epsilon = 5.0": "epsilon = 6.0", "num_rounds = 3": "num_rounds = 4"}, private=True)
    earlier = Earlier(study_hash=old.hash, study=old, time="2026-02-01T10:00:00", by="Dr Example")
    section = reviewed(new, file, ledger, earlier=earlier)["changes"]
    assert f"{old.hash[:12]} was approved on 2026-02-01 by Dr Example" in text(section)
    assert "2 values changed" in text(section)
    assert loud(section) == ["  ε of training (privacy.epsilon): 5.0 → 6.0 – WEAKENS PROTECTION"]
    assert "rounds (training.num_rounds): 3 → 4" in text(section)
    lost = Earlier(study_hash=old.hash, study=None, time="2026-02-01T10:00:00", by="x")
    assert "cannot be read any more" in loud(reviewed(new, file, ledger, earlier=lost)["changes"])[0]


def test_one_run_is_told_by_its_cost_and_by_the_policy(file, ledger) -> None:
    study = make_study(private=True)
    spent_run(ledger, "run-1", study_hash=study.hash)
    budget, policy = review_run(study, file, ledger, run_id="run-1")
    assert "1 run of this study has begun here, 1 allowed" in text(budget)
    assert "costs nothing twice" in text(budget)
    assert not loud(policy, "refusal")
    assert loud(review_run(study, file, ledger, run_id="run-2")[1], "refusal")


# What others wrote, and how figures are written


def test_text_of_the_study_cannot_hide_or_fake_anything(file, ledger) -> None:
    study = make_study(private=True)
    evil = "\x1b[8mhidden\r\u202e"
    task = study.task.model_copy(update={"label": evil, "positive": (evil,)})
    image = study.image.model_copy(update={"modalities": ("CR", evil)})
    study = study.model_copy(update={"title": evil, "patient": evil, "task": task, "image": image})
    sections = reviewed(study, file, ledger).values()
    assert not [
        one for section in sections for one in section.sentences if re.search("[\x1b\r\u202e]", one.text)
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (at_most(1.001), "1.01"),
        (at_most(1.0), "1.00"),
        (at_most(math.inf), "without limit"),
        (share(0.98201), "98.21 %"),
        (share(0.5), "50.00 %"),
        (num_bytes(999), "999 bytes"),
        (num_bytes(1_234_567), "1,234,567 bytes (1.2 MB)"),
        (str(Sentence(text="x").kind), "plain"),
    ],
)
def test_costs_are_never_told_too_small(told: str, expected: str) -> None:
    assert told == expected


# Several classes and findings


def test_each_class_is_named_with_its_values_and_what_leaves_of_it(file: SiteFile, ledger: Ledger) -> None:
    study = make_study({ONE_QUESTION: THREE_CLASSES})
    sections = reviewed(study, file, ledger)
    trained = text(sections["training"])
    assert "tell 3 classes of images apart" in trained
    assert "“opacity” (“opacity”, “consolidation”); “mass” (“mass”)" in trained
    assert "column “finding”" in trained
    assert "how many patients of each class the model took for which" in text(sections["leaving"])
    refused = loud(sections["policy"], "refusal")
    assert any(
        'task.kind = "multi-class-classification" is not one of policy.allowed_tasks' in one
        for one in refused
    )


def test_each_finding_is_named_with_its_column_and_what_is_not_known(file: SiteFile, ledger: Ledger) -> None:
    study = make_study({ONE_QUESTION: TWO_FINDINGS})
    sections = reviewed(study, file, ledger)
    trained = text(sections["training"])
    assert "which of 2 findings an image shows" in trained
    assert "“effusion” (column “effusion”: “1” for yes, “0” for no)" in trained
    assert "taken as not known" in trained
    assert "columns “finding”, “effusion”" in text(sections["images"])
    assert "for each of 2 findings, how many patients with it" in text(sections["leaving"])


def test_one_column_in_the_site_file_is_a_warning_where_a_study_has_several_findings(
    file: SiteFile, ledger: Ledger
) -> None:
    named = file.model_copy(update={"labels": file.labels.model_copy(update={"column": "dx"})})
    sections = reviewed(make_study({ONE_QUESTION: TWO_FINDINGS}), named, ledger)
    assert any("remove labels.column" in one for one in loud(sections["images"]))


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False])
def test_each_subgroup_is_named_with_where_it_is_read_and_is_a_warning_without_noise(
    file: SiteFile, ledger: Ledger, private: bool
) -> None:
    groups = 'subgroups = ["sex", "age"]\nage_bands = [40]\nmin_subgroup = 25\n'
    study = make_study({"[aggregation]": f"{groups}\n[aggregation]"}, private=private)
    (told,) = [one for one in reviewed(study, file, ledger)["leaving"].sentences if "groups" in one.text]
    for words in (
        "“female”",
        "“under 40”",
        "“40 and over”",
        "PatientSex",
        "StudyDate",
        "fewer than 25 patients",
    ):
        assert words in told.text
    assert told.kind == ("plain" if private else "warning")
    plain = reviewed(make_study(private=private), file, ledger)["leaving"]
    assert not any("groups" in one.text for one in plain.sentences)
