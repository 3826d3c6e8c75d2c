import pytest

from vr1_jax.data.tokenizer import load_tokenizer
from vr1_jax.media.reader import MediaReader
from vr1_jax.tools.world.model import tiny_config, write_model_directory


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_model_directory(directory, tiny_config())
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def media():
    with MediaReader() as reader:
        yield reader
