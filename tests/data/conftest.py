import pytest

from vr1_jax.data.media import MediaReader
from vr1_jax.data.synthetic_model import tiny_config, write_model_directory
from vr1_jax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_model_directory(directory, tiny_config())
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def media():
    with MediaReader() as reader:
        yield reader
