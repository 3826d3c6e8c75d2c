import pytest
from reference_model import ours_from, random_reference


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def models(request):
    reference = random_reference(request.param)
    return reference, ours_from(reference)


@pytest.fixture(scope="session")
def untied():
    reference = random_reference(False)
    return reference, ours_from(reference)
