"""What can identify somebody in a DICOM header: the attributes of the Basic Profile, sorted into kinds.

Source:
    DICOM PS3.15 (2024b), table E.1-1, column "Basic Prof."; section E.3.1 for private attributes. Left out are UIDs,
    sequences that hold nothing else, and Patient ID: whether they are original or replaced cannot be seen, and the site
    needs them.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType

from pydicom.datadict import tag_for_keyword


class Kind(Enum):
    """A kind of identifying attribute: the field of `IdentifyingFacts` that counts it, and what it is, in words."""

    PATIENT = ("patient", "the patient", "name, age, sex, weight, address, telephone, history, alerts")
    IDENTIFIERS = (
        "identifiers",
        "identifiers",
        "accession number, further patient IDs, orders, admission, specimens",
    )
    DATES = ("dates", "dates and times", "of birth, of the study, of the series, of the image, of procedures")
    PEOPLE = (
        "people",
        "staff and places",
        "physicians, operators, the institution, its departments, positions",
    )
    DEVICES = ("devices", "devices", "serial numbers, station names, application entities")
    TEXTS = ("texts", "free text", "descriptions, comments, reasons, protocol names")
    PRIVATE = (
        "private",
        "private attributes",
        "whatever the scanner's maker wrote; only the maker knows what",
    )
    GRAPHICS = ("graphics", "graphics", "overlays, curves, annotations, preview pictures")

    def __init__(self, field: str, title: str, examples: str) -> None:
        self.field = field
        self.title = title
        self.examples = examples


_REMOVED: Mapping[Kind, str] = {
    Kind.PATIENT: """
        IdentifyingComments MedicalAlerts Allergies PatientTelecomInformation AdditionalPatientHistory
        PatientComments SpecialNeeds ReferencedPatientPhotoSequence ReferencedPatientAliasSequence PreMedication
        PatientInsurancePlanCodeSequence PatientPrimaryLanguageCodeSequence
        PatientPrimaryLanguageModifierCodeSequence OtherPatientNames PatientBirthName PatientAge PatientSize
        PatientWeight PatientAddress PatientMotherBirthName MilitaryRank BranchOfService PatientTelephoneNumbers
        EthnicGroup Occupation SmokingStatus PregnancyStatus PatientReligiousPreference PatientState
        PatientTransportArrangements
    """,
    Kind.IDENTIFIERS: """
        IssuerOfPatientID OtherPatientIDs OtherPatientIDsSequence InsurancePlanIdentification
        IssuerOfClinicalTrialProtocolID OtherClinicalTrialProtocolIDsSequence IssuerOfClinicalTrialSubjectID
        IssuerOfClinicalTrialSubjectReadingID IssuerOfClinicalTrialTimePointID ClinicalTrialSeriesID
        IssuerOfClinicalTrialSeriesID StudyIDIssuer AdmissionID IssuerOfAdmissionID IssuerOfAdmissionIDSequence
        ServiceEpisodeID IssuerOfServiceEpisodeID IssuerOfServiceEpisodeIDSequence PerformedProcedureStepID
        SpecimenAccessionNumber SlideIdentifier RequestedProcedureID ContainerComponentID
        ReferencedDigitalSignatureSequence ReferencedSOPInstanceMACSequence MAC ResultsID ResultsIDIssuer
        InterpretationID InterpretationIDIssuer DigitalSignaturesSequence
        ClinicalTrialProtocolEthicsCommitteeApprovalNumber ScheduledProcedureStepID MedicalRecordLocator
    """,
    Kind.DATES: """
        InstanceCoercionDateTime OverlayDate CurveDate OverlayTime CurveTime TimezoneOffsetFromUTC
        PatientBirthTime LastMenstrualDate EthicsCommitteeApprovalEffectivenessStartDate
        EthicsCommitteeApprovalEffectivenessEndDate CalibrationTime CalibrationDate GPSTimeStamp GPSDateStamp
        InterventionDrugStopTime InterventionDrugStartTime DateOfSecondaryCapture TimeOfSecondaryCapture
        ContrastBolusStartTime ContrastBolusStopTime RadiopharmaceuticalStartTime RadiopharmaceuticalStopTime
        RadiopharmaceuticalStartDateTime RadiopharmaceuticalStopDateTime DateOfLastCalibration
        TimeOfLastCalibration DateTimeOfLastCalibration DateOfManufacture DateOfInstallation
        ContributionDateTime ModifiedImageDate ModifiedImageTime StudyVerifiedDate StudyVerifiedTime
        StudyReadDate StudyReadTime ScheduledStudyStartDate ScheduledStudyStartTime ScheduledStudyStopDate
        ScheduledStudyStopTime StudyArrivalDate StudyArrivalTime StudyCompletionDate StudyCompletionTime
        ScheduledAdmissionDate ScheduledAdmissionTime ScheduledDischargeDate ScheduledDischargeTime
        AdmittingDate AdmittingTime DischargeDate DischargeTime ScheduledProcedureStepStartDate
        ScheduledProcedureStepStartTime ScheduledProcedureStepEndDate ScheduledProcedureStepEndTime
        PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepEndDate
        PerformedProcedureStepEndTime IssueDateOfImagingServiceRequest IssueTimeOfImagingServiceRequest
        ScheduledProcedureStepStartDateTime ScheduledProcedureStepExpirationDateTime
        ScheduledProcedureStepModificationDateTime ExpectedCompletionDateTime
        PerformedProcedureStepStartDateTime PerformedProcedureStepEndDateTime ProcedureStepCancellationDateTime
        FindingsGroupRecordingDateTrial FindingsGroupRecordingTimeTrial ObservationStartDateTime
        DateOfDocumentOrVerbalTransactionTrial TimeOfDocumentCreationOrVerbalTransactionTrial
        ObservationDateTrial ObservationTimeTrial TemplateVersion TemplateLocalVersion HL7DocumentEffectiveTime
        ApprovalStatusDateTime ProductExpirationDateTime SubstanceAdministrationDateTime
        AssertionExpirationDateTime PresentationCreationDate PresentationCreationTime SOPAuthorizationDateTime
        CreationDate CreationTime ROIDateTime ROIObservationDateTime IntendedFractionStartTime
        InterpretationRecordedDate InterpretationRecordedTime InterpretationTranscriptionDate
        InterpretationTranscriptionTime InterpretationApprovalDate InterpretationApprovalTime CertifiedTimestamp
    """,
    Kind.PEOPLE: """
        GPSVersionID IntendedRecipientsOfResultsIdentificationSequence OrderCallbackPhoneNumber
        VerbalSourceIdentifierCodeSequenceTrial CameraOwnerName GPSSatellites GPSMapDatum
        PersonTelecomInformation OrderCallbackTelecomInformation PhysicianApprovingInterpretation
        InstitutionAddress ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers
        ReferringPhysicianIdentificationSequence ConsultingPhysicianIdentificationSequence
        InstitutionalDepartmentName InstitutionalDepartmentTypeCodeSequence PhysiciansOfRecord
        PhysiciansOfRecordIdentificationSequence PerformingPhysicianName
        PerformingPhysicianIdentificationSequence NameOfPhysiciansReadingStudy
        PhysiciansReadingStudyIdentificationSequence CountryOfResidence RegionOfResidence ResponsiblePerson
        ResponsibleOrganization IssuerOfClinicalTrialSiteID ScheduledStudyLocation RequestingPhysician
        RequestingService ScheduledPatientInstitutionResidence CurrentPatientLocation
        PatientInstitutionResidence ScheduledPerformingPhysicianName
        ScheduledPerformingPhysicianIdentificationSequence ScheduledProcedureStepLocation PerformedLocation
        RequestedProcedureLocation PersonAddress PersonTelephoneNumbers OrderEntererLocation
        ScheduledHumanPerformersSequence ActualHumanPerformersSequence HumanPerformerOrganization
        HumanPerformerName AuthorObserverSequence ParticipantSequence CustodialOrganizationSequence
        CurrentObserverTrial AddressTrial TelephoneNumberTrial ContentCreatorIdentificationCodeSequence
        TopicAuthor ROICreatorSequence TreatmentSites InterpretationRecorder InterpretationTranscriber
        InterpretationAuthor InterpretationApproverSequence DistributionAddress GPSLatitudeRef GPSLatitude
        GPSLongitudeRef GPSLongitude GPSAltitudeRef GPSAltitude GPSStatus GPSMeasureMode GPSDOP GPSSpeedRef
        GPSSpeed GPSTrackRef GPSTrack GPSImgDirectionRef GPSImgDirection GPSDestLatitudeRef GPSDestLatitude
        GPSDestLongitudeRef GPSDestLongitude GPSDestBearingRef GPSDestBearing GPSDestDistanceRef GPSDestDistance
        GPSProcessingMethod GPSAreaInformation GPSDifferential NamesOfIntendedRecipientsOfResults OrderEnteredBy
        VerbalSourceTrial ROIInterpreterSequence ResultsDistributionListSequence DistributionName
    """,
    Kind.DEVICES: """
        NetworkID GeneratorID TransducerIdentificationSequence RetrieveAETitle StationAETitle
        DeviceSettingDescription LensMake LensModel LensSerialNumber UniqueDeviceIdentifier XRayDetectorLabel
        ScheduledStudyLocationAETitle ScheduledStationAETitle PerformedStationAETitle DeviceDescription
        LongDeviceDescription LensSpecification PlateID CassetteID GantryID ModifyingDeviceID
        ScheduledStationName PerformedStationName ScheduledStationNameCodeSequence
        ScheduledStationGeographicLocationCodeSequence PerformedStationNameCodeSequence
        PerformedStationGeographicLocationCodeSequence ReceivingAE RequestingAE SourceManufacturer MakerNote
        UDISequence Originator
    """,
    Kind.TEXTS: """
        StudyDescription SeriesDescription AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence
        PyramidDescription DerivationDescription ClinicalTrialTimePointDescription
        ClinicalTrialSeriesDescription AcquisitionComments RespiratoryMotionCompensationTechniqueDescription
        MultienergyAcquisitionDescription DecompositionDescription AcquisitionProtocolDescription
        RequestedSeriesDescription ContributionDescription PyramidLabel ModifiedImageDescription ImageComments
        FrameComments ImagePresentationComments ReasonForStudy ReasonForVisit ReasonForVisitCodeSequence
        StudyComments DischargeDiagnosisDescription ServiceEpisodeDescription VisitComments
        FilterLookupTableDescription ScheduledProcedureStepDescription PerformedProcedureStepDescription
        CommentsOnThePerformedProcedureStep CommentsOnRadiationDose ContainerDescription
        SpecimenShortDescription SpecimenDetailedDescription ReasonForTheRequestedProcedure
        ReasonForRequestedProcedureCodeSequence RequestedProcedureComments ReasonForTheImagingServiceRequest
        ImagingServiceRequestComments ConfidentialityConstraintOnPatientDataDescription
        AnnotationGroupDescription TopicTitle TopicSubject TextString PositionAcquisitionTemplateDescription
        StructureSetDescription ROIDescription ROIGenerationDescription ROIObservationLabel
        ROIObservationDescription RTPlanDescription PrescriptionDescription DoseReferenceDescription
        FractionGroupDescription BeamDescription BolusDescription FixationDeviceDescription
        ShieldingDeviceDescription SetupTechniqueDescription CompensatorDescription
        EquipmentFrameOfReferenceDescription PatientTreatmentPreparationProcedureParameterDescription
        PatientTreatmentPreparationMethodDescription PatientSetupPhotoDescription DisplacementReferenceLabel
        ReasonForOmissionDescription EntityDescription PriorTreatmentDoseDescription Arbitrary TextComments
        InterpretationText InterpretationDiagnosisDescription Impressions ResultsComments RequestedContrastAgent
        RequestAttributesSequence TopicKeywords ModifiedAttributesSequence
        NonconformingModifiedAttributesSequence NonconformingDataElementValue OriginalAttributesSequence
        InstanceOriginStatus PositionAcquisitionTemplateName StructureSetName RTPlanName EntityName
        DataSetTrailingPadding WaveformFilterDescription
    """,
    Kind.GRAPHICS: """
        IconImageSequence
    """,
}
"""The profile says X: such an attribute is removed."""

_REPLACED: Mapping[Kind, str] = {
    Kind.PATIENT: """
        PatientName PatientSex PatientSexNeutered
    """,
    Kind.IDENTIFIERS: """
        AccessionNumber ClinicalTrialProtocolID ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
        ClinicalTrialTimePointID StudyID FlowIdentifierSequence FlowIdentifier SourceIdentifier
        ContainerIdentifier IssuerOfTheContainerIdentifierSequence SpecimenIdentifier
        IssuerOfTheSpecimenIdentifierSequence PlacerOrderNumberImagingServiceRequest
        FillerOrderNumberImagingServiceRequest BarcodeValue
    """,
    Kind.DATES: """
        InstanceCreationDate InstanceCreationTime StudyDate SeriesDate AcquisitionDate ContentDate
        AcquisitionDateTime StudyTime SeriesTime AcquisitionTime ContentTime ContextGroupVersion
        ContextGroupLocalVersion PatientBirthDate CalibrationDateTime DateOfLastDetectorCalibration
        TimeOfLastDetectorCalibration FrameAcquisitionDateTime FrameReferenceDateTime SourceStartDateTime
        SourceEndDateTime StartAcquisitionDateTime EndAcquisitionDateTime FunctionalSyncPulse
        DecayCorrectionDateTime ExclusionStartDateTime InstructionPerformedDateTime ImpedanceMeasurementDateTime
        VerificationDateTime ObservationDateTime ParticipationDateTime DateTime Date Time ReferencedDateTime
        AssertionDateTime EffectiveDateTime InformationIssueDateTime HangingProtocolCreationDateTime
        SelectorDAValue SelectorDTValue SelectorTMValue DigitalSignatureDateTime AttributeModificationDateTime
        StructureSetDate StructureSetTime TreatmentControlPointDate TreatmentControlPointTime FirstTreatmentDate
        MostRecentTreatmentDate SafePositionExitDate SafePositionExitTime SafePositionReturnDate
        SafePositionReturnTime TreatmentDate TreatmentTime RTPlanDate RTPlanTime SourceStrengthReferenceDate
        SourceStrengthReferenceTime TreatmentToleranceViolationDateTime RecordedRTControlPointDateTime
        InterlockDateTime OverrideDateTime BeamHoldTransitionDateTime ReviewDate ReviewTime
        IntendedPhaseStartDate IntendedPhaseEndDate FrameOriginTimestamp
    """,
    Kind.PEOPLE: """
        ClinicalTrialProtocolEthicsCommitteeName InstitutionName InstitutionCodeSequence ReferringPhysicianName
        ConsultingPhysicianName OperatorsName OperatorIdentificationSequence ClinicalTrialSponsorName
        ClinicalTrialSiteID ClinicalTrialSiteName PersonIdentificationCodeSequence VerifyingOrganization
        VerifyingObserverSequence VerifyingObserverName VerifyingObserverIdentificationCodeSequence PersonName
        ContentCreatorName CertificateOfSigner ReviewerName TreatmentSite ClinicalTrialCoordinatingCenterName
        SelectorPNValue ROIInterpreter
    """,
    Kind.DEVICES: """
        XRaySourceID RTAccessoryHolderSlotID AcquisitionDeviceProcessingDescription DeviceLabel
        ManufacturerDeviceIdentifier StationName DeviceSerialNumber DetectorID XRayDetectorID DestinationAE
        SourceSerialNumber TreatmentMachineName RTAccessoryDeviceSlotID DeviceAlternateIdentifier
        SelectorAEValue ModifyingSystem
    """,
    Kind.TEXTS: """
        ClinicalTrialProtocolName ProtocolName AcquisitionFieldOfViewLabel RequestedProcedureDescription
        AnnotationGroupLabel SelectorLTValue SelectorSTValue SelectorUTValue ReasonForTheAttributeModification
        LabelText StructureSetLabel RTPlanLabel TreatmentPositionGroupLabel RadiationDoseIdentificationLabel
        RadiationDoseInVivoMeasurementLabel RTToleranceSetLabel RadiationGenerationModeLabel
        RadiationGenerationModeDescription TreatmentToleranceViolationDescription InterlockDescription
        InterlockOriginDescription ConceptualVolumeCombinationDescription ConceptualVolumeDescription
        UserContentLabel UserContentLongLabel EntityLabel EntityLongLabel RTPrescriptionLabel
        RTTreatmentApproachLabel RTPhysicianIntentNarrative ReasonForSuperseding TreatmentTechniqueNotes
        PrescriptionNotes FractionationNotes PrescriptionNotesSequence ContrastBolusAgent
        AcquisitionContextSequence SpecimenPreparationSequence ContentSequence SelectorASValue SelectorOBValue
        SelectorLOValue SelectorSHValue SelectorUNValue SelectorURValue SourceOfPreviousValues ROIName
    """,
    Kind.GRAPHICS: """
        EncapsulatedDocument GraphicAnnotationSequence
    """,
}
"""The profile allows an empty or a dummy value (Z, D and their combinations), which nobody can tell from a real one."""


def _by_tag() -> Iterator[tuple[int, tuple[Kind, bool]]]:
    for table, must_go in ((_REMOVED, True), (_REPLACED, False)):
        for kind, keywords in table.items():
            for keyword in keywords.split():
                if (tag := tag_for_keyword(keyword)) is not None:
                    yield tag, (kind, must_go)


IDENTIFYING: Mapping[int, tuple[Kind, bool]] = MappingProxyType(dict(_by_tag()))
"""By tag: the kind, and whether the profile removes the attribute in any case."""


def kind_of(tag: int) -> tuple[Kind, bool] | None:
    """Return kind and whether the profile removes it; None for an attribute that identifies nobody."""
    group = tag >> 16
    if group & 1:
        return Kind.PRIVATE, True
    if group >> 8 == 0x50 or (group >> 8 == 0x60 and tag & 0xFFFF in (0x3000, 0x4000)):
        return Kind.GRAPHICS, True
    return IDENTIFYING.get(tag)
