import pytest
from reference_model import ours_from, random_reference


@pytest.fixture(scope="session")
def untied():
    reference = random_reference(False)
    return reference, ours_from(reference)
