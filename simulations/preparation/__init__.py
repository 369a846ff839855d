"""Hospital folders of valid DICOM from synthetic or public images.

A *source* (``sources``) names the images; ``phantom_hospitals``, ``medmnist`` and ``ham10000`` turn it into *caseloads*
(``cases``), spread over hospitals by ``partition`` where the data have no sites of their own; ``hospitals`` writes them
with ``dicom_writer``.
"""
